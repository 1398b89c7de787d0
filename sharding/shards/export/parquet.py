"""Parquet, with the columns that TRL's packed training reads.

    input_ids    list<int32>, the tokens of a row, its padding cut off
    token_type   list<uint8>, of the same length
    seq_lengths  list<int32>, tokens of each item; they sum to the length of the row
    doc_ids      list<string>, the document of each item
    surprisal    list<float32>, only where the corpus has it: the nats of each token, NaN of those that weren't scored
    labels       list<int32>, only where a loss mask is asked for: the token where it counts, else -100

Rows differ in length by their padding: TRL makes position ids out of `seq_lengths`, so both must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.records.types import FileEntry
from sharding.shards.export.files import publish
from sharding.shards.export.source import SourceShard
from sharding.shards.rows import IGNORED_LABEL, RowBatch

ROW_GROUP_BYTES = 32 << 20
"""Size of a row group before compression; what a writer holds at a time."""


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


def schema(with_labels: bool, with_surprisal: bool = False) -> pa.Schema:
    """The columns of the files."""
    columns = {"input_ids": pa.int32(), "token_type": pa.uint8(), "seq_lengths": pa.int32(), "doc_ids": pa.string()}
    if with_surprisal:
        columns["surprisal"] = pa.float32()
    if with_labels:
        columns["labels"] = pa.int32()
    return pa.schema([pa.field(name, _list(kind), nullable=False) for name, kind in columns.items()])


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the file of a shard.

    Raises:
        MillError: the shard is not what its manifest says, or the store refused.
    """
    columns = schema(with_labels=shard.loss_mask is not None, with_surprisal=shard.has_surprisal)
    rows = 0
    with publish(target, f"{shard.stem}.parquet") as out:
        sink = pa.PythonFile(out, mode="w")
        with pq.ParquetWriter(sink, columns, compression="zstd") as writer:
            for table in _row_groups((_batch(shard, batch, columns) for batch in shard.batches()), columns):
                writer.write_table(table)
                rows += table.num_rows
    return [out.entry(rows=rows, tokens=shard.tokens())]


def _row_groups(batches: Iterator[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(batch.nbytes for batch in pending) >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(pending, columns)
            pending = []
    if pending:
        yield pa.Table.from_batches(pending, columns)


def _batch(shard: SourceShard, batch: RowBatch, columns: pa.Schema) -> pa.RecordBatch:
    is_token = batch.is_token()
    input_ids = batch.input_ids[is_token].astype(np.int32)
    token_type = batch.token_type[is_token]
    per_row = batch.tokens_per_row()
    arrays = {
        "input_ids": (input_ids, per_row),
        "token_type": (token_type, per_row),
        "seq_lengths": (batch.item_lengths, batch.items_per_row),
        "doc_ids": (batch.arrow.column("doc_ids").flatten(), batch.items_per_row),
    }
    if batch.surprisal is not None:
        arrays["surprisal"] = (batch.surprisal[is_token].astype(np.float32), per_row)
    if "labels" in columns.names:
        arrays["labels"] = (np.where(shard.counted(token_type), input_ids, np.int32(IGNORED_LABEL)), per_row)
    return pa.RecordBatch.from_arrays([_lists(*arrays[column.name], column.type) for column in columns], schema=columns)


def _lists(values: np.ndarray | pa.Array, lengths: Sequence[int] | np.ndarray, kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum(np.concatenate(([0], lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=kind.value_type), type=kind)
