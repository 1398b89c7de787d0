"""Shards: their rows as arrays, the dataset that a trainer reads, and exports."""
