"""Sharding: the ground: records, storage, sources, models, packing and what trainers read. Imports no other package."""
