"""Shuffling: each kept trace in the place of another document's, as a control arm has it. Pure.

What a corpus of shuffled traces has in common with its original is everything but what the thoughts say about their
text: the same traces, once each, as many and about as long at every place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from sharding.hashing import Purpose, hashed
from sharding.records.types import Candidate

BLOCK_TRACES = 32
"""So many traces of neighbouring lengths change places among each other."""

SHUFFLED = "shuffled"
"""Why a shuffled trace has no value: what was measured is of another segment."""

OF_THE_TRACE = ("key", "model", "prompt", "closed", "finish_reason", "thought_tokens", "text", "input_ids")
"""What moves; the rest is of the place."""


def shuffled(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """The candidates of one group, each with the trace of another document of its tier and of about its length.

    Which one follows from ids alone. A trace stays in its document only where more than half of its neighbours in
    length, and at last of its whole tier, are of that document.
    """
    by_tier: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_tier.setdefault(candidate.tier, []).append(candidate)
    for _, of_tier in sorted(by_tier.items()):
        ordered = sorted(of_tier, key=lambda c: (len(c.input_ids), _rank(c.segment_id), c.sample))
        for block in _blocks(ordered):
            yield from _rotated(block)


def _blocks(ordered: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Neighbours, so many that each can get the trace of another document; what is left over joins the last."""
    blocks: list[list[Candidate]] = []
    block: list[Candidate] = []
    for candidate in ordered:
        block.append(candidate)
        if len(block) >= BLOCK_TRACES and 2 * _most_of_a_document(block) <= len(block):
            blocks.append(block)
            block = []
    if block and blocks and 2 * _most_of_a_document(block) > len(block):
        block = blocks.pop() + block
    yield from blocks
    if block:
        yield block


def _rotated(block: Sequence[Candidate]) -> Iterator[Candidate]:
    by_document = sorted(block, key=lambda c: (_rank(c.doc_id), c.doc_id, _rank(c.segment_id), c.sample))
    # Documents stand together, so a turn by the longest stretch of one leads every trace out of its own.
    turn = _most_of_a_document(block)
    for place, candidate in enumerate(by_document):
        other = by_document[(place + turn) % len(by_document)]
        moved = {name: getattr(other, name) for name in OF_THE_TRACE}
        yield msgspec.structs.replace(
            candidate, **moved, value=None, unvalued=SHUFFLED, gain_nats=None, control_nats=None, hard_gain_nats=None,
            heldout_nats=None, chance_value=None, chance_heldout_nats=None,
        )  # fmt: skip


def _most_of_a_document(block: Sequence[Candidate]) -> int:
    return max(Counter(candidate.doc_id for candidate in block).values())


def _rank(identifier: str) -> bytes:
    return hashed(Purpose.SHUFFLED, identifier)
