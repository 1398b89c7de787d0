"""Controls: traces of other segments, for values that ask what a trace does beyond what any trace of its tier does.

Of every tier a small pool is picked by a hash of the traces' keys, so that it is the same whatever the order in which
they come; a segment is compared with those of the pool that are about as long as its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from augment.selection.candidates import Control, JudgedSegment
from sharding.hashing import Purpose, hashed

DRAWN = 4
"""So many times the controls wanted are drawn by chance; those nearest in length are taken of them."""


def controls_of(segment: JudgedSegment) -> Iterator[tuple[str, Control]]:
    """What a segment offers the pool of its tier: its first trace that passed the gates."""
    for candidate in segment.candidates:
        if segment.valued and not candidate.reasons:
            yield (
                segment.tier,
                Control(
                    rank=_hash(candidate.key),
                    doc_id=segment.doc_id,
                    segment_index=segment.segment_index,
                    thought_tokens=candidate.thought_tokens,
                    text=candidate.text,
                ),
            )
            return


def pools_of(segments: Iterable[JudgedSegment], size: int) -> dict[str, list[Control]]:
    """The pool of each tier, from segments that all fit in memory; the select stage combines the same from parts."""
    offered: dict[str, list[Control]] = {}
    for tier, control in (pair for segment in segments for pair in controls_of(segment)):
        offered.setdefault(tier, []).append(control)
    return {tier: lowest_ranks(controls, size) for tier, controls in offered.items()}


def lowest_ranks(controls: Iterable[Control], size: int) -> list[Control]:
    """The pool of some controls: the `size` of lowest rank, each segment and text once."""
    unique = {(control.rank, control.doc_id, control.segment_index): control for control in controls}
    return [unique[key] for key in heapq.nsmallest(size, unique)]


def controls_for(segment: JudgedSegment, pool: Sequence[Control], number: int) -> list[Control]:
    """The controls of one segment: of other documents where there are enough, else of other segments.

    Drawn by a hash of the segment and the control; of those drawn, the nearest in length to the segment's own traces.
    """
    others = [control for control in pool if control.doc_id != segment.doc_id]
    if len(others) < number:
        others = [c for c in pool if (c.doc_id, c.segment_index) != (segment.doc_id, segment.segment_index)]
    drawn = heapq.nsmallest(DRAWN * number, others, key=lambda c: (_hash(f"{segment.segment_id}/{c.rank}"), c.rank))
    own = median(candidate.thought_tokens for candidate in segment.candidates)
    return sorted(drawn, key=lambda control: (abs(control.thought_tokens - own), control.rank))[:number]


def _hash(key: str) -> str:
    return hashed(Purpose.CONTROL, key).hex()
