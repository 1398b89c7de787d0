"""Requests: from a segment to what an engine is asked, under a key that names all that decides the text."""
