"""One shard mapped into memory, recognised by its manifest whenever it is opened. Between the shards and their readers.

`sharding.shards.dataset` opens shards here, and whatever else reads rows out of order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError
from sharding.records.arrow import check_schema, check_values
from sharding.records.rows import MaskedRow
from sharding.records.types import FileEntry
from sharding.shards.cache import ShardCache
from sharding.shards.recognition import WAY_OUT, is_batch, recognise
from sharding.shards.rows import LossMask, RowBatch, item_starts, loss_mask
from sharding.storage.arrow_files import checked_batches, file_buffer, open_stream
from sharding.storage.arrow_messages import arrow_errors
from sharding.storage.files import filesystem


class MappedShard:
    """A mapped shard: where its record batches are, none decoded.

    Its bytes are those of its manifest: their sha256 is compared each time a shard is opened, and where the same
    process has read the same file before, whether it is still that file. The checksum of a record batch is compared
    again whenever it is decoded.

    Args:
        url: where the shard is.
        entry: what the pack manifest says of it.
        cache: where shards of an object store are kept; None: on a file system it is mapped where it is, and from an
            object store it is fetched whole into memory.

    Attributes:
        rows_of_batches: rows of each record batch, those that are all padding left out.
        items_per_row: for each record batch, items of each of these rows: (num_rows,) int64.

    Raises:
        MillError: it is absent, unreadable, or not the shard that the manifest names.
    """

    def __init__(self, url: str, entry: FileEntry, cache: ShardCache | None = None) -> None:
        self._url, self._entry = url, entry
        if cache is None:
            fs, path = filesystem(url)
            self._buffer = file_buffer(url)
            recognise(url, entry, self._buffer, Path(path) if isinstance(fs, LocalFileSystem) else None)
        else:
            self._buffer = cache.buffer(url, entry)
        try:
            with arrow_errors(), open_stream(self._buffer) as reader:
                self._schema = reader.schema
                check_schema(MaskedRow, self._schema)
                lengths = checked_batches(self._buffer, ("seq_lengths",), kind=MaskedRow)
                items_per_row = [batch.column("seq_lengths").value_lengths().to_numpy() for batch in lengths]
                self._messages = list(pa.ipc.MessageReader.open_stream(self._buffer))[1:]  # the first is the schema
        except pa.ArrowException as error:
            raise MillError(f"cannot read {url}: {error}") from error
        if (rows := sum(map(len, items_per_row))) != entry.rows:
            raise MillError(f"{url}: {rows} rows, its manifest says {entry.rows}")
        self.items_per_row = [items[items > 0].astype(np.int64) for items in items_per_row]
        self.rows_of_batches = list(map(len, self.items_per_row))
        if entry.batches and len(entry.batches) != len(self._messages):
            raise MillError(f"{url}: {len(self._messages)} batches, its manifest says {len(entry.batches)}")
        if (padding := entry.rows - sum(self.rows_of_batches)) != entry.padding_rows:
            raise MillError(f"{url}: {padding} rows of padding, its manifest says {entry.padding_rows}")

    def read(self, batch: int) -> RowBatch:
        """Decode a batch. Its arrays stay valid as long as they are held.

        Raises:
            MillError: it is no batch of rows, or not the one of the manifest any more.
        """
        if not is_batch(self._entry, self._buffer, batch):
            raise MillError(f"{self._url}: record batch {batch} is not the one of its manifest any more: {WAY_OUT}")
        try:
            with arrow_errors():
                rows = pa.ipc.read_record_batch(self._messages[batch], self._schema)
                rows.validate(full=True)
                check_values(MaskedRow, rows)
                found = RowBatch.from_arrow(rows)
            longest = found.tokens_per_row().max(initial=0)
            if found.item_lengths.min(initial=1) < 1 or longest > found.input_ids.shape[1]:
                raise pa.ArrowInvalid("its seq_lengths are not those of items in its rows")
            return found
        except pa.ArrowException as error:
            raise MillError(f"cannot read {self._url}, batch {batch}: {error}") from error

    def labelled_rows(self, policy: LossMask, *, stored: bool) -> list[np.ndarray]:
        """Which rows have a label, for each batch: (num_rows,) bool. Reads the columns that say so alone.

        Args:
            policy: which tokens count.
            stored: whether that is what the column `loss_mask` says, where there is one.
        """
        stored = stored and "loss_mask" in self._schema.names
        columns = ("loss_mask" if stored else "token_type", "seq_lengths")
        try:
            with arrow_errors():
                return [
                    _labelled(batch, None if stored else policy)
                    for batch in checked_batches(self._buffer, columns, kind=MaskedRow)
                ]
        except pa.ArrowException as error:
            raise MillError(f"cannot read {self._url}: {error}") from error


def _labelled(batch: pa.RecordBatch, policy: LossMask | None) -> np.ndarray:
    """(num_rows,) bool of the rows that are not all padding, from the column `loss_mask` or from the token types."""
    name = "token_type" if policy else "loss_mask"
    column, lengths = batch.column(name), batch.column("seq_lengths")
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    counted = loss_mask(values, policy) if policy else values.copy()
    items_per_row, item_lengths = lengths.value_lengths().to_numpy(), lengths.flatten().to_numpy().astype(np.int64)
    starts = item_starts(item_lengths, items_per_row)
    if len(starts) and not 0 <= starts.min() <= starts.max() < width:
        raise pa.ArrowInvalid("its seq_lengths are not those of items in its rows")
    counted[np.repeat(np.arange(len(values)), items_per_row), starts] = False
    labelled: np.ndarray = np.asarray(counted.any(axis=1))
    return labelled[items_per_row > 0]
