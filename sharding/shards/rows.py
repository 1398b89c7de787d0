"""Rows of shards as arrays: what `sharding.shards.dataset` and the exporters share. Behind the pack stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from sharding.errors import RequestError
from sharding.records.rows import TokenType
from sharding.records.types import FileEntry
from sharding.storage.manifest import Manifest
from sharding.storage.output import EPOCH_FOLDER

LossMask = Literal["all", "source_only", "thoughts_only", "no_delimiters"]
LOSS_MASKS: tuple[LossMask, ...] = get_args(LossMask)

IGNORED_LABEL = -100
"""The label that torch.nn.functional.cross_entropy leaves out by default."""

_PER_TOKEN = ("input_ids", "token_type", "loss_mask", "surprisal")

_COUNTED: dict[LossMask, tuple[TokenType, ...]] = {
    "all": (TokenType.SOURCE, TokenType.THOUGHT, TokenType.DELIMITER),
    "source_only": (TokenType.SOURCE,),
    "thoughts_only": (TokenType.THOUGHT,),
    "no_delimiters": (TokenType.SOURCE, TokenType.THOUGHT),
}


def policy_of(packed: Manifest) -> LossMask:
    """The policy by which the tokens of a corpus count, from its pack manifest: `pack.loss_mask`."""
    policy: LossMask = packed.config["pack"].get("loss_mask", "all")
    return policy


def has_surprisal(packed: Manifest) -> bool:
    """Whether the shards of a corpus have the column `surprisal`, from its pack manifest."""
    return bool(packed.config["pack"].get("surprisal", False))


def loss_mask(token_type: np.ndarray, policy: LossMask) -> np.ndarray:
    """Which tokens count in the loss, as tokens to be predicted. Padding never does.

    Args:
        token_type: uint8 of any shape, values of `TokenType`.
        policy: "all"; "source_only"; "thoughts_only"; "no_delimiters", which is source and thoughts. The token that
            ends a document is a delimiter: only "all" teaches it.

    Returns:
        bool, of the same shape.

    Raises:
        RequestError: there is no such policy.
    """
    if policy not in _COUNTED:
        raise RequestError(f"loss_mask: {policy!r} is not one of {', '.join(LOSS_MASKS)}")
    counted = np.zeros(256, np.bool_)
    counted[list(_COUNTED[policy])] = True
    return counted[token_type]


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """The rows of one record batch; rows that are all padding are left out.

    Attributes:
        input_ids: (num_rows, sequence_length) uint16 or uint32.
        token_type: (num_rows, sequence_length) uint8.
        item_lengths: (num_items,) int32, tokens of the items of all rows, in order.
        items_per_row: (num_rows,) int64, at least 1.
        counted: (num_rows, sequence_length) bool, the column `loss_mask`; None where the shards have none.
        surprisal: (num_rows, sequence_length) float16 nats, the column of that name; None where the shards have none.
        arrow: the record batch itself, with all columns.
    """

    input_ids: np.ndarray
    token_type: np.ndarray
    item_lengths: np.ndarray
    items_per_row: np.ndarray
    counted: np.ndarray | None
    surprisal: np.ndarray | None
    arrow: pa.RecordBatch

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> RowBatch:
        """The rows of a batch whose columns were checked.

        Raises:
            pa.ArrowInvalid: they don't go together.
        """
        items_per_row = _items_per_row(batch)
        per_row = [batch.column(name).value_lengths().to_numpy() for name in ("doc_ids", "source_starts")]
        widths = {batch.schema.field(name).type.list_size for name in _PER_TOKEN if name in batch.schema.names}
        if len(widths) > 1 or not all(np.array_equal(items_per_row, others) for others in per_row):
            raise pa.ArrowInvalid("the columns of its rows are of different lengths")
        if not items_per_row.all():
            batch = batch.filter(pa.array(items_per_row > 0))
            items_per_row = items_per_row[items_per_row > 0]
        ids, types = batch.column("input_ids"), batch.column("token_type")
        counted = None
        if "loss_mask" in batch.schema.names:
            masks = batch.column("loss_mask").flatten().to_numpy(zero_copy_only=False)
            counted = masks.reshape(len(ids), ids.type.list_size)
        surprisal = None
        if "surprisal" in batch.schema.names:
            surprisal = batch.column("surprisal").flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
        return cls(
            input_ids=ids.flatten().to_numpy().reshape(len(ids), ids.type.list_size),
            token_type=types.flatten().to_numpy().reshape(len(types), types.type.list_size),
            item_lengths=batch.column("seq_lengths").flatten().to_numpy(),
            items_per_row=items_per_row,
            counted=counted,
            surprisal=surprisal,
            arrow=batch,
        )

    def tokens_per_row(self) -> np.ndarray:
        """(num_rows,) int64, tokens before the padding."""
        ends = np.cumsum(np.concatenate(([0], self.item_lengths)), dtype=np.int64)
        return np.diff(ends[np.cumsum(np.concatenate(([0], self.items_per_row)))])

    def is_token(self) -> np.ndarray:
        """(num_rows, sequence_length) bool, False on padding."""
        return np.arange(self.input_ids.shape[1]) < self.tokens_per_row()[:, None]

    def row_lengths(self, row: int) -> np.ndarray:
        """(num_items,) int32, the `seq_lengths` of one row."""
        first = int(self.items_per_row[:row].sum())
        return self.item_lengths[first : first + self.items_per_row[row]]


def row_arrays(batch: RowBatch, row: int, counted: np.ndarray) -> dict[str, np.ndarray]:
    """A row as models are trained on it.

    Args:
        batch: the rows of its record batch.
        row: its number there, from 0.
        counted: (sequence_length,) bool, which of its tokens count in the loss.

    Returns:
        input_ids, position_ids and labels, each (sequence_length,) int64; token_type, (sequence_length,) uint8;
        cu_seqlens, (num_documents + 1,) int32, where the documents of the row begin, and the end of the last.
        Position ids begin at 0 in every document. Padding stands as a last document of its own, because
        variable-length attention leaves undefined what no document covers. A label is the token at the same place, as
        models of transformers expect; it is -100 where the token doesn't count, and at the first token of a document,
        which nothing before it predicts. Where the shards have it: surprisal, (sequence_length,) float32, the nats of
        each token, NaN of tokens that weren't scored, which are thoughts, delimiters and padding.
    """
    input_ids = batch.input_ids[row].astype(np.int64)
    length = len(input_ids)
    ends = np.cumsum(batch.row_lengths(row), dtype=np.int32)
    padding = [length] if ends[-1] < length else []
    cu_seqlens = np.concatenate(([0], ends, padding)).astype(np.int32)
    begins = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    labels = np.where(counted, input_ids, IGNORED_LABEL)
    labels[cu_seqlens[:-1]] = IGNORED_LABEL
    arrays = {
        "input_ids": input_ids,
        "position_ids": np.arange(length, dtype=np.int64) - begins,
        "cu_seqlens": cu_seqlens,
        "labels": labels,
        "token_type": batch.token_type[row],
    }
    return arrays if batch.surprisal is None else arrays | {"surprisal": batch.surprisal[row].astype(np.float32)}


def _items_per_row(batch: pa.RecordBatch) -> np.ndarray:
    return batch.column("seq_lengths").value_lengths().to_numpy().astype(np.int64)


def item_starts(item_lengths: np.ndarray, items_per_row: np.ndarray) -> np.ndarray:
    """Where each item begins in its row: (num_items,) int64.

    Args:
        item_lengths: (num_items,) tokens of the items of all rows, in order.
        items_per_row: (num_rows,) how many of them each row has.
    """
    before = np.cumsum(item_lengths, dtype=np.int64) - item_lengths
    first_of_row = np.cumsum(items_per_row) - items_per_row
    row_begins = np.append(before, 0)[np.minimum(first_of_row, len(before))]
    return before - np.repeat(row_begins, items_per_row)


def is_labelled(token_type: np.ndarray, seq_lengths: np.ndarray, policy: LossMask) -> bool:
    """Whether any token of a row has a label: one that counts, and is not the first of its item.

    Args:
        token_type: (sequence_length,) uint8.
        seq_lengths: (num_items,) tokens of each item.
        policy: which tokens count.
    """
    counted = loss_mask(token_type, policy)
    counted[item_starts(seq_lengths, np.array([len(seq_lengths)]))] = False
    return bool(counted.any())


def split_of(entry: FileEntry) -> str:
    """The split a shard belongs to, from its name."""
    return split_named(entry.name)


def epoch_of(entry: FileEntry) -> int:
    """The epoch whose traces a shard shows, from its name: 0 but for those of `pack.trace_per_epoch`."""
    folder = entry.name.rpartition("/")[0].rpartition("/")[2]
    return int(folder.removeprefix(EPOCH_FOLDER)) if folder.startswith(EPOCH_FOLDER) else 0


def split_named(shard: str) -> str:
    """The split a shard of this name belongs to."""
    return shard.rsplit("/", 1)[-1].split("-")[0]
