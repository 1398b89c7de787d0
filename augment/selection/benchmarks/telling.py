"""What of a benchmark's text is looked for: its words as a document may have them, and the runs that tell it.

GSM8K's answers have marks for a calculator, `48/2=<<48/2=24>>24`, and end in a line like `#### 72`; whoever repeats
them may have left these out, so each text is looked for with and without. A run tells nothing that is mostly numbers
and single letters, "0 1 2 3 4 5 6 7 8 9 10 11 12", or the words of a licence (`boilerplate.txt`): documents have those
without having seen any benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np

from augment.selection.word_runs import HALVES, Runs, among, runs_of, runs_of_words
from augment.selection.words import words_of

_BOILERPLATE_HALVES = 6 * HALVES
_MIN_TELLING = 1 / 3
"""Share of a run that must tell: 5 words of 13. Arithmetic in prose has more, tables and lists have fewer."""

_LEAST_TELLING_HALVES = 3 * HALVES
"""Of a text with no such run the best ones are looked for, if so much of them tells."""

_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_RESULT = re.compile(r"\n#### [^\n]*\Z")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def telling_runs(text: str, size_halves: int, min_halves: int) -> dict[int, np.ndarray]:
    """The numbers of the runs to look for, by the runs' size in half words; nothing where none tells.

    Args:
        size_halves: of runs.
        min_halves: texts shorter than a run are one run from this size on.
    """
    found: dict[int, np.ndarray] = {}
    for written in _written(text):
        words = words_of(written)
        runs = runs_of_words(words)
        size = min(size_halves, runs.size_halves)
        if size < min_halves:
            continue
        starts, ends = runs.spans(size)
        up_to = _telling_halves(words, runs)
        telling = up_to[ends] - up_to[starts]
        if telling.max() >= min(_LEAST_TELLING_HALVES, size):
            tell = telling >= min(_MIN_TELLING * size, telling.max())
            found[size] = np.append(found.get(size, np.empty(0, np.uint64)), runs.numbers(size)[tell])
    return found


def _written(text: str) -> list[str]:
    """The text as it is and as it may be written elsewhere."""
    bare = _CALCULATION.sub("", text)
    return list(dict.fromkeys((text, bare, _RESULT.sub("", bare), _THOUSANDS.sub("", bare))))


def _telling_halves(words: Sequence[str], runs: Runs) -> np.ndarray:
    """Half words that tell, up to each word and, last, in all: (num_words + 1,) int64."""
    tells = np.fromiter((_tells(word) for word in words), bool, len(words))
    tells &= ~runs.covered(among(runs.numbers(_BOILERPLATE_HALVES), _boilerplate()), _BOILERPLATE_HALVES)
    up_to = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.diff(runs.ends) * tells, out=up_to[1:])
    return up_to


def _tells(word: str) -> bool:
    return not word[0].isdigit() and (len(word) > 1 or not word.isascii())


@cache
def _boilerplate() -> np.ndarray:
    text = resources.files("augment.selection.benchmarks").joinpath("boilerplate.txt").read_text(encoding="utf-8")
    return np.unique(np.concatenate([runs_of(part).numbers(_BOILERPLATE_HALVES) for part in text.split("\n\n")]))
