"""Reading a unit with the reader of its format: the module of the format's name.

It has `read(unit, source)`, which gives a `Document` or a `Quarantined` for every record (`documents.document_of` makes
either of a record's fields), and, where the line in `FORMATS` says `has_schema`, `schema(url)`. A unit has a byte range
only where the line says `in_ranges`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sharding.errors import MillError
from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source
from sharding.sources.units import ReadUnit
from sharding.storage.retries import is_store_error

DAMAGED = (OSError, UnicodeDecodeError, pa.ArrowException)
"""What reading a damaged file raises; not UTF-8 are then the names of its columns."""


def read_documents(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """Every record of the unit, as a document or in quarantine with the reason.

    Args:
        unit: a piece of the source's files.
        source: as `resolve` gives it: its format is known.

    Raises:
        MillError: the file can't be read to its end (absent, cut short, damaged); names it.
        RequestError: the file lacks a column.
    """
    reader = _reader(source)
    try:
        yield from reader.read(unit, source)
    except DAMAGED as error:
        raise MillError(f"cannot read {unit.url}: {error}") from error
    except Exception as error:
        if is_store_error(error):
            raise MillError(f"cannot read {unit.url}: {error}") from error
        raise


def columns_of(url: str, source: Source) -> pa.Schema:
    """The columns of a Parquet or Arrow file.

    Raises:
        MillError: the file can't be read; names it.
    """
    try:
        return _reader(source).schema(url)
    except DAMAGED as error:
        raise MillError(f"cannot read {url}: {error}") from error


def _reader(source: Source) -> Any:
    """The module of the format. Imported when used: that of Parquet takes a while, and datasets may not be there."""
    return importlib.import_module(f"sharding.sources.{source.config.format}")
