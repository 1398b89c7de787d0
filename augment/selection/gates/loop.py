"""The gate against traces that run in a loop, wherever in the trace the loop is and however long its period.

Two measures, each over windows, so that good text before or after a loop doesn't hide it. Repeated word n-grams catch
loops of phrases and paragraphs; markup and punctuation don't count, or every table border would be a loop. The
compression ratio catches what is no words: runs of characters, of digits, of the same line. A matrix is left out
first: sixteen rows of zeros and ones repeat themselves, and are none.

The thresholds lie between what was measured (windows of 8,000-character texts): 1,321 modules of Python's library have
repeated shares up to 0.42 and ratios from 0.15, its documentation up to 0.20 and from 0.16; loops have shares from 0.45
up and, where they fill a window, ratios below 0.09.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject, Words
from augment.selection.gates.matrices import without_matrices
from augment.selection.word_runs import HALVES
from augment.selection.words import words_as_they_are
from sharding.config import STRICT

_NGRAM = 8
_WINDOWS_WORDS = (128, 256, 1024)
_MIN_WORDS = 4 * _NGRAM
_WINDOW_BYTES = 2000
_MIN_BYTES = 300

_MULTIPLIER = 0x9E3779B97F4A7C15
"""Of the polynomial over an n-gram's words, modulo 2^64."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Loop(Gate):
    """Traces that repeat themselves: that the engine found looping, or that repeat or compress too much."""

    max_repeated_share: float = Field(
        default=0.45, gt=0, le=1, description="Largest share of word 8-grams seen before within a window; 1: any."
    )
    min_compression_ratio: float = Field(
        default=0.1, ge=0, lt=1, description="Least size of a window when compressed, as a share; 0: any."
    )

    def objects(self, subject: Subject) -> bool:
        if subject.trace.finish_reason == "repetition":
            return True
        plain = _is_plain(subject.trace.text)
        text = without_matrices(
            subject.trace.text, subject.words.list if plain else words_as_they_are(subject.trace.text)
        )
        # A text has thousands of windows: the first that is too much is enough.
        if not (plain and text == subject.trace.text and _repeats_nothing(subject.words)) and any(
            share > self.max_repeated_share for share in repeated_shares(words_as_they_are(text))
        ):
            return True
        return any(ratio < self.min_compression_ratio for ratio in compression_ratios(text))


def _is_plain(text: str) -> bool:
    """Whether a text's words as they are and those that gates compare are the same but for their case."""
    return text.isascii() and "_" not in text


def _repeats_nothing(words: Words) -> bool:
    """Whether no n-gram occurs twice, whatever the case: by the numbers of runs, which other gates look at too."""
    known = words.known(HALVES * _NGRAM)
    return not bool((known[1:] == known[:-1]).any())


def repeated_shares(words: Sequence[str]) -> Iterator[float]:
    """The share of word 8-grams that occurred before in the same window, for every window of any size; 0 to 1."""
    if len(words) < _MIN_WORDS:
        return
    before = _seen_before(words)
    if before is None:
        yield 0.0
        return
    for size in _WINDOWS_WORDS:
        for begin, end in _windows(len(words), size):
            in_window = before[begin : end - _NGRAM + 1]
            yield np.count_nonzero(in_window >= begin) / len(in_window)
        if size >= len(words):
            return  # the larger ones are this one again


def compression_ratios(text: str) -> Iterator[float]:
    """Compressed by uncompressed size of every window; none of texts too short to tell."""
    data = text.encode("utf-8", errors="surrogatepass")
    if len(data) >= _MIN_BYTES:
        for begin, end in _windows(len(data), _WINDOW_BYTES):
            yield len(zlib.compress(data[begin:end])) / (end - begin)


def _seen_before(words: Sequence[str]) -> np.ndarray | None:
    """Where each n-gram stood the last time before, -1 for the first time: (num_ngrams,) int64; None where none did."""
    known: dict[str, int] = {}
    ids = np.array([known.setdefault(word, len(known)) for word in words], np.uint64)
    num_ngrams = len(words) - _NGRAM + 1
    ngrams = np.zeros(num_ngrams, np.uint64)
    for at in range(_NGRAM):
        ngrams = ngrams * np.uint64(_MULTIPLIER) + ids[at : at + num_ngrams]
    order = np.argsort(ngrams, kind="stable")
    in_order = ngrams[order]
    again = np.flatnonzero(in_order[1:] == in_order[:-1])
    if not len(again):
        return None
    before = np.full(num_ngrams, -1)
    before[order[again + 1]] = order[again]
    return before


def _windows(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of windows that overlap by half, the last one at the end; all of it where it is shorter."""
    for begin in range(0, length - size, size // 2):
        yield begin, begin + size
    yield max(0, length - size), length
