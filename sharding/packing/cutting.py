"""Pieces: where a document too long for one sequence is cut, so that thoughts stay beside their source. For `layout`.

a segment with its thoughts ──► parts that fit a sequence ──► pieces: consecutive parts to the length of a sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A segment, or a stretch of one, with thoughts that must stay in it, behind its first `thoughts_at` tokens."""

    source: np.ndarray
    thoughts: Sequence[np.ndarray]
    thoughts_at: int
    opens_segment: bool

    def num_tokens(self, wrap: int) -> int:
        return len(self.source) + weight(self.thoughts, wrap)


def weight(thoughts: Sequence[np.ndarray], wrap: int) -> int:
    """Tokens of the thoughts with their delimiters, `wrap` tokens each."""
    return sum(map(len, thoughts)) + wrap * len(thoughts)


def split_segment(source: np.ndarray, thoughts: Sequence[np.ndarray], *, at: int, room: int, wrap: int) -> list[Part]:
    """A segment as parts: one, if it fits in `room` tokens; else parts with thoughts that do, and plain rests.

    Args:
        source: the segment's tokens, at least one.
        thoughts: empty ones are left out.
        at: how many tokens of the segment stand before its thoughts.
        room: tokens of the longest part allowed.
        wrap: tokens of the delimiters around one thought.
    """
    thoughts = [thought[: room - wrap - 1] for thought in thoughts if len(thought)]
    if not thoughts or len(source) + weight(thoughts, wrap) <= room:
        return [Part(source, thoughts, at, opens_segment=True)]
    groups = _group(thoughts, room - min(len(source), room // 2), wrap)[: len(source)]
    if len(groups) == 1:
        # As much of the source on either side of the thoughts as fits, or all of it on one side and more of the other.
        beside = min(len(source), room - weight(groups[0], wrap))
        start = max(0, min(at - beside // 2, len(source) - beside))
        stretches = [(0, start, []), (start, start + beside, groups[0]), (start + beside, len(source), [])]
    elif len(source) - at >= len(groups):
        # None stands before its place: what it speaks of comes from there on.
        shares = _share(len(source) - at, groups, room, wrap)
        stretches = [(0, at, []), *((at + start, at + stop, group) for start, stop, group in shares)]
        at = 0
    else:
        # From the other end, turned around.
        shares = _share(len(source), groups[::-1], room, wrap)
        stretches = [(len(source) - stop, len(source) - start, group) for start, stop, group in shares[::-1]]
        at = len(source)
    return [
        Part(source[start:stop], group, min(max(0, at - start), stop - start), opens_segment=start == 0)
        for start, stop, group in stretches
        if start < stop
    ]


def _share(
    num_tokens: int, groups: Sequence[list[np.ndarray]], room: int, wrap: int
) -> list[tuple[int, int, list[np.ndarray]]]:
    """Stretches (start, stop, group) from the first token on, one for each group, and a plain one for what is left.

    A group gets its even share of the tokens that are left, or what fits beside it.
    """
    stretches: list[tuple[int, int, list[np.ndarray]]] = []
    start = 0
    for groups_left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        stop = start + min(-(-(num_tokens - start) // groups_left), room - weight(group, wrap))
        stretches.append((start, stop, group))
        start = stop
    return [*stretches, (start, num_tokens, [])]


def _group(thoughts: Sequence[np.ndarray], limit: int, wrap: int) -> list[list[np.ndarray]]:
    """Consecutive thoughts together while they weigh at most `limit`; one that weighs more is alone."""
    groups: list[list[np.ndarray]] = []
    for thought in thoughts:
        if groups and weight([*groups[-1], thought], wrap) <= limit:
            groups[-1].append(thought)
        else:
            groups.append([thought])
    return groups


def num_shortened(thoughts: Sequence[np.ndarray], parts: Sequence[Part]) -> int:
    """How many of a segment's thoughts are in its parts without their end."""
    # The placed thoughts are the first of the non-empty ones, in order.
    placed = [thought for part in parts for thought in part.thoughts]
    given = [thought for thought in thoughts if len(thought)]
    return sum(len(short) < len(whole) for short, whole in zip(placed, given, strict=False))


def join_parts(parts: Sequence[Part], max_tokens: int, wrap: int, end: int, start: int = 0) -> list[list[Part]]:
    """Consecutive parts together while they fit, plain ones cut to fill; with room for `start` and `end` tokens.

    These stand before the first piece and behind the last one.
    """
    pieces: list[list[Part]] = []
    room = 0  # left in the open piece
    for number, whole in enumerate(parts, start=1):
        part = whole
        reserved = end if number == len(parts) else 0
        while part.num_tokens(wrap) + reserved > room:
            # At least one token goes on to the next piece: the document's end can't stand alone.
            filling = min(room, len(part.source) - 1)
            if filling and not part.thoughts:
                pieces[-1].append(Part(part.source[:filling], (), 0, part.opens_segment))
                part = Part(part.source[filling:], (), 0, opens_segment=False)
            room = max_tokens if pieces else max_tokens - start
            pieces.append([])
        pieces[-1].append(part)
        room -= part.num_tokens(wrap)
    return pieces
