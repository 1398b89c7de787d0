"""Controls: traces of other segments, for values that ask what a trace does beyond what any trace of its tier does.

Of every tier a small pool of segments is picked by a hash of their text, so that it is the same whatever the order in
which they come; a segment is compared with those of the pool whose traces are about as long as its own. Each brings all
its traces: so the best of a segment's traces can be compared with the best of as many that are not about it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low

from augment.selection.candidates import Control, JudgedSegment, trace_of
from sharding.hashing import Purpose, hashed


def controls_of(segment: JudgedSegment) -> Iterator[tuple[str, Control]]:
    """What a segment offers the pool of its tier: its traces that passed the gates."""
    passed = [candidate for candidate in segment.candidates if not candidate.reasons]
    if segment.valued and passed:
        yield (
            segment.tier,
            Control(
                rank=_rank(segment),
                document=segment.document,
                segment_id=segment.segment_id,
                octave=_octave(segment),
                traces=[trace_of(candidate) for candidate in passed],
            ),
        )


def pools_of(segments: Iterable[JudgedSegment], size: int) -> dict[str, list[Control]]:
    """The pool of each tier, from segments that all fit in memory; the select stage combines the same from parts."""
    offered: dict[str, list[Control]] = {}
    for tier, control in (pair for segment in segments for pair in controls_of(segment)):
        offered.setdefault(tier, []).append(control)
    return {tier: lowest_ranks(controls, size) for tier, controls in offered.items()}


def lowest_ranks(controls: Iterable[Control], size: int) -> list[Control]:
    """The pool of some controls: the `size` of lowest rank, of segments of equal text one."""
    unique: dict[str, Control] = {}
    for control in controls:
        held = unique.setdefault(control.rank, control)
        unique[control.rank] = min(held, control, key=lambda one: one.segment_id)
    return [unique[rank] for rank in heapq.nsmallest(size, unique)]


def controls_for(segment: JudgedSegment, pool: Sequence[Control], number: int) -> list[Control]:
    """The controls of one segment, each of another document; none where the pool has too few of them.

    The nearest in length, by powers of two, to what the segment's own traces have; among those drawn by a hash of the
    segment and the control. Never of the same text, and never with a trace that the segment has as well: a corpus with
    copies would compare traces with themselves.
    """
    own_rank, own_octave = _rank(segment), _octave(segment)
    own_texts = {candidate.text for candidate in segment.candidates}
    chosen: dict[str, Control] = {}
    for control in sorted(
        pool, key=lambda c: (abs(c.octave - own_octave), _hash(f"{segment.segment_id}/{c.rank}"), c.rank)
    ):
        is_own = control.document == segment.document or control.rank == own_rank
        if is_own or control.document in chosen or own_texts & {trace.text for trace in control.traces}:
            continue
        chosen[control.document] = control
        if len(chosen) == number:
            # In an order that knows nothing of length: the first one stands in for the segment in the null.
            return sorted(chosen.values(), key=lambda c: _hash(f"{segment.segment_id}/{c.rank}"))
    return []


def _rank(segment: JudgedSegment) -> str:
    return _hash(segment.source_text)


def _octave(segment: JudgedSegment) -> int:
    """The power of two that the traces written for a segment reach, whether or not they passed."""
    return median_low(candidate.thought_tokens for candidate in segment.candidates).bit_length()


def _hash(key: str) -> str:
    return hashed(Purpose.CONTROL, key).hex()
