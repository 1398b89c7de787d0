"""Records in Arrow stream files: compressed, hashed as they are written, read column by column."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError
from sharding.records.arrow import check_schema, check_values, from_batch, to_batch
from sharding.records.base import Record
from sharding.records.types import FileEntry
from sharding.storage.arrow_messages import arrow_errors, check_messages
from sharding.storage.files import R, T, check_regular, filesystem, read_bytes
from sharding.storage.hashed_file import publish_hashed

BATCH_BYTES = 2 << 20
"""Size of an Arrow record batch before compression."""

HEAD_BYTES = 64 << 10
"""Read at once of a file whose schema alone is wanted."""


@contextlib.contextmanager
def new_stream(sink: Any, schema: pa.Schema, zstd_level: int = 3) -> Iterator[pa.RecordBatchStreamWriter]:
    """A writer of an Arrow IPC stream compressed with zstd, in which every part and shard is written.

    Args:
        sink: a file to write, or an Arrow output stream.
        schema: the columns; its metadata is written too.
        zstd_level: 1 (fast) to 19 (small).
    """
    out = sink if isinstance(sink, pa.NativeFile) else pa.PythonFile(sink, mode="w")
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=zstd_level))
    with pa.ipc.new_stream(out, schema, options=options) as writer:
        yield writer


def open_stream(data: pa.Buffer | bytes, columns: Iterable[str] | None = None) -> pa.RecordBatchStreamReader:
    """A reader of an Arrow IPC stream, to be used in a `with` block.

    Args:
        data: the whole stream, such as `file_buffer` gives.
        columns: the columns wanted; the others are neither decompressed nor returned.

    Raises:
        pa.ArrowException: it is no Arrow stream, or has none of the columns.
    """
    if columns is None:
        return pa.ipc.open_stream(data)
    wanted = set(columns)
    with pa.ipc.open_stream(data) as reader:
        included = [i for i, name in enumerate(reader.schema.names) if name in wanted]
    if not included:  # which Arrow would take for all of them
        raise pa.ArrowInvalid(f"it has none of the columns {', '.join(sorted(wanted))}")
    return pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(included_fields=included))


def file_buffer(url: str) -> pa.Buffer:
    """The bytes of a file: mapped from a local disk, fetched whole from an object store.

    Raises:
        MillError: the file is absent or unreadable; names it.
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        return pa.py_buffer(read_bytes(url))
    try:
        check_regular(fs, path)
        return pa.memory_map(path).read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"cannot read {url}: {error}") from error


def write_part(
    url: str,
    records: Iterable[Record],
    schema: pa.Schema,
    *,
    name: str | None = None,
    zstd_level: int = 3,
    sum_batches: bool = False,
) -> FileEntry:
    """Write records as one Arrow IPC stream with zstd, in batches of about 2 MiB; whole or not at all.

    Args:
        url: where the file goes.
        records: consumed once, in order; only one batch is held.
        schema: the columns; its metadata is written too.
        name: the entry's name; the last part of `url` when absent.
        zstd_level: 1 (fast) to 19 (small).
        sum_batches: whether the entry has the ends and checksums of the record batches.

    Returns:
        The file's manifest entry, its `tokens` empty.

    Raises:
        MillError: the store refused, or a value doesn't fit its column.
    """
    rows = 0
    batches: list[tuple[int, int]] = []
    with publish_hashed(url, name) as out:
        out.crc32 = 0 if sum_batches else None
        with new_stream(out, schema, zstd_level) as writer:
            for chunk in chunks(records, BATCH_BYTES, record_size_bytes):
                writer.write_batch(to_batch(chunk, schema))
                rows += len(chunk)
                if out.crc32 is not None:
                    batches.append((out.size_bytes, out.crc32))
                    out.crc32 = 0
        return msgspec.structs.replace(out.entry(rows=rows), batches=batches)


def record_size_bytes(record: Record) -> int:
    """About how many bytes a record's values take: arrays and strings exactly, the rest not counted."""
    size = 0
    for name in record.__struct_fields__:
        value = getattr(record, name)
        size += value.nbytes if hasattr(value, "nbytes") else len(value) if isinstance(value, str) else 8
    return size


def chunks(values: Iterable[T], at_least: int, weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive values that weigh `at_least` together; by the values alone: equal ones give equal chunks."""
    chunk: list[T] = []
    weight = 0
    for value in values:
        chunk.append(value)
        weight += weigh(value)
        if weight >= at_least:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk


def checked_batches(
    data: pa.Buffer | bytes, columns: Sequence[str] | None = None, *, kind: type[Record] | None
) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow stream that anyone may have written, each checked in full before it is given.

    Args:
        data: the whole stream.
        columns: the columns wanted; the others are neither decompressed nor returned.
        kind: the type of its records; None: any columns, in batches of any size.

    Raises:
        pa.ArrowException: it is no Arrow stream, or none of such records.
    """
    with arrow_errors(), open_stream(data, columns) as reader:
        if kind is not None:
            check_messages(data)
            check_schema(kind, reader.schema, columns)
        for batch in reader:
            batch.validate(full=True)
            if kind is not None:
                check_values(kind, batch)
            yield batch


def read_batches(
    url: str, columns: Sequence[str] | None = None, *, kind: type[Record] | None = None
) -> Iterator[pa.RecordBatch]:
    """The record batches of one Arrow stream file, checked in full.

    Args:
        url: the file.
        columns: the columns wanted; the others are neither decompressed nor returned.
        kind: the type of its records; None: any columns, in batches of any size.

    Raises:
        MillError: the file is absent, cut short, not an Arrow stream or not one of such records; names it.
    """
    try:
        yield from checked_batches(file_buffer(url), columns, kind=kind)
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"cannot read {url}: {error}") from error


def read_schema(url: str) -> pa.Schema:
    """The columns of one Arrow stream file and their metadata, from its head alone.

    Raises:
        MillError: the file is absent or not an Arrow stream; names it.
    """
    fs, path = filesystem(url)
    try:
        check_regular(fs, path)
        with fs.open(path, "rb", cache_type="readahead", block_size=HEAD_BYTES) as head, pa.ipc.open_stream(head) as r:
            return r.schema
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"cannot read {url}: {error}") from error


def read_records(url: str, kind: type[R], columns: Sequence[str] | None = None) -> Iterator[R]:
    """The records of one file; columns not asked for are left at their type's zero."""
    for batch in read_batches(url, columns, kind=kind):
        yield from from_batch(kind, batch)
