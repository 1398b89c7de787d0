"""The table of the n-gram memory: surprisal under the counts of the corpus. The second half, after `counting`.

One pass over the corpus counts n-grams (`memory.counting`); their counts become a compact hash table, stored once
beside the scores and memory-mapped by every scoring worker. A token's difficulty is then the smaller of its surprisals
under the language model and under this table.

The estimate is the hierarchical Dirichlet model of MacKay & Peto, "A hierarchical Dirichlet language model", Natural
Language Engineering 1(3), 1995: with h the last n - 1 tokens, h' the last n - 2 and c the counts,

    p_n(w | h) = (c(hw) + a p_{n-1}(w | h')) / (c(h) + a),        p_0 = 2^-32 (uniform over all 32-bit ids)

It never sums above 1 and needs counts of occurrences only. Kneser-Ney and Witten-Bell also need numbers of distinct
continuations, which neither add up across workers nor let a document be left out by subtraction.

All counts leave out the document at hand, if it was counted: its own occurrences are subtracted, and what then occurs
fewer than `min_elsewhere` times counts as never seen. So a passage that is in no other document is not remembered,
however often it repeats within its own. The surprisals are those of a memory built from all other documents.

Whether it was counted is looked up in the table, by a hash of all its tokens. So the memory of one run serves another:
a document that both have is left out, under whatever id, and of a new one nothing is. One that changed is new, and its
earlier version another document; of exact copies one is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from difficulty.memory.counting import (
    GOLDEN_GAMMA,
    HASH_MASK,
    LEVEL_BITS,
    MemoryConfig,
    NgramCounts,
    document_key,
    extended_hashes,
    run_starts,
)
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import TextTokenizer
from sharding.records.types import FileEntry
from sharding.storage.arrow_files import read_batches, read_schema
from sharding.storage.hashed_file import publish_hashed

HALF = np.uint64(32)
COUNT_MASK = np.uint64((1 << 32) - 1)

SLOTS_PER_NGRAM = 2
"""Half full, linear probing finds an n-gram in 1.5 slots and misses one in 2.5: Knuth, TAOCP 3, section 6.4."""

BASE_PROBABILITY = 2.0**-32
FORMAT = 2
METADATA_KEY = b"thoughtmill.memory"


class NgramMemory:
    """The n-gram counts of a corpus as a read-only table of uint64 slots: fingerprint and count, 0 when empty.

    The documents counted are entries too. What is not in the table is taken for something that is about once in 2^30
    times: the 32 bits of fingerprint, less the slots probed.
    """

    def __init__(self, slots: np.ndarray, description: dict[str, Any]) -> None:
        self._slots, self._description = slots, description
        self.config = MemoryConfig(**description["config"])
        self.level: int = description["level"]

    @classmethod
    def from_counts(cls, counts: NgramCounts, tokenizer: str = "") -> NgramMemory:
        """The table of the n-grams that occur at least `min_elsewhere` times in the sample, and of its documents.

        Args:
            counts: of the whole corpus.
            tokenizer: fingerprint of the tokenizer that made its tokens.
        """
        hashes, occurrences = counts.ngrams(counts.config.min_elsewhere)
        home_slots = max(1, SLOTS_PER_NGRAM * len(hashes))
        # Linear probing in the order of the hashes: each takes the first free slot from its home on. No wrapping: the
        # table is as long as its last entry needs, and an empty slot ends it.
        index = np.arange(len(hashes), dtype=np.int64)
        place = index + np.maximum.accumulate(_home(hashes, home_slots) - index)
        slots = np.zeros(max(home_slots, int(place[-1]) + 1 if len(place) else 0) + 1, np.uint64)
        slots[place] = _fingerprint(hashes) << HALF | occurrences
        description = {
            "format": FORMAT,
            "tokenizer": tokenizer,
            **counts.to_json(),
            "entries": len(hashes),
            "home_slots": home_slots,
            "size_bytes": slots.nbytes,
            "occupied_share": len(hashes) / len(slots),
        }
        return cls(slots, description)

    def surprisal_nats(self, input_ids: np.ndarray) -> np.ndarray:
        """How surprising each token of one document is to the rest of the corpus; see `surprisal_many`."""
        return self.surprisal_many([input_ids])[0]

    def surprisal_many(self, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """How surprising each token of some documents is to the rest of the corpus.

        Args:
            documents: (num_tokens,) token ids of each, the whole document: one that was counted is left out.

        Returns:
            Of each (num_tokens,) float32 nats, -ln p.
        """
        if not documents:
            return []
        lengths = np.array([len(ids) for ids in documents])
        leave_out = self._look_up(np.array([document_key(ids) for ids in documents], np.uint64)) > 0
        total = np.maximum(self._description["tokens_counted"] - lengths * leave_out, 0).astype(np.float64)
        tokens = np.concatenate(documents)
        document = np.repeat(np.arange(len(documents)), lengths)
        is_last = np.append(document[1:] != document[:-1], True)
        prior = self.config.prior_count
        probability = np.full(len(tokens), BASE_PROBABILITY)
        at = np.arange(len(tokens))  # the tokens whose context is known, with its count, and their n-grams' hashes
        context = total[document]
        keys = extended_hashes(np.zeros(len(tokens), np.uint64), tokens)
        for n in range(1, self.config.order + 1):
            count = self._look_up(keys & HASH_MASK).astype(np.float64)
            mine = np.flatnonzero((count > 0) & leave_out[document[at]])
            count[mine] = np.maximum(count[mine] - _occurrences(keys[mine], document[at[mine]]), 0)
            count[count < self.config.min_elsewhere] = 0
            # No count exceeds its context's; should a fingerprint be mistaken, p must still not exceed 1.
            probability[at] = (np.minimum(count, context) + prior * probability[at]) / (context + prior)
            if n < self.config.order:
                # An n-gram that occurs elsewhere is the next longer one's context; without one, p_n is p_{n-1}.
                known = np.flatnonzero((count > 0) & ~is_last[at])
                at, context = at[known] + 1, count[known]
                keys = extended_hashes(keys[known], tokens[at])
        surprisal = (0.0 - np.log(probability)).astype(np.float32)
        return np.split(surprisal, np.cumsum(lengths)[:-1])

    def _look_up(self, hashes: np.ndarray) -> np.ndarray:
        wanted = _fingerprint(hashes)
        place = _home(hashes, self._description["home_slots"])
        slot = self._slots[place]
        searching = np.flatnonzero((slot >> HALF != wanted) & (slot != 0))
        while len(searching):
            place[searching] += 1
            here = slot[searching] = self._slots[place[searching]]
            searching = searching[(here >> HALF != wanted[searching]) & (here != 0)]
        return slot & COUNT_MASK

    def save(self, url: str) -> FileEntry:
        """Writes the table as one uncompressed Arrow stream, whole or not at all; gives its manifest entry.

        Raises:
            MillError: the store refused.
        """
        schema = pa.schema([pa.field("slots", pa.uint64(), nullable=False)]).with_metadata(
            {METADATA_KEY: json.dumps(self._description, sort_keys=True)}
        )
        with publish_hashed(url) as out:
            with pa.ipc.new_stream(pa.PythonFile(out, mode="w"), schema) as writer:
                writer.write_batch(pa.record_batch([pa.array(self._slots)], schema=schema))
            return out.entry(rows=len(self._slots))

    @classmethod
    def load(cls, url: str, tokenizer: TextTokenizer | None = None) -> NgramMemory:
        """The table at `url`: memory-mapped from a local disk, so that processes share it; else read whole.

        Args:
            url: where `save` wrote it.
            tokenizer: what made the tokens that will be looked up; None: not checked.

        Raises:
            MillError: the file is absent, unreadable, cut short or no n-gram memory.
            RequestError: its tokens are those of another tokenizer.
        """
        description = describe_memory(url)
        if tokenizer is not None and description["tokenizer"] != tokenizer.fingerprint:
            raise RequestError(
                f"difficulty.memory_path: the n-grams in {url} are of tokens of another tokenizer than "
                f"{tokenizer.name!r}; name the memory of a run with that one, or count anew with difficulty.memory"
            )
        batches = list(read_batches(url))
        if len(batches) != 1 or 8 * len(batches[0]) != description["size_bytes"]:
            raise MillError(f"{url} was cut short, or is not as it was stored; build it anew by scoring the corpus")
        return cls(batches[0].column(0).to_numpy(zero_copy_only=True), description)

    def to_json(self) -> dict[str, Any]:
        """What the table holds: its config, the sample of documents counted, entries, size and occupied share."""
        return self._description


def describe_memory(url: str) -> dict[str, Any]:
    """`NgramMemory.to_json` of the memory at `url`, from the head of the file: a table may be gigabytes.

    Raises:
        MillError: the file is absent, unreadable or no n-gram memory.
    """
    description = json.loads((read_schema(url).metadata or {}).get(METADATA_KEY, b"{}"))
    if description.get("format") != FORMAT:
        raise MillError(f"{url} is not an n-gram memory of format {FORMAT}; build it anew by scoring the corpus")
    return description


def _occurrences(keys: np.ndarray, document: np.ndarray) -> np.ndarray:
    """How often each n-gram occurs within its own document, (num_ngrams,) int64, given all of its occurrences there."""
    of_document = keys ^ document.astype(np.uint64) * GOLDEN_GAMMA
    order = np.argsort(of_document)
    repeats = np.diff(run_starts(of_document[order]), append=len(order))
    occurrences = np.empty(len(keys), np.int64)
    occurrences[order] = np.repeat(repeats, repeats)
    return occurrences


def _home(hashes: np.ndarray, home_slots: int) -> np.ndarray:
    """The slot a hash would like, (num_hashes,) int64; grows with the hash."""
    return ((hashes >> HALF) * np.uint64(home_slots) >> HALF).astype(np.int64)


def _fingerprint(hashes: np.ndarray) -> np.ndarray:
    return hashes >> LEVEL_BITS & COUNT_MASK
