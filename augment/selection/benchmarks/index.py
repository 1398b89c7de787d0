"""Decontamination: which benchmarks does a text overlap with?

The select stage asks about every document and every trace. The benchmarks' texts are kept as the 64-bit numbers of
their runs of 13 words (the size of GPT-3's filter, arXiv 2005.14165, appendix C), sorted: 8 bytes a run, 2 for whose it
is, and 2 to 4 for a filter that answers most look-ups with one bit. A text that is too short for a run of that size is
looked for as a whole if it has 8 words. Lists of numbers and licences are not looked for (`telling`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from augment.selection.benchmarks.files import digest_of, read_benchmarks
from augment.selection.benchmarks.telling import telling_runs
from augment.selection.word_runs import HALVES, blocks_of
from sharding.config import STRICT

__all__ = ["BenchmarkIndex", "DecontaminationConfig", "index_digest", "load_index"]

_FILTER_BITS = 16
"""Bits of the filter per run, at least: it lets at most 1 in so many of the runs through that are not there."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecontaminationConfig:
    """Benchmarks that documents and traces must not overlap with."""

    paths: tuple[str, ...] = Field(
        min_length=1,
        description="JSON-lines files of benchmarks (plain, .gz or .zst), or globs of them, in any fsspec store; a "
        "benchmark has its file's name.",
    )
    fields: tuple[str, ...] = Field(
        default=(), description="Fields that hold their texts, strings or lists of strings; none named: all that do."
    )
    ngram_words: int = Field(
        default=13,
        gt=1,
        description="So many words in a row in common are a hit; in scripts without spaces twice as many characters.",
    )
    min_words: int = Field(
        default=8, gt=0, description="Texts shorter than ngram_words are looked for as a whole from so many words on."
    )
    action: Literal["remove", "mark"] = Field(
        default="remove", description="Leave out what is hit, or keep it and say so in the parts and the card."
    )

    @model_validator(mode="after")
    def _min_words_within_ngram(self) -> DecontaminationConfig:
        if self.min_words > self.ngram_words:
            raise ValueError(f"min_words {self.min_words} is over ngram_words {self.ngram_words}")
        return self


class BenchmarkIndex:
    """The runs of words of benchmarks.

    Args:
        texts: (benchmark, record, text) of every text; records of a benchmark have different numbers.
        ngram_words, min_words: see `DecontaminationConfig`.
    """

    def __init__(self, texts: Iterable[tuple[str, int, str]], *, ngram_words: int = 13, min_words: int = 8) -> None:
        self._size_halves = HALVES * ngram_words
        builders: dict[str, _Builder] = {}
        for benchmark, record, text in texts:
            builder = builders.setdefault(benchmark, _Builder(self._size_halves, HALVES * min_words))
            builder.add(record, text)
        self._names = sorted(builders)
        numbers = [builders[name].numbers() for name in self._names]
        self._counts = {
            name: {**builders[name].counts(), "ngrams": len(own)}
            for name, own in zip(self._names, numbers, strict=True)
        }
        self._sizes_halves = sorted(set().union(*(builder.sizes_halves for builder in builders.values())))
        owners = np.repeat(np.arange(len(self._names), dtype=np.uint16), [len(own) for own in numbers])
        joined = np.concatenate([np.empty(0, np.uint64), *numbers])
        order = np.argsort(joined, kind="stable")
        self._numbers, self._owners = joined[order], owners[order]
        self._filter = _Filter(self._numbers)

    def hits(self, text: str) -> list[str]:
        """The names of the benchmarks that the text overlaps with, sorted."""
        found: set[int] = set()
        for runs in blocks_of(text, self._size_halves):
            for size_halves in self._sizes_halves:
                maybe = self._filter.maybe(runs.numbers(size_halves))
                first = np.searchsorted(self._numbers, maybe, side="left")
                last = np.searchsorted(self._numbers, maybe, side="right")
                for begin, end in zip(first[first < last], last[first < last], strict=True):
                    found.update(self._owners[begin:end].tolist())
        return [self._names[owner] for owner in sorted(found)]

    def describe(self) -> dict[str, dict[str, int]]:
        """For every benchmark `records`, `texts`, `ngrams` (different ones) and `too_short` (texts
        that are not looked for, since they are short or tell nothing)."""
        return {name: dict(counts) for name, counts in self._counts.items()}

    @property
    def size_bytes(self) -> int:
        """What the index holds in memory."""
        return self._numbers.nbytes + self._owners.nbytes + self._filter.size_bytes


def index_digest(config: DecontaminationConfig) -> str:
    """A digest of the benchmarks' names and contents, for the fingerprint of a stage that looks for them.

    Raises:
        RequestError, MillError: as `load_index`, for files.
    """
    return digest_of(config.paths)


_loading = threading.Lock()


def load_index(config: DecontaminationConfig) -> BenchmarkIndex:
    """The index of the benchmarks of a config, read once per process.

    Raises:
        RequestError: a file is missing or none of its records has a text; names `select.decontaminate`, file and line.
        MillError: a file can't be read to its end.
    """
    with _loading:
        return _load_index(config)


@lru_cache(maxsize=1)
def _load_index(config: DecontaminationConfig) -> BenchmarkIndex:
    texts = read_benchmarks(config.paths, config.fields)
    return BenchmarkIndex(texts, ngram_words=config.ngram_words, min_words=config.min_words)


class _Builder:
    """Gathers the numbers of one benchmark."""

    def __init__(self, size_halves: int, min_halves: int) -> None:
        self.sizes_halves: set[int] = set()
        self._size_halves, self._min_halves = size_halves, min_halves
        self._found: list[np.ndarray] = []
        self._records: set[int] = set()
        self._texts = self._too_short = 0

    def add(self, record: int, text: str) -> None:
        self._records.add(record)
        self._texts += 1
        found = telling_runs(text, self._size_halves, self._min_halves)
        self._too_short += not found
        self.sizes_halves.update(found)
        self._found += found.values()

    def numbers(self) -> np.ndarray:
        return np.unique(np.concatenate([np.empty(0, np.uint64), *self._found]))

    def counts(self) -> dict[str, int]:
        return {"records": len(self._records), "texts": self._texts, "too_short": self._too_short}


class _Filter:
    """A bit for each of the values that the leading bits of a number can have: whether a known number begins so."""

    def __init__(self, numbers: np.ndarray) -> None:
        bits = max(6, (len(numbers) * _FILTER_BITS - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._bits = np.zeros(1 << (bits - 3), np.uint8)
        places = numbers >> self._shift
        np.bitwise_or.at(self._bits, places >> np.uint64(3), _bit(places))

    def maybe(self, numbers: np.ndarray) -> np.ndarray:
        """Those that may be known: all that are, few that aren't."""
        places = numbers >> self._shift
        return numbers[(self._bits[places >> np.uint64(3)] & _bit(places)) != 0]

    @property
    def size_bytes(self) -> int:
        return self._bits.nbytes


def _bit(places: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))
