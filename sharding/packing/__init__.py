"""Packing: from documents and thoughts to training sequences of equal length in shards that differ by a row at most."""
