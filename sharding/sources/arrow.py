"""Arrow IPC, files and streams: a file's record batches are shared out, a stream is read from its beginning.

A record batch is read whole: what wrote the file decides how much memory that takes. On a local disk an uncompressed
one is mapped instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError
from sharding.records.types import Document, Quarantined
from sharding.sources.columns import check_columns, documents_of, is_text, wanted_columns
from sharding.sources.config import Source
from sharding.sources.places import locate, open_file
from sharding.sources.units import ReadUnit

FILE_MAGIC = b"ARROW1"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def schema(url: str) -> pa.Schema:
    """The file's columns."""
    with _open(url) as file:
        return _reader(file, _is_file(file), None).schema


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The rows of the unit's record batches: of a file, those whose share of it begins in the unit.

    The offsets of batches are not to be had, so they are taken to be of equal size: all that counts is that every
    batch falls into exactly one unit. The unit that begins a stream is the whole of it.
    """
    with _open(unit.url) as file:
        is_file, size_bytes = _is_file(file), file.size()
        columns = _reader(file, is_file, None).schema
        check_columns(columns, source, unit.url)
        wanted = wanted_columns(source.config)
        included = [i for i, name in enumerate(columns.names) if name in wanted]
        if not is_file:
            if unit.start == 0:
                yield from _stream(file, included, unit, source)
            return
        reader = _reader(file, is_file, included)
        for number in range(reader.num_record_batches):
            begin = number * size_bytes // reader.num_record_batches
            if begin >= unit.start and (unit.end is None or begin < unit.end):
                yield from _rows(reader.get_batch(number), number, unit, source)


def _stream(file: Any, included: list[int], unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    for number, batch in enumerate(_reader(file, False, included)):
        yield from _rows(batch, number, unit, source)
    # A stream cut between two batches reads like a shorter one; only the mark at its end tells.
    end = file.tell()
    file.seek(max(0, end - len(END_OF_STREAM)))
    if file.read(len(END_OF_STREAM)) != END_OF_STREAM or end != file.size():
        raise MillError(f"cannot read {unit.url}: the Arrow stream does not end where the file does: was it cut short?")


def _rows(batch: pa.RecordBatch, number: int, unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    for column in batch.columns:
        _validate(column)
    return documents_of(batch, source, lambda row: f"{unit.url}:{number}:{row}")


def _validate(column: pa.Array) -> None:
    """Check what Arrow takes on trust: an offset that points outside its buffer would end the process.

    The UTF-8 of text is left for its reader to check, cell by cell.

    Raises:
        pyarrow.ArrowInvalid: the column is damaged.
    """
    kind = column.type
    if pa.types.is_dictionary(kind) and is_text(kind):
        _validate(column.dictionary)
        pa.DictionaryArray.from_arrays(column.indices, pa.nulls(len(column.dictionary)), safe=True)
    elif pa.types.is_string(kind):
        column.view(pa.binary()).validate(full=True)
    elif pa.types.is_large_string(kind):
        column.view(pa.large_binary()).validate(full=True)
    else:
        column.validate(full=True)


@contextlib.contextmanager
def _open(url: str) -> Iterator[Any]:
    fs, path = locate(url)
    if isinstance(fs, LocalFileSystem):
        with pa.memory_map(path) as mapped:
            yield mapped
    else:
        with open_file(url) as file, pa.PythonFile(file, mode="r") as remote:
            yield remote


def _is_file(file: Any) -> bool:
    file.seek(0)
    return file.read(len(FILE_MAGIC)) == FILE_MAGIC


def _reader(file: Any, is_file: bool, included: list[int] | None) -> Any:
    file.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=included, use_threads=False)
    return pa.ipc.open_file(file, options=options) if is_file else pa.ipc.open_stream(file, options=options)
