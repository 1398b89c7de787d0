"""Feeding: an engine kept full from many bundles, each of which waits for its own requests only. See `feeder`."""
