"""After the source of their piece: A B ⟨thought A⟩ ⟨thought B⟩."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sharding.packing.cutting import Part
from sharding.packing.layouts import Stretch, thoughts_of


def thoughts_at(num_tokens: int, shown_tokens: int) -> int:
    """Behind all of it."""
    return num_tokens


def in_order(piece: Sequence[Part]) -> Iterator[Stretch]:
    """The source first."""
    for part in piece:
        yield Stretch(part.source, is_thought=False)
    for part in piece:
        yield from thoughts_of(part)


def belongs(place: int, segment: range, piece: range) -> bool:
    """Behind a piece that holds some of its segment."""
    return segment.start < place and segment.stop > piece.start
