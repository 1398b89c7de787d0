"""Layouts: where thoughts stand relative to the source. One module each, named in `LAYOUTS`.

A layout's module has

    thoughts_at   (num_tokens, shown_tokens) → how many of a segment's tokens stand before its thoughts, given how many
                  it has and how many of them the generator saw, from its start
    in_order      (piece) → source and thoughts of a piece of a document, in the order in which they are written
    belongs       (place, segment, piece) → whether a thought that was found behind `place` tokens of the document's
                  source may be about the segment, where the piece in which it is holds some of it; `segment` and
                  `piece` are ranges of source tokens. How `thoughtmill verify --deep` tells a thought that went astray

A piece is consecutive `Part`s that share a training sequence; a part that was cut off a segment knows where in it the
thoughts stand. `in_order` has to give every token of the source once and in order, and every thought once and in order:
`verify --deep` goes by that. The table is in `sharding.packing.config`, which checks the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sharding.packing.cutting import Part


class Stretch(NamedTuple):
    """Tokens that stand together: of the source, or one thought, without its delimiters."""

    input_ids: np.ndarray
    is_thought: bool


def within_parts(piece: Sequence[Part]) -> Iterator[Stretch]:
    """Every part's thoughts where they stand in it."""
    for part in piece:
        yield Stretch(part.source[: part.thoughts_at], is_thought=False)
        yield from thoughts_of(part)
        yield Stretch(part.source[part.thoughts_at :], is_thought=False)


def beside_segment(place: int, segment: range, piece: range) -> bool:
    """Within its segment, or at either end of it."""
    return segment.start <= place <= segment.stop


def thoughts_of(part: Part) -> Iterator[Stretch]:
    """The thoughts of a part, in order."""
    return (Stretch(thought, is_thought=True) for thought in part.thoughts)
