"""Benchmarks that documents and traces must not overlap with."""
