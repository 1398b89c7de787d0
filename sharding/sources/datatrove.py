"""What datatrove reads beside what the mill reads itself: CSV and whatever it learns. Needs `thoughtmill[datatrove]`.

One worker reads a file whole, since these readers know no byte ranges. Which files there are, and whether they have
changed, is found out as with every other format. Every record that a reader parses comes to `document_of`, those
without a text too, which it would leave out itself; what it doesn't parse it tells by raising, or nobody.
"""

from __future__ import annotations

import csv
import inspect
import posixpath
from collections.abc import Iterator
from functools import cache
from typing import Any

from sharding.errors import MillError, RequestError
from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source
from sharding.sources.documents import document_of
from sharding.sources.extras import absent
from sharding.sources.places import first_line, locate
from sharding.sources.units import ReadUnit

OURS = {
    "JsonlReader": "jsonl",
    "ParquetReader": "parquet",
    "IpcReader": "arrow",
    "HuggingFaceDatasetReader": "huggingface",
}
"""Readers of formats that the mill reads itself, in pieces, with what is broken in quarantine."""

_SAID_ELSEWHERE = {
    "data_folder": "path",
    "paths_file": "path",
    "recursive": "path",
    "glob_pattern": "path",
    "text_key": "text_field",
    "id_key": "id_field",
}
"""Options of a reader → the key of the source that says it."""

_NOT_OURS = frozenset({"self", "adapter", "limit", "skip", "shuffle_files", "file_progress", "doc_progress"})
"""Options that would leave records out, or change their order."""


def check(source: Source) -> None:
    """Refuse a reader that isn't there, and options it doesn't have.

    Raises:
        RequestError: names the key and what is allowed.
    """
    config = source.config
    key, readers = f"{source.key}.reader", _readers(source)
    if config.reader in OURS:
        raise RequestError(
            f"{key}: {config.reader!r}: the mill reads that itself, and tells what is broken: "
            f"set {source.key}.format: {OURS[config.reader]}, and leave reader out"
        )
    if config.reader not in readers:
        found = "is not given" if config.reader is None else repr(config.reader)
        raise RequestError(f"{key}: {found}; datatrove has {', '.join(sorted(readers))}")
    known = sorted(set(inspect.signature(readers[config.reader]).parameters) - _NOT_OURS - set(_SAID_ELSEWHERE))
    for name in config.options:
        if name in _SAID_ELSEWHERE:
            raise RequestError(f"{source.key}.options.{name}: {source.key}.{_SAID_ELSEWHERE[name]} says that")
        if name not in known:
            raise RequestError(f"{source.key}.options.{name}: unknown; {config.reader} has {', '.join(known)}")


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The records of a file.

    Raises:
        MillError: the reader fails; names the file and the record after which it did.
        RequestError: the reader's packages are absent.
    """
    if source.config.reader == "WarcReader":
        from sharding.sources import warc

        yield from warc.read(unit, source)
        return
    config = source.config
    fs, path = locate(unit.url)
    folder, name = posixpath.split(path)
    # Python's own limit of a field is 128 KB.
    csv.field_size_limit(config.max_document_bytes)
    try:
        kind = _readers(source)[config.reader or ""]
        reader = kind((folder, fs), adapter=_as_parsed, **config.options)
    except ImportError as error:
        raise absent(source, first_line(error)) from error
    number = -1
    try:
        for document in reader.read_file(name):
            number = int(document.id)
            record = document.metadata.get("record") or {}
            payload = str(record.get(config.text_field) or record).encode(errors="surrogatepass")
            yield document_of(_named(record), f"{unit.url}:{number + 1}", source, payload)
    except (csv.Error, UnicodeError) as error:
        raise MillError(f"cannot read {unit.url} after record {number + 1}: {first_line(error)}") from error


def _as_parsed(self: Any, data: dict[str, Any], path: str, id_in_file: int | str) -> dict[str, Any]:
    """A record as it was parsed, in the form in which datatrove passes it on whatever is in it."""
    return {"text": "-", "id": str(id_in_file), "metadata": {"record": data}}


def _named(record: dict[Any, Any]) -> dict[str, Any]:
    """The fields that have names: what is beyond the header of a CSV file has none."""
    return {name: value for name, value in record.items() if isinstance(name, str)}


@cache
def _by_name() -> dict[str, Any]:
    from datatrove.pipeline import readers
    from datatrove.pipeline.readers.base import BaseDiskReader

    kinds = {name: kind for name, kind in vars(readers).items() if inspect.isclass(kind)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, BaseDiskReader) and name not in OURS}


def _readers(source: Source) -> dict[str, Any]:
    try:
        return _by_name()
    except ImportError as error:
        raise absent(source, first_line(error)) from error
