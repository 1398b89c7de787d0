"""Counting the n-grams of a corpus in one pass, in bounded memory, in any order: the first half of the n-gram memory.

`NgramCounts` holds those of some documents; they meet by ranges of their hashes, so that what is merged in one place is
small. `difficulty.memory` makes the counts into a table to look up.

Size is bounded by counting a sample of the documents, never by letting n-grams share a counter: a full table would
otherwise remember what it never saw. Each document has a level from a hash of its id (half of them 0, a quarter 1,
...); when the n-grams exceed `max_ngrams`, the lowest level's documents are dropped whole. The lowest level that fits
depends on the corpus alone, so the counts do too; and what recurs in enough documents recurs in the sample.

Each document counted is itself one more entry among the n-grams, under a hash of all its tokens: whoever looks a
document up later can tell whether it was counted, whatever id it has there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.hashing import Purpose, hashed

NUM_LEVELS = 64
LEVEL_BITS = np.uint64(6)
LEVEL_MASK = np.uint64(NUM_LEVELS - 1)
HASH_MASK = ~LEVEL_MASK
"""A key is a 64-bit hash of an n-gram whose low bits hold a level instead."""

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX13 = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))
MIX13_LAST_SHIFT = np.uint64(31)
"""SplitMix64's increment and finalizer: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014."""

MAX_COUNT = np.uint64((1 << 32) - 1)
BUFFERED_TOKENS = 1 << 20
RANGE_NGRAMS = 1 << 17
"""N-grams sorted at once when runs are merged: what fits a core's cache."""

MAX_RANGES = 64
NGRAMS_PER_RANGE = 1 << 18
"""A range's share of `max_ngrams`, at least: hashes are spread so evenly over it that a quarter more is never met where
all of them still fit."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MemoryConfig:
    """The n-gram memory: how far it looks back and how large it may get."""

    order: int = Field(default=4, ge=2, le=8, description="Longest n-gram, in tokens.")
    max_ngrams: int = Field(
        default=1 << 24,
        ge=1 << 8,
        le=1 << 30,
        description="N-grams held while counting, at 12 bytes each; documents are sampled to stay below.",
    )
    min_elsewhere: int = Field(
        default=2,
        ge=1,
        description="Occurrences in other documents of the sample below which an n-gram is not remembered.",
    )
    prior_count: float = Field(
        default=4.0, gt=0, description="Occurrences that the prediction from the shorter context weighs as much as."
    )


def document_level(doc_id: str) -> int:
    """The sampling level of a document: l with probability 2^-(l + 1), from a hash of its id."""
    return min(64 - int.from_bytes(hashed(Purpose.NGRAM_SAMPLE, doc_id)).bit_length(), NUM_LEVELS - 1)


def starting_level(config: MemoryConfig, corpus_tokens: float) -> int:
    """A level to start counting at in a corpus of about `corpus_tokens` tokens, so that documents that would be dropped
    in the end are not counted and shuffled first: the highest from which on the documents hold `max_ngrams` tokens.

    Take `corpus_tokens` from the listing of the source, so that all counts that are merged start at the same level.
    """
    return max(0, min(NUM_LEVELS - 1, math.floor(math.log2(max(corpus_tokens, 1) / config.max_ngrams))))


def document_key(input_ids: np.ndarray) -> int:
    """What a whole document is counted under: a hash of its (num_tokens,) token ids in the place of an n-gram's."""
    return int.from_bytes(hashed(Purpose.NGRAM_DOCUMENT, np.asarray(input_ids, "<u4").tobytes())) & int(HASH_MASK)


class NgramCounts:
    """N-gram counts of some documents; those of others are added in any order, with the same outcome.

    Holds at most 1.25 `max_ngrams` n-grams (twice that while runs are merged) and a buffer of a million tokens.

    Args:
        config: order and sizes; equal for all counts that are merged.
        min_level: documents below this level are not counted; see `starting_level`.
    """

    def __init__(self, config: MemoryConfig, min_level: int = 0) -> None:
        self.config, self.level = config, min_level
        self._documents = np.zeros(NUM_LEVELS, np.int64)
        self._tokens = np.zeros(NUM_LEVELS, np.int64)
        self._buffer: list[tuple[int, np.ndarray]] = []
        self._buffered_tokens = 0
        # Sorted distinct keys (hash, then level in the low bits) and their counts; the first run is the compacted one.
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._compacted = 0

    def add(self, doc_id: str, input_ids: np.ndarray) -> None:
        """Counts one document; each is added once in the whole corpus.

        Args:
            doc_id: the document's id, which also decides whether it is in the sample.
            input_ids: (num_tokens,) token ids of the whole document.
        """
        level = document_level(doc_id)
        self._documents[level] += 1
        self._tokens[level] += len(input_ids)
        if level < self.level or not len(input_ids):
            return
        self._buffer.append((level, np.array(input_ids, np.uint32)))
        self._buffered_tokens += len(input_ids)
        self._compact_if_due()

    def add_many(self, documents: Iterable[tuple[str, np.ndarray]]) -> None:
        """Counts (doc_id, input_ids) pairs."""
        for doc_id, input_ids in documents:
            self.add(doc_id, input_ids)

    def ngrams(self, min_count: int) -> tuple[np.ndarray, np.ndarray]:
        """The n-grams with at least `min_count` occurrences in the sample, and the documents in it: ascending hashes,
        (num_ngrams,) uint64 with the low `LEVEL_BITS` zero, and their counts, (num_ngrams,) uint32. A document's is at
        least `min_elsewhere`."""
        self._compact()
        if not self._compacted:
            return np.empty(0, np.uint64), np.empty(0, np.uint32)
        keys, counts = self._runs[0]
        hashes = keys & HASH_MASK  # the levels of one n-gram stand side by side
        starts = run_starts(hashes)
        hashes, counts = hashes[starts], _summed(counts, starts)
        enough = counts >= min_count
        return hashes[enough], counts[enough]

    def to_json(self) -> dict[str, Any]:
        """What was counted: the config, the level reached, documents and tokens in the corpus and in the sample."""
        self._compact()
        return {
            "config": dataclasses.asdict(self.config),
            "level": self.level,
            "documents": int(self._documents.sum()),
            "documents_counted": int(self._documents[self.level :].sum()),
            "tokens": int(self._tokens.sum()),
            "tokens_counted": int(self._tokens[self.level :].sum()),
        }

    def ranges(self) -> Iterator[tuple[int, bytes]]:
        """What was counted, dealt out by ranges of the hashes: (number of the range, what is in it), for `merge_range`.

        The numbers are those below `num_ranges`; the counts of documents and tokens go with the first.
        """
        self._compact()
        number = num_ranges(self.config)
        cuts = np.searchsorted(self._runs[0][0], _cuts(number)).tolist() if self._runs else [0] * (number - 1)
        for r, (begin, end) in enumerate(itertools.pairwise([0, *cuts, None])):
            yield r, self._piece(slice(begin, end), with_seen=r == 0)

    def piece(self) -> bytes:
        """All that was counted, for `add_piece`."""
        self._compact()
        return self._piece(slice(None), with_seen=True)

    def _piece(self, part: slice, *, with_seen: bool) -> bytes:
        seen = (self._documents.tolist(), self._tokens.tolist()) if with_seen else ([], [])
        held = tuple(array[part].tobytes() for array in self._runs[0]) if self._runs else (b"", b"")
        return msgspec.msgpack.encode((self.level, *seen, *held))

    def add_piece(self, piece: bytes) -> None:
        """Adds what `ranges`, `piece` or `merge_range` gave of other documents, counted under the same config."""
        level, documents, tokens, keys, counts = _decoder.decode(piece)
        if level > self.level:
            self.level, self._compacted = level, 0  # what is below it goes, also where nothing else comes
        if documents:
            self._documents += documents
            self._tokens += tokens
        if keys:
            self._runs.append((np.frombuffer(keys, np.uint64), np.frombuffer(counts, np.uint32)))
        self._compact_if_due()

    def _flush(self) -> None:
        """Turns the buffered documents into sorted runs, one per order and one of the documents themselves."""
        if not self._buffer:
            return
        lengths = np.array([len(ids) for _, ids in self._buffer])
        levels = np.repeat(np.array([level for level, _ in self._buffer], np.uint64), lengths)
        place = np.arange(len(levels)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = np.concatenate([ids for _, ids in self._buffer])
        documents = np.array([document_key(ids) | level for level, ids in self._buffer], np.uint64)
        self._buffer, self._buffered_tokens = [], 0
        keys = np.zeros(len(tokens) + 1, np.uint64)
        for n in range(1, self.config.order + 1):
            keys = extended_hashes(keys[:-1], tokens[n - 1 :])
            within_document = place[n - 1 :] >= n - 1
            tagged = (keys & HASH_MASK | levels[n - 1 :])[within_document]
            tagged.sort()
            starts = run_starts(tagged)
            self._runs.append((tagged[starts], np.diff(starts, append=len(tagged)).astype(np.uint32)))
        documents.sort()
        # As often as an n-gram has to be there to stay.
        self._runs.append((documents, np.full(len(documents), self.config.min_elsewhere, np.uint32)))

    def _compact_if_due(self) -> None:
        if self._buffered_tokens >= BUFFERED_TOKENS:
            self._flush()
        if sum(len(keys) for keys, _ in self._runs) - self._compacted > self.config.max_ngrams // 4:
            self._compact()

    def _compact(self) -> None:
        """Merges all runs into one and drops the lowest levels until it fits `max_ngrams`.

        With more documents a level's distinct n-grams only grow in number. So a level dropped here is dropped from the
        whole corpus, whatever the order of documents; and of a level that stays, nothing was ever dropped.
        """
        self._flush()
        if not self._runs or (len(self._runs) == 1 and self._compacted):
            return
        keys, counts, ngrams_per_level = _merged(self._runs, self.level)
        from_level = np.append(np.cumsum(ngrams_per_level[::-1])[::-1], 0)
        lowest_fitting = int(np.argmax(from_level <= self.config.max_ngrams))
        if lowest_fitting > self.level:
            self.level = lowest_fitting
            kept = (keys & LEVEL_MASK) >= lowest_fitting
            keys, counts = keys[kept], counts[kept]
        self._runs, self._compacted = [(keys, counts)], len(keys)


_decoder = msgspec.msgpack.Decoder(tuple[int, list[int], list[int], bytes, bytes])


def num_ranges(config: MemoryConfig) -> int:
    """How many ranges of hashes counts are dealt out to."""
    return min(MAX_RANGES, max(1, config.max_ngrams // NGRAMS_PER_RANGE))


def merge_range(config: MemoryConfig, pieces: Iterable[bytes]) -> bytes:
    """What `NgramCounts.ranges` gave of one range in all counts, as one; in any order."""
    number = num_ranges(config)
    share = config.max_ngrams if number == 1 else math.ceil(config.max_ngrams / number * 1.25)
    return join_ranges(dataclasses.replace(config, max_ngrams=share), pieces).piece()


def join_ranges(config: MemoryConfig, pieces: Iterable[bytes]) -> NgramCounts:
    """The counts of all documents, from what `merge_range` gave of each range."""
    counts = NgramCounts(config)
    for piece in pieces:
        counts.add_piece(piece)
    return counts


def _cuts(number: int) -> np.ndarray:
    """Where so many ranges of equal width meet, (number - 1,) uint64."""
    return np.arange(1, number, dtype=np.uint64) * np.uint64(((1 << 64) - 1) // number)


def extended_hashes(keys: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Hashes of n-grams from those of their first n - 1 tokens and their last token, (num_ngrams,) uint64."""
    mixed = tokens.astype(np.uint64)
    mixed += np.uint64(1)
    mixed *= GOLDEN_GAMMA
    mixed ^= keys
    for shift, factor in MIX13:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> MIX13_LAST_SHIFT
    return mixed


def run_starts(ascending: np.ndarray) -> np.ndarray:
    """Where runs of equal values start."""
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)])


def _summed(counts: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of counts from each start to the next, (num_starts,) uint32; what doesn't fit stays at the largest."""
    return np.minimum(np.add.reduceat(counts, starts, dtype=np.uint64), MAX_COUNT).astype(np.uint32)


def _merged(runs: list[tuple[np.ndarray, np.ndarray]], level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs as one, equal keys added up, without the levels below `level`, and how many of each level there are.

    Goes stretch by stretch of the keys, to stay in cache and to need no temporary arrays of full size.
    """
    total = sum(len(keys) for keys, _ in runs)
    stretches = total // RANGE_NGRAMS + 1
    cuts = _cuts(stretches)
    bounds = [[0, *np.searchsorted(keys, cuts).tolist(), len(keys)] for keys, _ in runs]
    merged_keys, merged_counts, end = np.empty(total, np.uint64), np.empty(total, np.uint32), 0
    ngrams_per_level = np.zeros(NUM_LEVELS, np.int64)
    for r in range(stretches):
        keys = np.concatenate([run[0][b[r] : b[r + 1]] for run, b in zip(runs, bounds, strict=True)])
        counts = np.concatenate([run[1][b[r] : b[r + 1]] for run, b in zip(runs, bounds, strict=True)])
        if level:
            kept = (keys & LEVEL_MASK) >= level
            keys, counts = keys[kept], counts[kept]
        if len(keys):
            order = np.argsort(keys, kind="stable")  # merges ascending stretches, several times as fast as sorting
            keys = keys[order]
            starts = run_starts(keys)
            distinct = keys[starts]
            ngrams_per_level += np.bincount((distinct & LEVEL_MASK).astype(np.int64), minlength=NUM_LEVELS)
            merged_keys[end : end + len(starts)] = distinct
            merged_counts[end : end + len(starts)] = _summed(counts[order], starts)
            end += len(starts)
    merged_keys.resize(end, refcheck=False)
    merged_counts.resize(end, refcheck=False)
    return merged_keys, merged_counts, ngrams_per_level
