"""Reading packed shards in a training loop: `PackedDataset`. What the pack stage wrote ends here.

    MANIFEST.json ─► shards of a split ─► dataset[row]: ids, positions, lengths, labels      (in the workers)
                                             ▲
    rank, world size, seed, epoch, position ─┴─ PackedSampler: which row comes next          (in the main process)

A map-style dataset whose `[row]` depends on nothing but the corpus: torch copies it into workers, and no copy can go
wrong. Order and position are `sharding.shards.sampler`'s. Needs numpy alone; only `collate` imports torch.

    dataset = PackedDataset("path/to/output")
    sampler = PackedSampler(dataset, rank=rank, world_size=world_size)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler, collate_fn=collate, num_workers=4)

docs/formats.md trains a model with it. Shards on a file system are mapped where they are; those of an object store are
fetched whole into a bounded cache on a local disk (`sharding.shards.cache`), the next ones of the order ahead of time.
"""

from __future__ import annotations

import operator
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, SupportsIndex

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.rows import TokenType
from sharding.shards.cache import ShardCache
from sharding.shards.mapped import MappedShard
from sharding.shards.read_ahead import ReadAhead
from sharding.shards.rows import (
    LOSS_MASKS,
    LossMask,
    RowBatch,
    epoch_of,
    loss_mask,
    policy_of,
    row_arrays,
    split_of,
)
from sharding.storage import manifest

_OPENERS = 8  # threads that look into shards at once: they wait for the disk
_OPEN_SHARDS = 2  # a batch of a trainer may lie across the end of a shard,
_OPEN_BATCHES = 2  # and across that of a record batch


class PackedDataset:
    """The packed rows of one split, in the order of the shards; rows that are all padding are not among them.

    Where `pack.trace_per_epoch` gave the corpus several epochs, each has as many rows: those of epoch 0 are numbered
    from 0 to `rows`, those of epoch 1 from `rows` on, and so forth. `PackedSampler` takes those of its epoch, round and
    round; the length and a loop over the dataset are those of epoch 0.

    A loop over the dataset gives every row once, in that order, however often it is begun. For training give
    `PackedSampler` to the loader: rows that are near each other in its order are near each other in the shards, and
    what was decoded for one is kept for the next.

    Args:
        output: the run's output folder, on a file system or in an object store ("s3://", "gs://", "hf://", ...).
        split: "train" or "validation".
        loss_mask: which tokens get labels; by default those that `pack.loss_mask` of the corpus counts.
        labelled_only: leave out the rows without a label, whose loss is NaN when it is a mean over labels. With
            another mask than the corpus's, or where the manifest counts such rows, shards are read through for them
            when the dataset is made; from an object store they are all fetched for it.
        cache: where shards of an object store are kept on this machine; `ShardCache()` when absent. Of an output on a
            file system nothing is kept.

    Attributes:
        rows: how many rows an epoch has; `len(dataset)`.
        epochs: how many epochs have rows of their own: 1, unless `pack.trace_per_epoch` says more; 1 of a validation
            split, which stays the same.
        rows_of_shards: rows of each shard, those of epoch 0 first.
        sequence_length: tokens of a row.
        vocab_size: entries of the vocabulary.
        loss_mask: the policy by which tokens get labels.
        split: the split.
        fingerprint: what the corpus is recognised by: its manifest's fingerprint and the sha256 of every shard.

    Raises:
        RequestError: an argument is out of range, the split isn't there, the cache has no room for a shard, or with
            `labelled_only` the epochs would have different numbers of rows.
        MillError: the output isn't finished, or a shard is unreadable or not the one of its manifest.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        split: str = "train",
        *,
        loss_mask: LossMask | None = None,
        labelled_only: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        output = os.fspath(output)
        if loss_mask is not None and loss_mask not in LOSS_MASKS:
            raise RequestError(f"loss_mask: {loss_mask!r} is not one of {', '.join(LOSS_MASKS)}")
        packed = manifest.require(output, "pack")
        shards = packed.files.get("shards", [])
        self._entries = [entry for entry in shards if split_of(entry) == split]
        if not self._entries:
            raise RequestError(f"split: {split!r} is not one of {', '.join(sorted(set(map(split_of, shards))))}")
        later = [entry for entry in packed.files.get("epoch_shards", []) if split_of(entry) == split]
        self._entries += sorted(later, key=lambda entry: (epoch_of(entry), entry.name))
        self.epochs = 1 + len(set(map(epoch_of, later)))
        self._cache, self._prefetched = None, 0
        if not isinstance(storage.filesystem(output)[0], LocalFileSystem):
            self._cache = cache or ShardCache()
            self._prefetched = self._cache.prefetched(max(entry.size_bytes for entry in self._entries))
        self._urls = [storage.join(manifest.stage_url(output, "pack"), entry.name) for entry in self._entries]
        self.split, self.labelled_only = split, labelled_only
        self.fingerprint = manifest.digest(packed)
        self._of_corpus = loss_mask in (None, policy_of(packed))
        self.loss_mask: LossMask = loss_mask or policy_of(packed)
        self.sequence_length = int(packed.config["pack"]["sequence_length"])
        self.vocab_size = int(packed.facts["vocab_size"])
        self._forget()
        self._labelled = self._look_for_labels() if labelled_only else {}
        self.rows_of_shards = [
            sum(map(len, self._labelled[shard])) if shard in self._labelled else entry.rows - entry.padding_rows
            for shard, entry in enumerate(self._entries)
        ]
        self._begins = list(accumulate(self.rows_of_shards, initial=0))
        self.rows = self._begins[self.shards_of(0).stop]
        self._check_epochs(output)

    def shards_of(self, epoch: int) -> range:
        """The numbers of the shards that an epoch reads: of several epochs in the corpus, round and round."""
        count = len(self._entries) // self.epochs
        first = epoch % self.epochs * count
        return range(first, first + count)

    def _check_epochs(self, output: str) -> None:
        shards = map(self.shards_of, range(self.epochs))
        rows = [self._begins[of_epoch.stop] - self._begins[of_epoch.start] for of_epoch in shards]
        if len(set(rows)) > 1 and self.labelled_only:
            raise RequestError(
                f"labelled_only: the epochs of {output} have {', '.join(map(str, rows))} rows with a label, and a "
                "trainer takes as many steps in each: leave labelled_only out, or train with loss_mask all"
            )
        if len(set(rows)) > 1 or len(self._entries) % self.epochs:
            raise MillError(f"{output}: its epochs have {', '.join(map(str, rows))} rows: `thoughtmill verify` tells")

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: SupportsIndex) -> dict[str, np.ndarray]:
        """The row of this number: always the same one, whatever was read before.

        Returns:
            Its arrays: see `sharding.shards.rows.row_arrays`.

        Raises:
            IndexError: there is no such row; rows are numbered from 0, and none from the end.
            MillError: the shard is unreadable, or not the one of its manifest any more.
        """
        number = operator.index(row)
        if not 0 <= number < self._begins[-1]:
            raise IndexError(f"row {number} is not one of 0 to {self._begins[-1] - 1} of the split {self.split}")
        shard = bisect_right(self._begins, number) - 1
        batch, place = self._batch_of(shard, number - self._begins[shard])
        return self._render(batch, place)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[row] for row in range(self.rows))

    def rows_of_batches(self, shard: int) -> list[int]:
        """How many rows each record batch of a shard has in this dataset; rows in one batch are read together.

        Raises:
            MillError: the shard is unreadable, or not the one of its manifest.
        """
        if shard in self._labelled:
            return [len(rows) for rows in self._labelled[shard]]
        with self._open_lock:
            return self._open(shard).rows_of_batches

    def items_per_row(self, epoch: int = 0) -> np.ndarray:
        """How many documents, or pieces of one, are in each row of an epoch: (rows,) int64. Opens its shards for it.

        Raises:
            MillError: a shard is unreadable, or not the one of its manifest.
        """

        def look(shard: int) -> np.ndarray:
            items = self._map(shard).items_per_row
            if shard in self._labelled:
                items = [of[rows] for of, rows in zip(items, self._labelled[shard], strict=True)]
            return np.concatenate([np.zeros(0, np.int64), *items])  # a shard may be empty

        with ThreadPoolExecutor(_OPENERS) as pool:
            return np.concatenate(list(pool.map(look, self.shards_of(epoch))))

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays behind when a dataset goes to a worker process.
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_open_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        # Threads that read ahead want the same batch: one decodes it, and the others wait for it.
        self._open_lock = threading.RLock()
        self._open_shards: OrderedDict[int, MappedShard] = OrderedDict()
        self._open_batches: OrderedDict[tuple[int, int], RowBatch] = OrderedDict()
        self._open_ahead = ReadAhead(self._fetch)

    def _look_for_labels(self) -> dict[int, list[np.ndarray]]:
        """Shard → for each of its batches the rows with a label; of the shards that hold others too."""

        def look(shard: int) -> list[np.ndarray]:
            rows = self._map(shard).labelled_rows(self.loss_mask, stored=self._of_corpus)
            return [np.flatnonzero(labelled) for labelled in rows]

        # The manifest counts by the corpus's mask: for another one each shard has to be read.
        wanted = [n for n, entry in enumerate(self._entries) if entry.unlabelled_rows or not self._of_corpus]
        with ThreadPoolExecutor(_OPENERS) as pool:
            return dict(zip(wanted, pool.map(look, wanted), strict=True))

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Fetch the first of these, which are read next, before they are asked for; nothing on a file system."""
        if self._prefetched:
            self._open_ahead.want(shards[: self._prefetched])

    def _fetch(self, shard: int) -> None:
        if self._cache is not None and not self._cache.path(self._entries[shard]).exists():
            self._cache.fetch_ahead(self._urls[shard], self._entries[shard])

    def _map(self, shard: int) -> MappedShard:
        return MappedShard(self._urls[shard], self._entries[shard], self._cache)

    def _open(self, shard: int) -> MappedShard:
        opened = self._open_shards.get(shard)
        if opened is None:
            opened = self._map(shard)
            if shard - 1 in self._open_shards:  # as by a loop over the dataset; samplers say themselves what comes next
                self.read_ahead(range(shard + 1, len(self._entries)))
        _keep(self._open_shards, shard, opened, _OPEN_SHARDS)
        return opened

    def _batch_of(self, shard: int, place: int) -> tuple[RowBatch, int]:
        """The record batch, and the row in it, at a place among the shard's rows; both are kept for the next."""
        sizes = self.rows_of_batches(shard)
        begins = list(accumulate(sizes, initial=0))
        batch = bisect_right(begins, place) - 1
        with self._open_lock:
            rows = self._open_batches.get((shard, batch)) or self._open(shard).read(batch)
            _keep(self._open_batches, (shard, batch), rows, _OPEN_BATCHES)
        place -= begins[batch]
        return rows, int(self._labelled[shard][batch][place]) if shard in self._labelled else place

    def _render(self, batch: RowBatch, row: int) -> dict[str, np.ndarray]:
        token_type = batch.token_type[row]
        if self._of_corpus and batch.counted is not None:
            counted = batch.counted[row] & (token_type != TokenType.PADDING)
        else:
            counted = loss_mask(token_type, self.loss_mask)
        return row_arrays(batch, row, counted)


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Keep what was used last, and forget what wasn't for longest."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def collate(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Rows as one batch of torch tensors; a `collate_fn` for DataLoader.

    Returns:
        input_ids, position_ids, labels, token_type and, where rows have it, surprisal: (num_rows, sequence_length).
        cu_seqlens: (num_documents + 1,) int32, of the batch's tokens in one line, as variable-length attention takes
        them: `input_ids.view(1, -1)`.
    """
    import torch

    stacked = {
        name: torch.from_numpy(np.stack([row[name] for row in rows]))
        for name in ("input_ids", "position_ids", "labels", "token_type", "surprisal")
        if name in rows[0]
    }
    shifted = [row["cu_seqlens"][1:] + i * len(row["input_ids"]) for i, row in enumerate(rows)]
    cu_seqlens = np.concatenate(([0], *shifted)).astype(np.int32)
    return {**stacked, "cu_seqlens": torch.from_numpy(cu_seqlens)}
