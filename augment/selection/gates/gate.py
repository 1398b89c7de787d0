"""What a gate is, and what it judges: a trace, and what it was made from.

To add a gate, write a class like `Gate` in a module of its own and name it in `augment.selection.gates`.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from functools import cached_property, lru_cache

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.word_runs import Runs, runs_of_words
from augment.selection.words import words_of
from augment.traces import Trace
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Gate:
    """One reason to reject a trace, and its section of the config: the thresholds are its fields."""

    enabled: bool = Field(default=True, description="Whether the gate is applied.")

    def objects(self, subject: Subject) -> bool:
        """Whether the trace is to be rejected; depends on the thresholds and the subject alone."""
        raise NotImplementedError


@plain_dataclass(frozen=True, kw_only=True)
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
