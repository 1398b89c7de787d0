"""Parquet: row groups shared out by where they begin, read in small batches of the columns wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding.records.types import Document, Quarantined
from sharding.sources.columns import check_columns, documents_of, is_text, wanted_columns
from sharding.sources.config import Source
from sharding.sources.places import open_file
from sharding.sources.units import ReadUnit

BATCH_BYTES = 4 << 20
"""A batch holds about this much of the columns wanted; a row group is never held whole."""

MAX_BATCH_BYTES = 16 << 20
"""A batch holds at most about this much, if every row of it repeats the longest entry of its dictionaries."""

MAX_BATCH_ROWS = 1024
READ_BUFFER_BYTES = 1 << 20
"""A column chunk is read in pieces of this size, instead of whole."""


def schema(url: str) -> pa.Schema:
    """The file's columns, from its footer."""
    with open_file(url) as file:
        return pq.ParquetFile(file).schema_arrow


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The rows of the row groups that begin in the unit."""
    with open_file(unit.url) as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        parquet = _open(file)
        check_columns(parquet.schema_arrow, source, unit.url)
        first_row = 0
        for index in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(index)
            begin = min(_begin(group), size_bytes - 1)
            if group.num_rows and begin >= unit.start and (unit.end is None or begin < unit.end):
                yield from _rows(file, parquet, index, first_row, unit, source)
            first_row += group.num_rows


def _open(file: Any, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        file, pre_buffer=False, buffer_size=READ_BUFFER_BYTES, page_checksum_verification=True, **options
    )


def _begin(group: Any) -> int:
    """The byte at which a row group begins."""
    column = group.column(0)
    pages = (column.dictionary_page_offset, column.data_page_offset)
    return min((offset for offset in pages if offset), default=0)


def _rows(
    file: Any, parquet: pq.ParquetFile, index: int, first_row: int, unit: ReadUnit, source: Source
) -> Iterator[Document | Quarantined]:
    names = wanted_columns(source.config)
    longest_bytes = _longest_entries(file, parquet, index, names)
    batches = parquet.iter_batches(
        batch_size=_batch_rows(parquet.metadata.row_group(index), names, longest_bytes),
        row_groups=[index],
        columns=names,
        use_threads=False,
    )
    for batch in batches:
        before = first_row

        def origin(row: int, before: int = before) -> str:
            return f"{unit.url}:{before + row}"

        yield from documents_of(batch, source, origin)
        first_row += batch.num_rows


def _longest_entries(file: Any, parquet: pq.ParquetFile, index: int, names: Sequence[str]) -> int:
    """Bytes of the longest entries of the dictionaries of a row group's text columns, added up.

    A dictionary of one long text that every row refers to takes next to nothing in the file and, written out, more
    than any memory. Its entries are seen by reading a single row as a dictionary; reading on like that would gather
    every value of a column that gave up its dictionary.
    """
    group, columns = parquet.metadata.row_group(index), parquet.schema_arrow
    chunks = (group.column(i) for i in range(group.num_columns))
    with_dictionary = {chunk.path_in_schema for chunk in chunks if chunk.has_dictionary_page}
    shown = [name for name in names if name in with_dictionary and is_text(columns.field(name).type)]
    if not shown:
        return 0
    again = _open(file, metadata=parquet.metadata, read_dictionary=shown)
    rows = again.iter_batches(batch_size=1, row_groups=[index], columns=shown, use_threads=False)
    first = next((row.columns for row in rows), None)
    dictionaries = [column.dictionary for column in first or () if pa.types.is_dictionary(column.type)]
    return sum(pc.max(pc.binary_length(d.cast(pa.large_binary()))).as_py() or 0 for d in dictionaries)


def _batch_rows(group: Any, names: Sequence[str], longest_bytes: int) -> int:
    chunks = (group.column(i) for i in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)
    by_average = BATCH_BYTES * group.num_rows // max(1, size)
    return max(1, min(MAX_BATCH_ROWS, by_average, MAX_BATCH_BYTES // max(1, longest_bytes)))
