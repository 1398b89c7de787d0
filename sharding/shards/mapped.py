"""One shard mapped into memory, recognised by its manifest whenever it is opened. Between the shards and their readers.

`sharding.shards.dataset` opens shards here, and whatever else reads rows out of order.
"""

from __future__ import annotations

import hashlib
import os
import threading

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError
from sharding.records.arrow import check_schema, check_values
from sharding.records.rows import MaskedRow
from sharding.records.types import FileEntry
from sharding.shards.rows import LossMask, RowBatch, item_starts, loss_mask
from sharding.storage.arrow_files import checked_batches, file_buffer, open_stream
from sharding.storage.arrow_messages import arrow_errors
from sharding.storage.files import filesystem

_Identity = tuple[str, int, int, int, int]
"""Path, device, inode, size and time of change in ns: of a file that has them all unchanged the bytes are too."""

_recognised: dict[_Identity, str] = {}
_lock = threading.Lock()


class MappedShard:
    """A mapped shard: where its record batches are, none decoded.

    Its bytes are those of its manifest: their sha256 is compared each time a shard is opened, and where the same
    process has read the same file before, whether it is still that file.

    Args:
        url: where the shard is, on a file system; from an object store it is fetched whole.
        entry: what the pack manifest says of it.

    Attributes:
        rows_of_batches: rows of each record batch, those that are all padding left out.
        items_per_row: for each record batch, items of each of these rows: (num_rows,) int64.

    Raises:
        MillError: it is absent, unreadable, or not the shard that the manifest names.
    """

    def __init__(self, url: str, entry: FileEntry) -> None:
        self._url = url
        self._buffer = file_buffer(url)
        recognise(url, entry, self._buffer)
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
        if (padding := entry.rows - sum(self.rows_of_batches)) != entry.padding_rows:
            raise MillError(f"{url}: {padding} rows of padding, its manifest says {entry.padding_rows}")

    def read(self, batch: int) -> RowBatch:
        """Decode a batch. Its arrays stay valid as long as they are held.

        Raises:
            MillError: it is no batch of rows.
        """
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


def recognise(url: str, entry: FileEntry, buffer: pa.Buffer) -> None:
    """Refuse a file that is not the one of the manifest.

    Raises:
        MillError: its size or its sha256 is another.
    """
    if buffer.size != entry.size_bytes:
        raise MillError(f"{url}: {buffer.size:,} bytes, its manifest says {entry.size_bytes:,}: {_WAY_OUT}")
    identity = _identity(url)
    with _lock:
        known = _recognised.get(identity) if identity else None
    if known is None:
        known = hashlib.sha256(buffer).hexdigest()
        # Only of a file that stood still while it was read.
        if identity is not None and identity == _identity(url):
            with _lock:
                _recognised[identity] = known
    if known != entry.sha256:
        raise MillError(f"{url}: its bytes are not those of its manifest: {_WAY_OUT}")


_WAY_OUT = "another corpus is in its place, or it is damaged; `thoughtmill verify` tells"


def _identity(url: str) -> _Identity | None:
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        return None
    found = os.stat(path)  # noqa: PTH116 - behind links, as it is mapped
    return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
