"""Random-access sources for Grain: `RowSource` and `DocumentSource`. Beside `sharding.shards.dataset`.

    shards ─► PackedDataset ─► RowSource: packed rows, in epochs of an order of their own ─┐
                          └──► DocumentSource: documents with their thoughts, unpacked ────┴─► grain.MapDataset.source

Both have what Grain asks of a `RandomAccessDataSource` (a length, an item for each number, and nothing that changes),
and import no Grain. What `source[i]` is depends on `i` alone, so Grain's own states are exact.
"""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import numpy as np

from sharding import storage
from sharding.errors import RequestError
from sharding.records.rows import TokenType
from sharding.shards.cache import ShardCache
from sharding.shards.dataset import PackedDataset
from sharding.shards.rows import IGNORED_LABEL, LossMask
from sharding.shards.sampler import EpochOrder

_OPEN_ORDERS = 2  # readers that run ahead are in two epochs at once


class RowSource:
    """The packed rows of a split, one epoch after another.

    Args:
        output: the run's output folder, on a file system or in an object store.
        split: "train" or "validation".
        seed: each epoch in an order of its own that follows from it, in which rows that come together lie together in
            the shards: quicker than Grain's `shuffle`, for which a record batch is decoded for each row. None: every
            epoch in the order of the shards.
        epochs: how many there are; where the corpus has another trace each epoch, each has its own.
        loss_mask: which tokens get labels; by default those that count in the corpus.
        labelled_only: leave out rows without a label.
        cache: where shards of an object store are kept on this machine: see `PackedDataset`.

    Raises:
        RequestError, MillError: see `PackedDataset`.
    """

    def __init__(
        self,
        output: storage.Location,
        split: str = "train",
        *,
        seed: int | None = None,
        epochs: int = 1,
        loss_mask: LossMask | None = None,
        labelled_only: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        if epochs < 1:
            raise RequestError(f"epochs: {epochs} is not at least 1")
        self._dataset = PackedDataset(output, split, loss_mask=loss_mask, labelled_only=labelled_only, cache=cache)
        self._seed, self._epochs = seed, epochs
        self._orders: dict[int, EpochOrder] = {}

    def __len__(self) -> int:
        return self._epochs * len(self._dataset)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The row of a number: see `training_arrays`; each of (sequence_length,).

        Raises:
            IndexError: there is no such row.
            MillError: its shard is unreadable, or not the one of its manifest.
        """
        number = _checked(index, len(self), self)
        epoch, place = divmod(number, len(self._dataset))
        if self._seed is None:
            of_epoch = epoch % self._dataset.epochs * len(self._dataset)
            return training_arrays(self._dataset[of_epoch + place])
        orders = self._orders  # replaced and never changed: threads read it
        if (order := orders.get(epoch)) is None:
            order = EpochOrder(self._dataset, self._seed, epoch)
            kept = sorted(orders, key=lambda other: abs(other - epoch))[: _OPEN_ORDERS - 1]
            self._orders = {epoch: order, **{other: orders[other] for other in kept}}
        return training_arrays(self._dataset[order.row_at(place)])

    def __repr__(self) -> str:
        # Grain's DataLoader keeps it in its states, and refuses those of another source.
        return f"RowSource({_named(self._dataset)}, seed={self._seed}, epochs={self._epochs})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}


class DocumentSource:
    """The documents of a split with their thoughts, each alone and without padding, for trainers that pack themselves.

    A document that was longer than a row is several. Their number needs the lengths of all rows, which are read when a
    source is made (from an object store every shard is fetched for it); it then holds 8 bytes for each row.

    Args:
        output: the run's output folder, on a file system or in an object store.
        split: "train" or "validation".
        loss_mask: which tokens get labels; by default those that count in the corpus.
        epoch: whose documents, where the corpus has another trace each epoch.
        cache: where shards of an object store are kept on this machine: see `PackedDataset`.

    Raises:
        RequestError, MillError: see `PackedDataset`.
    """

    def __init__(
        self,
        output: storage.Location,
        split: str = "train",
        *,
        loss_mask: LossMask | None = None,
        epoch: int = 0,
        cache: ShardCache | None = None,
    ) -> None:
        if epoch < 0:
            raise RequestError(f"epoch: {epoch} is not at least 0")
        self._dataset = PackedDataset(output, split, loss_mask=loss_mask, cache=cache)
        self._epoch = epoch % self._dataset.epochs
        per_row = self._dataset.items_per_row(self._epoch)
        self._begins = np.concatenate(([0], np.cumsum(per_row, dtype=np.int64)))

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The document of a number: see `training_arrays`; each of (num_tokens,).

        Raises:
            IndexError: there is no such document.
            MillError: its shard is unreadable, or not the one of its manifest.
        """
        number = _checked(index, len(self), self)
        row = int(np.searchsorted(self._begins, number, side="right")) - 1
        of_epoch = self._epoch * len(self._dataset)
        return document_arrays(self._dataset[of_epoch + row], number - int(self._begins[row]))

    def __repr__(self) -> str:
        epoch = f", epoch {self._epoch}" if self._dataset.epochs > 1 else ""
        return f"DocumentSource({_named(self._dataset)}{epoch})"


def training_arrays(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A row of `PackedDataset` as trainers on Grain take it.

    Returns:
        input_ids: int32. labels: int32, at each token the one behind it, which it is to predict; -100 where that one
        doesn't count, at the last token of a document, and in padding. positions: int32, from 0 in every document.
        segment_ids: int32, from 1 for each document, 0 in padding. loss_mask: bool, where there is a label. Where the
        row has it: surprisal, float32, at each token that of the one behind it, as labels are; NaN at the last token
        of a document.
    """
    labels = np.append(row["labels"][1:], IGNORED_LABEL).astype(np.int32)
    lengths = np.diff(row["cu_seqlens"])
    segment_ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    arrays = {
        "input_ids": row["input_ids"].astype(np.int32),
        "labels": labels,
        "positions": row["position_ids"].astype(np.int32),
        "segment_ids": np.where(row["token_type"] == TokenType.PADDING, 0, segment_ids).astype(np.int32),
        "loss_mask": labels != IGNORED_LABEL,
    }
    if "surprisal" in row:
        arrays["surprisal"] = np.append(row["surprisal"][1:], np.float32(np.nan))
        arrays["surprisal"][row["cu_seqlens"][1:] - 1] = np.nan  # behind it another document begins
    return arrays


def document_arrays(row: dict[str, np.ndarray], item: int) -> dict[str, np.ndarray]:
    """An item of a row of `PackedDataset`, from 0, alone: `training_arrays` of its tokens, all of the segment 1."""
    start, stop = row["cu_seqlens"][item:][:2].tolist()
    arrays = {name: values[start:stop] for name, values in training_arrays(row).items()}
    return arrays | {"segment_ids": np.ones(stop - start, np.int32)}


def _checked(index: SupportsIndex, length: int, source: object) -> int:
    number = operator.index(index)
    if not 0 <= number < length:
        raise IndexError(f"{number} is not one of 0 to {length - 1} of {source!r}")
    return number


def _named(dataset: PackedDataset) -> str:
    mask = f"{dataset.loss_mask}, labelled only" if dataset.labelled_only else dataset.loss_mask
    return f"corpus {dataset.fingerprint}, {dataset.split}, {dataset.rows} rows, {mask}"
