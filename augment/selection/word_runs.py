"""Runs of words as 64-bit numbers: what the gates and decontamination compare texts by.

A run's size counts in half words, since a character of a script without spaces says about half of what a word says:
13 words are 13 words of English, or 26 characters of Japanese. The number of a run depends on its words alone, is the
same in every process, and two different runs share one with a probability near 2^-64.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from augment.selection.words import UNSPACED_CHARACTER, words_of
from sharding.hashing import text_hash

HALVES = 2
"""Half words in a word; a character of a script without spaces is one half."""

_MULTIPLIER = 0x9E3779B97F4A7C15
"""Of the polynomial over the words' hashes, modulo 2^64: odd, so that it has an inverse."""

PIECE_CHARACTERS = 1 << 20
"""`blocks_of` works on pieces of about this size, which bounds its memory: about 100 bytes a character."""

_MAX_KNOWN = 1 << 18
_MAX_KNOWN_CHARACTERS = 40
"""Words whose hashes are remembered, about 40 MB: so many, and none that is longer than words are."""

_CUT = re.compile(r"\s|[\u4e00-\u9fff]")
"""Where a text may be cut without tearing a word: a Chinese character is one, and combines with nothing before it."""


class _HashOfWord(dict[str, int]):
    """64 bits for every word, the last of which tells characters of scripts without spaces from words."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_KNOWN:
            self.clear()
        bits = int.from_bytes(text_hash(word), "little")
        bits = bits | 1 if UNSPACED_CHARACTER.match(word) else bits & ~1
        if len(word) <= _MAX_KNOWN_CHARACTERS:
            self[word] = bits
        return bits


_hash_of_word = _HashOfWord()


@dataclass(frozen=True, eq=False)
class Runs:
    """The words of a text, ready for every run of them to get its number.

    Attributes:
        ends: (num_words + 1,) int64, half words up to each word and, last, in all.
        sums: (num_words + 1,) uint64, the polynomial over the words' hashes up to each word.
    """

    ends: np.ndarray
    sums: np.ndarray

    @property
    def size_halves(self) -> int:
        return int(self.ends[-1])

    def spans(self, size_halves: int) -> tuple[np.ndarray, np.ndarray]:
        """The shortest runs of at least this size from every word on: first words and ends, (num_runs,) int64 each."""
        num_words = len(self.ends) - 1
        if self.size_halves == HALVES * num_words:
            size = -(-size_halves // HALVES)
            starts = np.arange(max(0, num_words - size + 1))
            return starts, starts + size
        reach = np.searchsorted(self.ends, self.ends[:-1] + size_halves)
        starts = np.flatnonzero(reach <= num_words)
        return starts, reach[starts]

    def numbers(self, size_halves: int) -> np.ndarray:
        """The numbers of those runs, (num_runs,) uint64."""
        starts, ends = self.spans(size_halves)
        return (self.sums[ends] - self.sums[starts]) * _powers(-1, _capacity(len(self.sums)))[starts]

    def covered(self, found: np.ndarray, size_halves: int) -> np.ndarray:
        """Whether each word lies in a run that was found, (num_words,) bool.

        Args:
            found: (num_runs,) bool, of the runs of this size as `numbers` has them.
        """
        starts, ends = self.spans(size_halves)
        depth = np.zeros(len(self.ends), np.int64)
        np.add.at(depth, starts[found], 1)
        np.add.at(depth, ends[found], -1)
        return np.cumsum(depth[:-1]) > 0

    def share_of(self, found: np.ndarray, size_halves: int) -> float:
        """The share of the text that lies in runs that were found, as `covered` has them; 0 to 1."""
        if not found.any():
            return 0.0
        covered = self.covered(found, size_halves)
        return float(np.diff(self.ends)[covered].sum() / self.size_halves)


def among(numbers: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each number is a known one: `np.isin` for the few numbers of a trace, at a tenth of its price.

    Args:
        numbers: (num_numbers,) uint64, of runs.
        known: (num_known,) uint64 in ascending order.

    Returns:
        (num_numbers,) bool.
    """
    if not len(known):
        return np.zeros(len(numbers), bool)
    return known.take(np.searchsorted(known, numbers), mode="clip") == numbers


def runs_of(text: str) -> Runs:
    """The words of a text, case and punctuation aside, as runs."""
    return runs_of_words(words_of(text))


def runs_of_words(words: Sequence[str]) -> Runs:
    """Words from `words_of` as runs."""
    return _runs(_hashes_of(words))


def blocks_of(text: str, max_words: int) -> Iterator[Runs]:
    """The words of a text in blocks of a bounded size, such that every run of at most `max_words` is in one."""
    before = np.empty(0, np.uint64)
    for piece in _pieces(text):
        hashes = np.concatenate([before, _hashes_of(words_of(piece))])
        yield _runs(hashes)
        before = hashes[-max_words:]


def _pieces(text: str) -> Iterator[str]:
    """The text cut at white space or before a Chinese character; a piece that has neither is as long as it is."""
    begin = 0
    while begin < len(text):
        cut = _CUT.search(text, begin + PIECE_CHARACTERS)
        end = cut.start() if cut else len(text)
        yield text[begin:end]
        begin = end


def _hashes_of(words: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_hash_of_word.__getitem__, words), np.uint64, len(words))


def _runs(hashes: np.ndarray) -> Runs:
    ends = np.zeros(len(hashes) + 1, np.int64)
    np.cumsum(HALVES - (hashes & np.uint64(1)).astype(np.int64), out=ends[1:])
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(1, _capacity(len(sums)))[: len(hashes)], out=sums[1:])
    return Runs(ends=ends, sums=sums)


def _capacity(size: int) -> int:
    return 1 << max(12, (size - 1).bit_length())


@cache
def _powers(sign: int, count: int) -> np.ndarray:
    """The multiplier to the powers 0, sign, 2 sign, ... modulo 2^64: (count,) uint64."""
    factors = np.full(count, pow(_MULTIPLIER, sign, 1 << 64), np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
