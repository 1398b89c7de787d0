"""Sources: from files in any fsspec store, or datasets, to documents; the first step of the flow.

    Source ──resolve──► files ──units_of──► ReadUnits ──read_documents──► Document | Quarantined
    (config)            names, sizes        what one worker reads

A source is listed once; workers read its units independently, record by record. A record that can't be read becomes a
`Quarantined` with a reason, a file that can't be read is an error that names it; nothing is dropped.
"""

from __future__ import annotations

from sharding.sources.config import Source, SourceConfig, misplaced_key
from sharding.sources.growth import Growth, Listed, growth_of, listed
from sharding.sources.listing import resolve
from sharding.sources.near_copies import NearCopies, NearCopiesConfig
from sharding.sources.readers import read_documents
from sharding.sources.units import (
    ReadUnit,
    SourceFile,
    listing_digest,
    pack_listing,
    text_bytes,
    units_of,
    unpack_listing,
)

__all__ = [
    "Growth",
    "Listed",
    "NearCopies",
    "NearCopiesConfig",
    "ReadUnit",
    "Source",
    "SourceConfig",
    "SourceFile",
    "growth_of",
    "listed",
    "listing_digest",
    "misplaced_key",
    "pack_listing",
    "read_documents",
    "resolve",
    "text_bytes",
    "units_of",
    "unpack_listing",
]
