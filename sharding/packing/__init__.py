"""Packing: from documents and thoughts to training sequences of equal length in shards of equal rows."""
