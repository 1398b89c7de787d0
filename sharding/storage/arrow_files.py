"""Records in Arrow stream files: compressed, hashed as they are written, read column by column."""

from __future__ import annotations

import hashlib
import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError
from sharding.records.arrow import from_batch, to_batch
from sharding.records.base import Record
from sharding.records.types import FileEntry
from sharding.storage.files import R, T, filesystem, publish, read_bytes

BATCH_BYTES = 2 << 20
"""Size of an Arrow record batch before compression."""

HEAD_BYTES = 64 << 10
"""Read at once of a file whose schema alone is wanted."""


class _HashingWriter:
    """Passes bytes on to a file and keeps their hash and count."""

    closed = False

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._sha = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        self._sha.update(data)
        self.size_bytes += len(data)
        self._out.write(data)
        return len(data)

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None: ...

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()


def write_part(
    url: str, records: Iterable[Record], schema: pa.Schema, *, name: str | None = None, zstd_level: int = 3
) -> FileEntry:
    """Write records as one Arrow IPC stream with zstd, in batches of about 2 MiB; whole or not at all.

    Args:
        url: where the file goes.
        records: consumed once, in order; only one batch is held.
        schema: the columns; its metadata is written too.
        name: the entry's name; the last part of `url` when absent.
        zstd_level: 1 (fast) to 19 (small).

    Returns:
        The file's manifest entry, its `tokens` empty.

    Raises:
        MillError: the store refused, or a value doesn't fit its column.
    """
    rows = 0
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=zstd_level))
    with publish(url) as out:
        hashing = _HashingWriter(out)
        with pa.ipc.new_stream(pa.PythonFile(hashing, mode="w"), schema, options=options) as writer:
            for chunk in chunks(records, BATCH_BYTES, record_size_bytes):
                writer.write_batch(to_batch(chunk, schema))
                rows += len(chunk)
    return FileEntry(
        name=name or posixpath.basename(url), size_bytes=hashing.size_bytes, sha256=hashing.sha256, rows=rows
    )


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


def read_batches(url: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of one Arrow stream file.

    Args:
        url: the file.
        columns: the columns wanted; the others are neither decompressed nor returned.

    Raises:
        MillError: the file is absent, cut short or not an Arrow stream; names it.
    """
    fs, path = filesystem(url)
    try:
        if isinstance(fs, LocalFileSystem):
            source: Any = pa.memory_map(path)
        else:
            source = pa.BufferReader(read_bytes(url))
        included = None
        if columns is not None:
            with pa.ipc.open_stream(source) as reader:
                names = reader.schema.names
            included = [i for i, name in enumerate(names) if name in columns]
            source.seek(0)
        with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(included_fields=included)) as reader:
            yield from reader
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"cannot read {url}: {error}") from error


def read_schema(url: str) -> pa.Schema:
    """The columns of one Arrow stream file and their metadata, from its head alone.

    Raises:
        MillError: the file is absent or not an Arrow stream; names it.
    """
    fs, path = filesystem(url)
    try:
        with fs.open(path, "rb", cache_type="readahead", block_size=HEAD_BYTES) as head, pa.ipc.open_stream(head) as r:
            return r.schema
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"cannot read {url}: {error}") from error


def read_records(url: str, kind: type[R], columns: Sequence[str] | None = None) -> Iterator[R]:
    """The records of one file; columns not asked for are left at their type's zero."""
    for batch in read_batches(url, columns):
        yield from from_batch(kind, batch)


def read_groups(
    url: str, kind: type[R], key: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, list[R]]]:
    """Runs of records with an equal attribute `key`, in the order of the file; one run is held at a time.

    The scored parts are sorted by document, so their runs by "doc_id" are whole documents.
    """
    for value, members in itertools.groupby(read_records(url, kind, columns), lambda record: getattr(record, key)):
        yield value, list(members)
