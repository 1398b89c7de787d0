"""One shard as a file, and where in it each document is: the last step of packing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from sharding import storage
from sharding.packing.config import PackConfig
from sharding.records.rows import ItemPlace, MaskedRow, Row, TokenType
from sharding.records.types import FileEntry
from sharding.shards.rows import is_labelled, loss_mask


def write_shard(url: str, name: str, rows: Sequence[Row], schema: pa.Schema, config: PackConfig) -> FileEntry:
    """Write the rows of a shard, whole or not at all; what the manifest says of it.

    Args:
        url: where the file goes.
        name: what the manifest calls it.
        rows: all of them; where documents were taken down, some may be all padding.
        schema: of the shards: see `Family.schema`.
        config: the `pack` section.

    Raises:
        MillError: the store refused, or a value doesn't fit its column.
    """
    written = (_masked(row, config) for row in rows) if "loss_mask" in schema.names else rows
    entry = storage.write_part(url, written, schema, name=name, zstd_level=config.zstd_level, sum_batches=True)
    kinds = np.zeros(len(TokenType), np.int64)
    for row in rows:
        kinds += np.bincount(row.token_type, minlength=len(TokenType))
    filled = [row for row in rows if len(row.seq_lengths)]
    return msgspec.structs.replace(
        entry,
        tokens={kind.name.lower(): int(kinds[kind]) for kind in TokenType},
        padding_rows=len(rows) - len(filled),
        unlabelled_rows=sum(not is_labelled(row.token_type, row.seq_lengths, config.loss_mask) for row in filled),
    )


def places_of(rows: Sequence[Row], shard: str) -> Iterator[ItemPlace]:
    """Where each item of a shard stands, in the order of its rows.

    Args:
        rows: all rows of the shard.
        shard: its name.
    """
    for number, row in enumerate(rows):
        starts = np.cumsum(row.seq_lengths) - row.seq_lengths
        for doc_id, start, length, source_start in zip(
            row.doc_ids, starts.tolist(), row.seq_lengths.tolist(), row.source_starts.tolist(), strict=True
        ):
            yield ItemPlace(
                doc_id=doc_id,
                source_start=source_start,
                shard=shard,
                row=number,
                token_start=start,
                num_tokens=length,
            )


def _masked(row: Row, config: PackConfig) -> MaskedRow:
    return MaskedRow(**msgspec.structs.asdict(row), loss_mask=loss_mask(row.token_type, config.loss_mask))
