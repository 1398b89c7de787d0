"""What the account of selection is added up of: whole numbers under names, nats as millionths, by document group."""

from __future__ import annotations

import json
from collections import Counter

from sharding.hashing import Purpose, hash64
from sharding.records.types import Candidate

MICRO = 1_000_000
"""Nats are added up as whole millionths."""

DOCUMENT_GROUPS = 2048
"""Documents are put into so many groups by a hash, and sums are kept of each: what an interval over documents
needs, however large the corpus. Few documents have a group each, but for collisions, which make an interval wider."""


def count_name(group: tuple[str, str, str], *what: str) -> str:
    """The name of a count of a tier, model and prompt."""
    return json.dumps([*group, *what])


def add_to_sums(counts: Counter[str], group: tuple[str, str, str], what: str, document: str, nats: float) -> None:
    """Add what one segment says of something, in nats, to the sums of its document's group."""
    place = hash64(Purpose.DOCUMENT_GROUP, 0, document) % DOCUMENT_GROUPS
    counts[count_name(group, f"sums.{what}.{place}", "segments")] += 1
    counts[count_name(group, f"sums.{what}.{place}", "nats")] += round(nats * MICRO)


def net_nats(candidate: Candidate) -> float:
    """What a candidate gains beyond its controls."""
    return (candidate.gain_nats or 0.0) - (candidate.control_nats or 0.0)
