"""The n-gram memory: which surprising tokens the corpus itself predicts, so that they need no thought.

One pass over the corpus counts the n-grams of every document (`NgramCounts`, the accumulator of a CombineFn: mergeable
in any order); `freeze` turns the counts into a compact hash table (`NgramMemory`), stored once beside the scores and
memory-mapped by every scoring worker. A token's difficulty is then min(surprisal of the LM, surprisal of the memory).

The estimate is the hierarchical Dirichlet model of MacKay & Peto, "A hierarchical Dirichlet language model", Natural
Language Engineering 1(3), 1995: with h the last n - 1 tokens, h' the last n - 2 and c the counts,

    p_n(w | h) = (c(hw) + a p_{n-1}(w | h')) / (c(h) + a),        p_0 = 2^-32 (uniform over all 32-bit ids)

It is proper (never sums above 1), and needs counts of occurrences only. Kneser-Ney and Witten-Bell also need numbers
of distinct continuations, which neither add up across workers nor allow a document to be left out by subtraction.

All counts leave out the document at hand: its own occurrences are subtracted. So a passage that occurs in no other
document is not remembered, however often it repeats within its own; of a passage that recurs elsewhere, every
occurrence elsewhere counts.

Size is bounded by counting a sample of the documents, never by letting n-grams share a counter: a full table would
otherwise remember what was never seen. Each document has a level from a hash of its id (half of them 0, a quarter 1,
...); when the n-grams exceed `max_ngrams`, the lowest level's documents are dropped whole. The lowest level that fits
depends on the corpus alone, so the result does too, and what recurs in enough documents recurs in the sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT

LEVEL_BITS = np.uint64(6)
LEVEL_MASK = np.uint64((1 << 6) - 1)
NUM_LEVELS = 64

FINGERPRINT_MASK = np.uint64((1 << 32) - 1)
HALF = np.uint64(32)
MAX_COUNT = (1 << 32) - 1

SLOTS_PER_NGRAM = 2
"""A table half full finds an n-gram in 1.5 slots and misses one in 2.5 (Knuth, TAOCP 3, 6.4, linear probing)."""

BASE_PROBABILITY = 2.0**-32
BUFFERED_TOKENS = 1 << 20
RANGE_NGRAMS = 1 << 17
"""N-grams sorted at once when runs are merged: what fits a core's cache."""

FORMAT = 1


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
    min_count: int = Field(
        default=2, ge=2, description="Occurrences below which an n-gram is not stored; 2 loses nothing."
    )
    prior_count: float = Field(
        default=4.0, gt=0, description="Occurrences that the prediction from the shorter context weighs as much as."
    )


def document_level(doc_id: str) -> int:
    """The sampling level of a document: l with probability 2^-(l + 1), from a hash of its id."""
    digest = hashlib.blake2b(doc_id.encode(errors="surrogatepass"), digest_size=8, person=b"ngram-memory")
    return min(64 - int.from_bytes(digest.digest(), "big").bit_length(), NUM_LEVELS - 1)


def starting_level(config: MemoryConfig, corpus_tokens: float) -> int:
    """The lowest level worth counting in a corpus of about `corpus_tokens`: the highest whose documents hold at least
    `max_ngrams` tokens. Saves the counting and shuffling of documents that would be dropped in the end; it must be the
    same for all counts that are merged, so take it from the listing of the source."""
    return max(0, min(NUM_LEVELS - 1, math.floor(math.log2(max(corpus_tokens, 1) / config.max_ngrams))))


class NgramCounts:
    """N-gram counts of some documents: a commutative monoid under `merge`.

    Holds at most 1.25 `max_ngrams` n-grams and a buffer of a million tokens. Pickles as sorted arrays of what is held,
    so an accumulator of a few documents is small.

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
        if self._buffered_tokens >= BUFFERED_TOKENS:
            self._flush()

    def add_many(self, documents: Iterable[tuple[str, np.ndarray]]) -> None:
        """Counts (doc_id, input_ids) pairs."""
        for doc_id, input_ids in documents:
            self.add(doc_id, input_ids)

    def merge(self, other: NgramCounts) -> NgramCounts:
        """The counts of both; neither is changed.

        Raises:
            ValueError: they were counted under different configs.
        """
        if other.config != self.config:
            raise ValueError(f"counts under {other.config} cannot be merged with counts under {self.config}")
        merged = NgramCounts(self.config, max(self.level, other.level))
        merged._documents = self._documents + other._documents
        merged._tokens = self._tokens + other._tokens
        merged._buffer = self._buffer + other._buffer
        merged._buffered_tokens = self._buffered_tokens + other._buffered_tokens
        merged._runs = self._runs + other._runs
        if merged._buffered_tokens >= BUFFERED_TOKENS:
            merged._flush()
        merged._compact_if_due()
        return merged

    def freeze(self) -> NgramMemory:
        """The table that gives surprisals. N-grams below `min_count` go: one that occurs once in the sample occurs in
        its own document alone, where it is left out anyway."""
        self._compact()
        keys, counts = self._runs[0] if self._runs else (np.empty(0, np.uint64), np.empty(0, np.uint32))
        if len(keys):
            hashes = keys & ~LEVEL_MASK
            starts = _starts(hashes)
            keys, counts = hashes[starts], _saturated(np.add.reduceat(counts, starts, dtype=np.uint64))
        kept = counts >= self.config.min_count
        keys, counts = keys[kept], counts[kept]
        home_slots = max(1, SLOTS_PER_NGRAM * len(keys))
        # Linear probing in the order of the keys: each takes the first free slot from its home on. No wrapping: the
        # table is as long as its last entry needs, and an empty slot ends it.
        index = np.arange(len(keys), dtype=np.int64)
        place = index + np.maximum.accumulate(_home(keys, home_slots) - index)
        slots = np.zeros(max(home_slots, int(place[-1]) + 1 if len(place) else 0) + 1, np.uint64)
        slots[place] = _fingerprint(keys) << HALF | counts
        description = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "level": self.level,
            "home_slots": home_slots,
            "ngrams": len(keys),
            "documents": int(self._documents.sum()),
            "documents_counted": int(self._documents[self.level :].sum()),
            "tokens": int(self._tokens.sum()),
            "tokens_counted": int(self._tokens[self.level :].sum()),
        }
        return NgramMemory(slots, description)

    def __getstate__(self) -> dict[str, Any]:
        self._compact()
        return self.__dict__.copy()

    def _flush(self) -> None:
        """Turns the buffered documents into sorted runs, one per order."""
        if not self._buffer:
            return
        lengths = np.array([len(ids) for _, ids in self._buffer])
        levels = np.repeat(np.array([level for level, _ in self._buffer], np.uint64), lengths)
        place = np.arange(len(levels)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = np.concatenate([ids for _, ids in self._buffer])
        self._buffer, self._buffered_tokens = [], 0
        keys = np.zeros(len(tokens), np.uint64)
        for n in range(1, self.config.order + 1):
            keys = _extended(keys if n == 1 else keys[:-1], tokens[n - 1 :])
            within_document = place[n - 1 :] >= n - 1
            tagged = ((keys & ~LEVEL_MASK) | levels[n - 1 :])[within_document]
            tagged.sort()
            starts = _starts(tagged)
            self._runs.append((tagged[starts], np.diff(starts, append=len(tagged)).astype(np.uint32)))
        self._compact_if_due()

    def _compact_if_due(self) -> None:
        if sum(len(keys) for keys, _ in self._runs) - self._compacted > self.config.max_ngrams // 4:
            self._compact()

    def _compact(self) -> None:
        """Merges all runs into one and drops the lowest levels until it fits `max_ngrams`.

        The number of distinct n-grams per level only grows with more documents, so a level dropped here is dropped
        from the whole corpus, whatever the order; and of a level kept nothing was ever lost.
        """
        self._flush_buffer_without_compacting()
        if not self._runs or (len(self._runs) == 1 and self._compacted):
            return
        keys, counts = _merged(self._runs, self.level)
        per_level = np.bincount(keys & LEVEL_MASK, minlength=NUM_LEVELS)
        from_level = np.append(np.cumsum(per_level[::-1])[::-1], 0)
        fitting = int(np.argmax(from_level <= self.config.max_ngrams))
        if fitting > self.level:
            self.level = fitting
            kept = (keys & LEVEL_MASK) >= fitting
            keys, counts = keys[kept], counts[kept]
        self._runs, self._compacted = [(keys, counts)], len(keys)
