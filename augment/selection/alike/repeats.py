"""Repeats: of thoughts of one shape, and of near-copies, so many are kept in the whole corpus and the others rejected.

No gate can do that, since a gate sees one trace. The candidates that passed the gates name what they may repeat, each
by a number; of those with one number the first by a hash of their ids stay, so that it is the same on every runner. The
cut of a number is the hash of the last one that stays, and only numbers with too many have one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.alike.diversity import HIGHEST_RANK, rank_of, shape_of
from augment.selection.candidates import JudgedSegment
from augment.selection.words import words_of
from sharding import minhash
from sharding.config import STRICT
from sharding.hashing import Purpose, hash64
from sharding.records.types import Candidate

REPEATED_SHAPE = "repeated_shape"
"""The reason of a trace whose beginning has a shape that enough others have."""

NEAR_COPY = "near_copy"
"""The reason of a trace that nearly equals enough others."""

Cuts = Mapping[int, int]
"""Number of what is repeated too often → the highest rank that stays."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RepeatsConfig:
    """How many traces of one kind may pass in the whole corpus."""

    shapes_at_most: int | None = Field(
        default=None,
        ge=1,
        le=1_000,
        description="So many traces whose beginnings have one shape, content words aside; null: any number.",
    )
    near_copies_at_most: int | None = Field(
        default=None, ge=1, le=1_000, description="So many traces that are near-copies of each other; null: any number."
    )

    @property
    def limits(self) -> dict[str, int]:
        """Reason → how many pass; those without a limit are left out."""
        limits = {REPEATED_SHAPE: self.shapes_at_most, NEAR_COPY: self.near_copies_at_most}
        return {reason: limit for reason, limit in limits.items() if limit is not None}


def repeated_by(candidate: Candidate, reason: str) -> list[int]:
    """The numbers under which a candidate meets those that it repeats."""
    words = words_of(candidate.text)
    if reason == REPEATED_SHAPE:
        return [hash64(Purpose.DIVERSITY, 1, shape_of(words)) >> 1]  # Beam's integers have a sign
    return [band >> 1 for band in minhash.bands(minhash.signature(words))]


def offers(segment: JudgedSegment, reason: str) -> Iterator[tuple[int, int]]:
    """(number, rank) of the candidates of a segment that passed the gates."""
    for candidate in segment.candidates:
        if not candidate.reasons:
            yield from ((number, rank_of(candidate)) for number in repeated_by(candidate, reason))


def lowest(ranks: Iterable[int], at_most: int) -> list[int]:
    """So many of the lowest, and one more where there are more."""
    return heapq.nsmallest(at_most + 1, ranks)


def cut_of(lowest_ranks: Sequence[int], at_most: int) -> int | None:
    """The highest rank that stays; None where all do."""
    return lowest_ranks[at_most - 1] if len(lowest_ranks) > at_most else None


def without_repeats(segment: JudgedSegment, cuts: Mapping[str, Cuts]) -> JudgedSegment:
    """The segment, its candidates that repeat too many others with the reason.

    Args:
        cuts: by reason, in the order of reasons.
    """
    candidates = [
        candidate
        if candidate.reasons
        else msgspec.structs.replace(
            candidate,
            reasons=[
                reason
                for reason, cut in cuts.items()
                if any(rank_of(candidate) > cut.get(number, HIGHEST_RANK) for number in repeated_by(candidate, reason))
            ],
        )
        for candidate in segment.candidates
    ]
    return msgspec.structs.replace(segment, candidates=candidates)
