"""Difficulty: how hard each token is, and what each segment gets for it."""
