"""Shards: the records between the stages, storage, packing and what trainers read. Imports no other package."""
