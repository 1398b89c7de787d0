"""Thoughts that are all alike: measured over what is kept, and rejected beyond a number where that is asked for."""
