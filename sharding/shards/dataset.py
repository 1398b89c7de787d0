"""Reading packed shards in a training loop: `PackedDataset`. What the pack stage wrote ends here.

    MANIFEST.json ─► shards of a split ─► order of the epoch ─► this rank's rows ─► ids, positions, lengths, labels

Needs numpy alone; only `collate` imports torch. A dataset is a map-style dataset to `torch.utils.data.DataLoader`
(leave its `shuffle` off: the order is shuffled here) and a resumable stream to a plain loop:

    dataset = PackedDataset("path/to/output", rank=rank, world_size=world_size)
    for row in dataset:
        ...
        state = dataset.state_dict()   # {"epoch": 0, "row": 128, ...}; load_state_dict(state) goes on behind that row

docs/formats.md trains a model with it. Shards are memory-mapped, so the output must be on a file system.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import RequestError
from sharding.hashing import Purpose, hashed
from sharding.records.rows import TokenType
from sharding.shards.rows import (
    IGNORED_LABEL,
    LOSS_MASKS,
    LossMask,
    MappedShard,
    RowBatch,
    loss_mask,
    policy_of,
    split_of,
)
from sharding.storage import manifest

_OPENERS = 8  # threads that look into shards when a dataset is made: they wait for the disk


class PackedDataset:
    """The packed rows of one split, each seen once an epoch by exactly one rank, in an order of its own per epoch.

    Rows are numbered through epochs; rank r takes every `world_size`-th, so ranks are never more than one row apart.
    Rows that are all padding are not among them. The order is a keyed hash of seed and epoch: shards are shuffled,
    then the record batches in a shard, then the rows in a batch, so that reading stays sequential within 2 MiB. Rows
    were shuffled over the corpus when they were packed.

    Args:
        output: the run's output folder, on a file system.
        split: "train" or "validation".
        rank: this process among those that share the split.
        world_size: how many they are.
        seed: key of the order.
        start: (epoch, row) to start from: rows of that epoch that all ranks together have already had.
        epochs: stop before the epoch of this number; None: never.
        loss_mask: which tokens get labels; by default those that `pack.loss_mask` of the corpus counts.
        shuffle: off: every epoch in the order of the shards.

    Attributes:
        rows: rows of one epoch, over all ranks.
        sequence_length: tokens of a row.
        vocab_size: entries of the vocabulary.
        loss_mask: the policy by which tokens get labels.

    Raises:
        RequestError: an argument is out of range, the split isn't there, or the output isn't on a file system.
        MillError: the output isn't finished, or a shard is unreadable or not as its manifest says.
    """

    def __init__(
        self,
        output: str,
        split: str = "train",
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start: tuple[int, int] = (0, 0),
        epochs: int | None = 1,
        loss_mask: LossMask | None = None,
        shuffle: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise RequestError(f"rank: {rank} is not one of 0 to world_size - 1 = {world_size - 1}")
        if loss_mask is not None and loss_mask not in LOSS_MASKS:
            raise RequestError(f"loss_mask: {loss_mask!r} is not one of {', '.join(LOSS_MASKS)}")
        if not isinstance(storage.filesystem(output)[0], LocalFileSystem):
            raise RequestError(f"output: {output} is not on a file system: copy it to one, or mount it")
        packed = manifest.require(output, "pack")
        shards = packed.files.get("shards", [])
        self._entries = [entry for entry in shards if split_of(entry) == split]
        if not self._entries:
            raise RequestError(f"split: {split!r} is not one of {', '.join(sorted(set(map(split_of, shards))))}")
        self._urls = [storage.join(manifest.stage_url(output, "pack"), entry.name) for entry in self._entries]
        self._fingerprint, self._split, self._seed = packed.fingerprint, split, seed
        self._rank, self._world_size = rank, world_size
        self._epochs, self._shuffle = epochs, shuffle
        self._of_corpus = loss_mask in (None, policy_of(packed))
        self.loss_mask: LossMask = loss_mask or policy_of(packed)
        self.sequence_length = int(packed.config["pack"]["sequence_length"])
        self.vocab_size = int(packed.facts["vocab_size"])
        with ThreadPoolExecutor(min(_OPENERS, len(self._entries))) as pool:
            self._rows_of_shards = list(pool.map(self._count_rows, range(len(self._entries))))
        self.rows = sum(self._rows_of_shards)
        self._forget()
        self._seek(*start)

    def __len__(self) -> int:
        """Rows that this rank gets from `start` to the end of the last epoch."""
        if self._epochs is None:
            raise TypeError("a PackedDataset without a last epoch has no length: give it epochs")
        left = self._epochs * self.rows - self._origin - self._rank
        return max(0, -(-left // self._world_size))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The row of this rank `index` rows behind `start`.

        Returns:
            input_ids, position_ids and labels, each (sequence_length,) int64; token_type, (sequence_length,) uint8;
            cu_seqlens, (num_documents + 1,) int32, where the documents of the row begin, and the end of the last.
            Position ids begin at 0 in every document. Padding stands as a last document of its own, because
            variable-length attention leaves undefined what no document covers. A label is the token at the same
            place, as models of transformers expect; it is -100 where the loss mask leaves the token out, and at the
            first token of a document, which nothing before it predicts.

        Raises:
            IndexError: behind the last epoch.
            MillError: the shard is unreadable or was changed.
        """
        slot = self._origin + index * self._world_size + self._rank
        if index < 0 or not self.rows or (self._epochs is not None and slot >= self._epochs * self.rows):
            raise IndexError(f"no row {index}")
        epoch, place = divmod(slot, self.rows)
        return self._render(*self._locate(epoch, place))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """This rank's rows from where the last loop stopped: a dataset is a stream with a position."""
        while True:
            try:
                row = self[self._taken]
            except IndexError:
                return
            self._taken += 1
            yield row

    def state_dict(self, rows_taken: int | None = None) -> dict[str, Any]:
        """Where the stream is, as JSON values.

        The same on every rank that took as many rows, and good for any number of ranks.

        Args:
            rows_taken: rows that this rank has taken since `start`; by default those that a loop over the dataset
                took. Behind a DataLoader, which reads ahead, give the rows that were trained on.
        """
        taken = self._taken if rows_taken is None else rows_taken
        epoch, row = divmod(self._origin + taken * self._world_size, max(1, self.rows))
        return {
            "epoch": epoch, "row": row, "seed": self._seed, "shuffle": self._shuffle,
            "split": self._split, "fingerprint": self._fingerprint,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called.

        Raises:
            RequestError: the state is of another order: other shards, split, seed or shuffle.
        """
        here = self.state_dict()
        for key in ("fingerprint", "split", "seed", "shuffle"):
            if state.get(key) != here[key]:
                raise RequestError(f"{key}: the state says {state.get(key)!r}, this dataset has {here[key]!r}")
        self._seek(int(state["epoch"]), int(state["row"]))

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays behind when a dataset goes to a worker process.
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_open_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._open_epoch: tuple[int, list[int], list[int]] | None = None
        self._open_shard: tuple[tuple[int, int], MappedShard, list[int], list[int]] | None = None
        self._open_batch: tuple[tuple[int, int, int], RowBatch, list[int]] | None = None

    def _seek(self, epoch: int, row: int) -> None:
        if epoch < 0 or not 0 <= row <= self.rows:
            raise RequestError(f"start: epoch {epoch}, row {row}: an epoch has {self.rows} rows")
        self._origin, self._taken = epoch * self.rows + row, 0

    def _count_rows(self, shard: int) -> int:
        entry = self._entries[shard]
        # Only a shard with a row's worth of padding can hold a row that is all padding; it is the last one.
        if entry.tokens.get("padding", self.sequence_length) < self.sequence_length or not entry.rows:
            return entry.rows
        return entry.rows - MappedShard(self._urls[shard], entry).padding_rows

    def _locate(self, epoch: int, place: int) -> tuple[RowBatch, int]:
        """The batch and the row in it at a place of an epoch. Keeps open what the next place is likely in."""
        if self._open_epoch is None or self._open_epoch[0] != epoch:
            self._open_epoch = (epoch, *self._order(self._rows_of_shards, epoch))
        shard, place = _find(*self._open_epoch[1:], place)
        if self._open_shard is None or self._open_shard[0] != (epoch, shard):
            opened = MappedShard(self._urls[shard], self._entries[shard])
            rows = opened.rows_of_batches
            self._open_shard = ((epoch, shard), opened, *self._order(rows, epoch, shard))
        batch, place = _find(*self._open_shard[2:], place)
        if self._open_batch is None or self._open_batch[0] != (epoch, shard, batch):
            rows_read = self._open_shard[1].read(batch)
            order = self._permutation(len(rows_read.items_per_row), epoch, shard, batch)
            self._open_batch = ((epoch, shard, batch), rows_read, order)
        return self._open_batch[1], self._open_batch[2][place]

    def _order(self, sizes: Sequence[int], *key: int) -> tuple[list[int], list[int]]:
        """The parts in the order of the epoch, and the place where each begins."""
        order = self._permutation(len(sizes), *key)
        return order, list(accumulate((sizes[part] for part in order), initial=0))

    def _permutation(self, length: int, *key: int) -> list[int]:
        if not self._shuffle:
            return list(range(length))
        prefix = ":".join(map(str, (self._seed, *key)))
        return sorted(range(length), key=lambda part: (_hash(f"{prefix}:{part}"), part))

    def _render(self, batch: RowBatch, row: int) -> dict[str, np.ndarray]:
        input_ids = batch.input_ids[row].astype(np.int64)
        token_type = batch.token_type[row]
        ends = np.cumsum(batch.row_lengths(row), dtype=np.int32)
        padding = [self.sequence_length] if ends[-1] < self.sequence_length else []
        cu_seqlens = np.concatenate(([0], ends, padding)).astype(np.int32)
        begins = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        if self._of_corpus and batch.counted is not None:
            counted = batch.counted[row] & (token_type != TokenType.PADDING)
        else:
            counted = loss_mask(token_type, self.loss_mask)
        counted[cu_seqlens[:-1]] = False
        return {
            "input_ids": input_ids,
            "position_ids": np.arange(self.sequence_length, dtype=np.int64) - begins,
            "cu_seqlens": cu_seqlens,
            "labels": np.where(counted, input_ids, IGNORED_LABEL),
            "token_type": token_type,
        }


def _find(order: Sequence[int], begins: Sequence[int], place: int) -> tuple[int, int]:
    at = bisect_right(begins, place) - 1
    return order[at], place - begins[at]


def _hash(text: str) -> bytes:
    return hashed(Purpose.READING, text)


def collate(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Rows as one batch of torch tensors; a `collate_fn` for DataLoader.

    Returns:
        input_ids, position_ids, labels, token_type: (num_rows, sequence_length). cu_seqlens: (num_documents + 1,)
        int32, of the batch's tokens in one line, as variable-length attention takes them: `input_ids.view(1, -1)`.
    """
    import torch

    stacked = {
        name: torch.from_numpy(np.stack([row[name] for row in rows]))
        for name in ("input_ids", "position_ids", "labels", "token_type")
    }
    shifted = [row["cu_seqlens"][1:] + i * len(row["input_ids"]) for i, row in enumerate(rows)]
    cu_seqlens = np.concatenate(([0], *shifted)).astype(np.int32)
    return {**stacked, "cu_seqlens": torch.from_numpy(cu_seqlens)}
