"""Deep, thoughts: which of the kept thoughts of a document a run of thought tokens is. Pure; used by `documents`.

A run is what stands between delimiters: one thought, which may have lost its end to the length of a sequence, or, where
there are no delimiters, several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sharding.beam.part_join import JoinedDocument
from sharding.errors import MillError
from sharding.packing.recovery import PlacedThought
from sharding.records.families import KEPT


@dataclass(frozen=True, slots=True, eq=False)
class Thought:
    """A kept thought: its tokens, and the tokens of the document that are its segment."""

    input_ids: np.ndarray
    segment: range


def kept_thoughts(document: JoinedDocument) -> list[Thought]:
    """The thoughts in the order in which they are to stand; empty ones never do.

    Raises:
        MillError: one is of a segment that the document doesn't have.
    """
    starts = document.scored.segment_starts.tolist()
    for thought in document.beside[KEPT.name]:
        if thought.segment_index >= len(starts):
            said = f"a kept thought of segment {thought.segment_index}, and {len(starts)} segments"
            raise MillError(f"document {document.scored.doc_id!r} has {said}")
    ends = [*starts[1:], len(document.scored.input_ids)]
    return [
        Thought(thought.input_ids, range(starts[thought.segment_index], ends[thought.segment_index]))
        for thought in sorted(document.beside[KEPT.name], key=lambda t: (t.segment_index, t.sample, t.key))
        if len(thought.input_ids)
    ]


@dataclass(frozen=True, slots=True)
class Match:
    """Kept thoughts that a run of thought tokens is.

    Attributes:
        thoughts: their numbers; several where no delimiter stands between.
        cut: whether it lost its end.
    """

    thoughts: tuple[int, ...]
    cut: bool = False


def match_run(
    run: PlacedThought,
    kept: Sequence[Thought],
    first: int,
    piece: range,
    belongs: Callable[[int, range, range], bool],
    *,
    may_be_cut: bool,
) -> Match | None:
    """What a run is: kept thoughts from the one numbered `first` on, in their order, one behind the other.

    Of several ways the one that leaves the most for what follows; kept thoughts between may be missing.

    Args:
        piece: the tokens of the document that stand in the run's item.
        belongs: of the layout: whether a thought at a place may be of a segment; see `sharding.packing.layouts`.
        may_be_cut: a thought may have lost its end; then it is the only one of its run.
    """
    ids = run.input_ids
    reached: dict[int, tuple[int, ...]] = {0: ()}  # so many tokens of the run -> the thoughts that they are
    for number in range(first, len(kept)):
        thought = kept[number]
        if not belongs(run.place, thought.segment, piece):
            continue
        for offset, thoughts in list(reached.items()):
            end = offset + len(thought.input_ids)
            if end <= len(ids) and np.array_equal(ids[offset:end], thought.input_ids):
                reached.setdefault(end, (*thoughts, number))
        if len(ids) in reached:
            return Match(reached[len(ids)])
        if may_be_cut and np.array_equal(ids, thought.input_ids[: len(ids)]):
            return Match((number,), cut=True)
    return None


def why_not(run: PlacedThought, kept: Sequence[Thought], first: int, copies: int) -> str:
    """What is wrong with a run that no kept thoughts match."""
    tokens = len(run.input_ids)
    same = [number for number, one in enumerate(kept) if np.array_equal(one.input_ids, run.input_ids)]
    if not same:
        return f"a thought of {tokens} tokens is not one of the {len(kept)} kept for its document"
    if min(same) < first:
        return f"a thought of {tokens} tokens is there more than the {copies} times that its document is"
    return f"a thought of {tokens} tokens is not beside its segment"
