"""What a gate is, and what it judges: a trace, and what it was made from.

To add a gate, write a class like `Gate` in a module of its own and name it in `augment.selection.gates`.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from functools import cached_property, lru_cache

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.quotations import without_code, without_quotations
from augment.selection.word_runs import Runs, runs_of_words
from augment.selection.words import UNSPACED_CHARACTER, words_of
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
    """A trace with what its generator was given. What several gates ask of it is found out once.

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

    @cached_property
    def without_code(self) -> str:
        """The trace with its code left out, as `quotations.without_code` has it."""
        return without_code(self.trace.text)

    @cached_property
    def without_quotations(self) -> str:
        """The trace with what it quotes and its code left out, as `quotations.without_quotations` has it."""
        return without_quotations(self.trace.text)

    @cached_property
    def own_words(self) -> Words:
        """The words that the trace says itself, in no quotation and no code."""
        return self.words if self.without_quotations == self.trace.text else Words(self.without_quotations)

    @property
    def source_words(self) -> Words:
        """The words of the segment."""
        return source_words(self.source_text)


class Words:
    """The words of a text, in the forms that gates compare."""

    def __init__(self, text: str) -> None:
        self.list = words_of(text)
        self._numbers: dict[int, np.ndarray] = {}
        self._known: dict[int, np.ndarray] = {}

    @cached_property
    def line(self) -> str:
        """The words with one space before, between and after them, to search."""
        return f" {' '.join(self.list)} "

    @cached_property
    def is_unspaced(self) -> bool:
        """Whether most are of a script without spaces, where each character is one; Latin code counts little."""
        unspaced = sum(bool(UNSPACED_CHARACTER.match(word)) for word in self.list if len(word) == 1)
        return 2 * unspaced > len(self.list)

    @cached_property
    def runs(self) -> Runs:
        """The words as runs, to count what two texts have in common."""
        return runs_of_words(self.list)

    def numbers(self, size_halves: int) -> np.ndarray:
        """The numbers of their runs of a size, in the order of the text: (num_runs,) uint64."""
        if size_halves not in self._numbers:
            self._numbers[size_halves] = self.runs.numbers(size_halves)
        return self._numbers[size_halves]

    def known(self, size_halves: int) -> np.ndarray:
        """The same in ascending order, for other texts' numbers to be looked up by `word_runs.among`."""
        if size_halves not in self._known:
            self._known[size_halves] = np.sort(self.numbers(size_halves))
        return self._known[size_halves]


@lru_cache(maxsize=4)
def source_words(source_text: str) -> Words:
    """The candidates of a segment come one after the other."""
    return Words(source_text)
