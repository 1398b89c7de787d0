"""Whether the index of documents and the shards say the same: sums of hashes over all items, shard by shard.

The index is dealt out by document and the shards hold documents in another order, so neither is held beside the other:
two sums over the same items are equal, whatever the order, and others differ but for a chance of 2**-64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.verify.report import Problem, at, limited
from pipelines.verify.splits import keys_of
from pipelines.verify.task import Task
from sharding import storage
from sharding.beam.part_names import part_of

_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of splitmix64 (Steele, Lea and Flood 2014), which mixes each number into the hash."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where items are: how many, and the sum of what is hashed of each, modulo 2**64."""

    items: int = 0
    total: int = 0

    def __add__(self, other: Places) -> Places:
        return Places(self.items + other.items, (self.total + other.total) % (1 << 64))

    @classmethod
    def of(cls, keys: np.ndarray, *numbers: np.ndarray) -> Places:
        """The places of some items.

        Args:
            keys: (num_items,) uint64, of their documents.
            numbers: each (num_items,): where the item begins in its document, its row, its place there, its length.
        """
        mixed = keys.astype(np.uint64)
        for each in numbers:
            mixed = _mix(mixed + each.astype(np.int64).astype(np.uint64))
        return cls(len(keys), int(mixed.sum(dtype=np.uint64)))


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + _ODD[0]
    values = (values ^ (values >> np.uint64(30))) * _ODD[1]
    values = (values ^ (values >> np.uint64(27))) * _ODD[2]
    return values ^ (values >> np.uint64(31))


def check_index_batch(
    task: Task, batch: pa.RecordBatch, first_row: int, places: dict[str, Places]
) -> Iterator[Problem]:
    """What is wrong with rows of the index: documents of another part, or not in order, aren't found by their ids.

    Args:
        first_row: the row that the batch begins with.
        places: gets what it says of each shard.
    """
    doc_ids = batch.column("doc_id").to_pylist()
    keys = keys_of(doc_ids)
    index, count = part_of(task.url)
    wrong = np.flatnonzero(keys % np.uint64(count) != np.uint64(index)).tolist()
    wrong += [n for n, (one, other) in enumerate(itertools.pairwise(doc_ids), start=1) if other < one]
    said = "is not where it would be looked for: the part is not sorted, or the document is of another"
    yield from limited((Problem(at(task.url, first_row + row, doc_ids[row]), said) for row in wrong), task.url)
    names = np.array(batch.column("shard").to_pylist(), dtype=object)
    numbers = [batch.column(name).to_numpy() for name in ("source_start", "row", "token_start", "num_tokens")]
    for shard in dict.fromkeys(names.tolist()):
        here = names == shard
        places[shard] = places.get(shard, Places()) + Places.of(keys[here], *(each[here] for each in numbers))


def check_places(output: str, shards: Mapping[str, Places], index: Mapping[str, Places]) -> Iterator[Problem]:
    """The shards of which the index says something else than what is in them."""
    for name in sorted({*shards, *index}):
        there, said = shards.get(name, Places()), index.get(name, Places())
        if there != said:
            what = f"{said.items} items" if said.items != there.items else "other places of its items"
            yield Problem(storage.join(output, name), f"the index of documents says {what}, it holds {there.items}")
