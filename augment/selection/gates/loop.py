"""The gate against traces that run in a loop, wherever in the trace the loop is and however long its period.

Two measures, each over windows, so that good text before or after a loop doesn't hide it. Repeated word n-grams catch
loops of phrases and paragraphs; markup and punctuation don't count, or every table border would be a loop. The
compression ratio catches what is no words: runs of characters, of digits, of the same line.

The thresholds lie between what was measured (windows of 8,000-character texts): 1,321 modules of Python's library have
repeated shares up to 0.42 and ratios from 0.15, its documentation up to 0.20 and from 0.16; loops have shares from 0.45
up and, where they fill a window, ratios below 0.09.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from augment.selection.words import WORD
from sharding.config import STRICT

_NGRAM = 8
_WINDOWS_WORDS = (128, 256, 1024)
_MIN_WORDS = 4 * _NGRAM
_WINDOW_BYTES = 2000
_MIN_BYTES = 300

S = TypeVar("S", bound=Sequence[object])


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
        if repeated_share(subject.trace.text) > self.max_repeated_share:
            return True
        return compression_ratio(subject.trace.text) < self.min_compression_ratio


def repeated_share(text: str) -> float:
    """The share of word 8-grams that occurred before in the same window, in the worst window of any size; 0 to 1."""
    words = WORD.findall(text)
    if len(words) < _MIN_WORDS:
        return 0.0
    return max(_share(window) for size in _WINDOWS_WORDS for window in _windows(words, size))


def compression_ratio(text: str) -> float:
    """Compressed by uncompressed size of the window that compresses best; 1 for texts too short to tell."""
    data = text.encode("utf-8", errors="surrogatepass")
    if len(data) < _MIN_BYTES:
        return 1.0
    return min(len(zlib.compress(window)) / len(window) for window in _windows(data, _WINDOW_BYTES))


def _share(words: Sequence[str]) -> float:
    ngrams = [tuple(words[at : at + _NGRAM]) for at in range(len(words) - _NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams)


def _windows(items: S, size: int) -> Iterator[S]:
    """Windows that overlap by half, the last one at the end; all of it where it is shorter."""
    if len(items) <= size:
        yield items
        return
    for at in range(0, len(items) - size, size // 2):
        yield items[at : at + size]  # type: ignore[misc]
    yield items[-size:]  # type: ignore[misc]
