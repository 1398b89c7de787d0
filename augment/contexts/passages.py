"""Passages: a corpus in pieces that a prompt has room for, and which of them say the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from augment.requests.tiers import PASSAGE_CHARACTERS
from sharding.hashing import fingerprint

RUN_WORDS = 5
"""As for near-copies of documents: see `sharding.minhash`."""

SAME_SHARE = 0.5
"""A passage of whose runs of words so many are in another text too says nothing that the other doesn't."""

_LONGEST_WORD = 64
_DIGITS = 4
"""Of a score, so that what the last bits of a sum say orders nothing."""

_ENDS = ("\n\n", "\n", ". ", " ")
"""Where a passage may end, the best first."""


class Passage(NamedTuple):
    """A piece of a document.

    Attributes:
        doc_id: of its document.
        number: its place among the document's passages.
        text: at most `PASSAGE_CHARACTERS` of it, without space around.
    """

    doc_id: str
    number: int
    text: str


def passages_of(doc_id: str, text: str) -> Iterator[Passage]:
    """A document as passages: each as long as there is room for, at least half of that, ended where the text does."""
    start, number = 0, 0
    while start < len(text):
        end = start + PASSAGE_CHARACTERS
        if end < len(text):
            least = start + PASSAGE_CHARACTERS // 2
            places = (
                place + len(mark) for mark in _ENDS if (place := text.rfind(mark, least, end - len(mark) + 1)) >= 0
            )
            end = next(places, end)
        if piece := text[start:end].strip():
            yield Passage(doc_id, number, piece)
            number += 1
        start = end


def runs_of(words: Sequence[str]) -> frozenset[str]:
    """The runs of `RUN_WORDS` words of a text; of a shorter one, all of it."""
    last = max(0, len(words) - RUN_WORDS)
    return frozenset(" ".join(words[start : start + RUN_WORDS]) for start in range(last + 1))


def says_the_same(runs: frozenset[str], other: frozenset[str]) -> bool:
    """Whether a passage says what another text says too, by the runs of both."""
    return len(runs & other) >= SAME_SHARE * len(runs)


def terms_of(words: Iterable[str]) -> list[str]:
    """Words as every index has them."""
    return [word[:_LONGEST_WORD] for word in words]


def document_term(doc_id: str) -> str:
    """What a document's passages are left out by, whatever its id looks like."""
    return fingerprint([doc_id], 8)


def rounded(score: float) -> float:
    """A score as passages are ordered by it."""
    return float(f"{score:.{_DIGITS}g}")
