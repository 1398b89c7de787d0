"""The gate against traces that are mostly a copy of the segment: the document holds it already.

A word is copied when it lies in a run of eight words that stands in the segment too. Quoting a few lines to talk about
them is what a good trace does, so only the share of the whole counts.

Measured: pages of Python's documentation against each other have shares up to 0.06; small models' traces that explain
the segment up to 0.3, quotations included, and those that run on with the segment from 0.5 up.
"""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from augment.selection.word_runs import HALVES, among
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Verbatim(Gate):
    """Traces most of which stand in the segment word for word."""

    max_copied_share: float = Field(
        default=0.5, ge=0, le=1, description="Largest share of the trace that is copied from the segment; 1: any."
    )
    run_words: int = Field(
        default=8,
        gt=1,
        description="So many words in a row are a copy; in scripts without spaces twice as many characters.",
    )

    def objects(self, subject: Subject) -> bool:
        size_halves = HALVES * self.run_words
        found = among(subject.words.numbers(size_halves), subject.source_words.known(size_halves))
        return subject.words.runs.share_of(found, size_halves) > self.max_copied_share
