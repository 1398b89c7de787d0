"""Files on any fsspec store: whole or absent, compressed Arrow, hashed as they are written.

Every durable result of the mill goes through `publish`: the bytes are written beside their place (or locally, for an
object store) and appear under their final name only when they are complete. Arrow itself detects next to nothing: a
flipped bit in a zstd buffer mostly loads silently wrong, so the sha256 and row count of `FileEntry` are the guard.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError, RequestError
from sharding.records import FileEntry, Record, from_batch, to_batch
from sharding.stores import patiently

BATCH_BYTES = 2 << 20
"""Size of an Arrow record batch before compression."""

R = TypeVar("R", bound=Record)
T = TypeVar("T")

EXTRA_FOR_PROTOCOL = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
}


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path in it.

    Raises:
        RequestError: the store's protocol is unknown, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.split("://")[0]
        extra = EXTRA_FOR_PROTOCOL.get(protocol)
        way_out = f"install it with: pip install 'thoughtmill[{extra}]'" if extra else f"({error})"
        raise RequestError(f"{url}: no filesystem for {protocol}://: {way_out}") from error


def join(base: str, *parts: str) -> str:
    """`base` and `parts` as one URL or path."""
    return posixpath.join(base.rstrip("/"), *parts)


@contextlib.contextmanager
def publish(url: str) -> Iterator[IO[bytes]]:
    """A binary file to write; it appears at `url` whole when the block ends, and not at all when the block raises.

    On a local disk the bytes go to a temporary name in the same folder, are synced and renamed. On an object store
    they go to a local temporary file and are uploaded in one call, which those stores make visible atomically.

    Raises:
        MillError: the store refused (disk full, no permission, ...); names the file.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    folder = posixpath.dirname(path)
    temporary: Path | None = None
    try:
        if local:
            Path(folder).mkdir(parents=True, exist_ok=True)
            temporary = Path(folder) / f".{posixpath.basename(path)}.{uuid.uuid4().hex}.tmp"
        else:
            handle, name = tempfile.mkstemp(prefix="thoughtmill-")
            os.close(handle)
            temporary = Path(name)
        with temporary.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if local:
            temporary.replace(path)
        else:
            patiently("write", url, fs, lambda: fs.put_file(str(temporary), path))
    except OSError as error:
        raise MillError(f"cannot write {url}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(url: str, data: bytes) -> None:
    """Publish `data` at `url`."""
    with publish(url) as out:
        out.write(data)


def write_json(url: str, value: Any) -> None:
    """Publish `value` as indented JSON with sorted keys."""
    write_bytes(url, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_bytes(url: str) -> bytes:
    """The content of `url`.

    Raises:
        MillError: the file is absent or unreadable; names it.
    """
    fs, path = filesystem(url)
    return patiently("read", url, fs, lambda: fs.cat_file(path))


def exists(url: str) -> bool:
    """Whether a file is there, as the store says now (no cached listing).

    Raises:
        MillError: the store can't tell; names the file.
    """
    fs, path = filesystem(url)

    def ask() -> bool:
        # Not fs.exists: it takes any failure for an absence, and a stage would be made again.
        fs.invalidate_cache()
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    return patiently("look up", url, fs, ask)


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


def remove(url: str) -> None:
    """Delete a file if it is there.

    Raises:
        MillError: the store refused; names the file.
    """
    fs, path = filesystem(url)
    # One that was there before a call that failed may be gone at the next: that is what was asked for.
    patiently("remove", url, fs, lambda: _remove(fs, path))


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)
