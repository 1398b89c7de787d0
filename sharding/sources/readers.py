"""Reading a unit with the reader of its format: the module of the format's name.

It has `read(unit, source)`, which gives a `Document` or a `Quarantined` for every record (`documents.document_of` makes
either of a record's fields), and, where the line in `FORMATS` says `has_schema`, `schema(url)`. A unit has a byte range
only where the line says `in_ranges`.
"""

from __future__ import annotations

import contextlib
import importlib
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from sharding.errors import MillError
from sharding.records.types import Document, Quarantined
from sharding.sources.config import FORMATS, Source
from sharding.sources.line_looks import looks_like
from sharding.sources.looks import HEAD_BYTES, kind_of, unpacked
from sharding.sources.places import locate, raise_outage
from sharding.sources.units import ReadUnit
from sharding.sources.versions import check_unchanged
from sharding.storage.retries import is_store_error, patiently

DAMAGED = (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException)
"""What reading a damaged file raises; not UTF-8 are then the names of its columns."""

_WAYS_OUT = {
    "too much memory for decoding": "it was compressed with a window over 128 MiB (zstd --long): recompress it: "
    "zstd -d --long=31 -c FILE | zstd -o SMALLER",
    "Compressed file ended before": "it is cut short: fetch it again",
    "Truncated compressed stream": "it is cut short: fetch it again",
    "Not a gzipped file": "something else follows its gzip stream: recompress it",
    "Unknown frame descriptor": "something else follows its zstd frames: recompress it",
}
"""What to do about what a library says in these words."""


def read_documents(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """Every record of the unit, as a document or in quarantine with the reason.

    Args:
        unit: a piece of the source's files.
        source: as `resolve` gives it: its format is known.

    Raises:
        MillError: the file can't be read to its end (absent, cut short, damaged), or it changed meanwhile; names it.
        RequestError: the file lacks a column, or is no file of this format.
    """
    reader = _reader(source)
    try:
        if unit.end != 0:
            yield from reader.read(unit, source)
    except FileNotFoundError as error:
        with _as_mill_error(unit.url, source):
            raise_outage(error)
        raise MillError(f"cannot read {unit.url}: it is not there any more") from error
    except Exception as error:
        with _as_mill_error(unit.url, source):
            raise error
    if unit.shard is None:
        check_unchanged(unit.url, unit.version)


@contextlib.contextmanager
def _as_mill_error(url: str, source: Source) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise MillError(f"cannot read {url}: {_in_words(error, url, source)}") from error
    except Exception as error:
        if is_store_error(error):
            raise MillError(f"cannot read {url}: {error}") from error
        raise


def _in_words(error: Exception, url: str, source: Source) -> str:
    """What is wrong with a file, by what it begins with where that says more than the error."""
    said = str(error)
    for words, way_out in _WAYS_OUT.items():
        if words in said:
            return f"{said}; {way_out}"
    if isinstance(error, pa.ArrowInvalid):
        fs, path = locate(url)
        head = unpacked(patiently("read", url, fs, partial(fs.cat_file, path, start=0, end=HEAD_BYTES)))
        kind, looks = kind_of(head), looks_like(head)
        if looks and (kind is None or kind.name != source.config.format):
            return f"it is no {source.config.format} file, it looks like {looks} ({said})"
    return said


def check(source: Source) -> None:
    """Refuse a source whose reader isn't here, or doesn't have what the config asks of it, before any work.

    Raises:
        RequestError: names the key and the way out.
    """
    if FORMATS[source.config.format or ""].by_datatrove:
        _reader(source).check(source)


def columns_of(url: str, source: Source) -> pa.Schema:
    """The columns of a Parquet or Arrow file.

    Raises:
        MillError: the file can't be read; names it.
    """
    with _as_mill_error(url, source):
        return _reader(source).schema(url)


def _reader(source: Source) -> Any:
    """The module of the format. Imported when used: that of Parquet takes a while, and datasets may not be there."""
    return importlib.import_module(f"sharding.sources.{source.config.format}")
