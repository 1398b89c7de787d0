"""Watching a run: its state from anywhere, its progress while it runs, and what it came to."""
