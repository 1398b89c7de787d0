"""What a gate judges: a trace, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from augment.selection.word_runs import Runs, runs_of_words
from augment.selection.words import words_of
from augment.traces import Trace


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trace with what its generator was given.

    Attributes:
        trace: the trace.
        source_text: the segment it is about, as much of it as the prompt showed.
        prompt: name or path of the prompt template, for `augment.requests.prompts.load_template`.
    """

    trace: Trace
    source_text: str
    prompt: str

    @cached_property
    def words(self) -> Words:
        """The words of the trace."""
        return Words(self.trace.text)

    @property
    def source_words(self) -> Words:
        """The words of the segment."""
        return _source_words(self.source_text)


class Words:
    """The words of a text, in the forms that gates compare."""

    def __init__(self, text: str) -> None:
        self._words = words_of(text)

    @cached_property
    def line(self) -> str:
        """The words with one space before, between and after them, to search."""
        return f" {' '.join(self._words)} "

    @cached_property
    def runs(self) -> Runs:
        """The words as runs, to count what two texts have in common."""
        return runs_of_words(self._words)


@lru_cache(maxsize=4)
def _source_words(source_text: str) -> Words:
    """The candidates of a segment come one after the other."""
    return Words(source_text)
