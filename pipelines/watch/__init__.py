"""Watching a run: its state from anywhere, and its progress while it runs."""
