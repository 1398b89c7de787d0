"""Readers: from files in any fsspec store to documents, the first step of the flow.

The files of a source are listed once, cut into `ReadUnit`s that workers read independently, and parsed record by
record. A record that can't be read becomes a `Quarantined` with a reason; nothing is dropped.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

import msgspec
import pyarrow as pa
from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding import shard_io
from sharding.config import STRICT
from sharding.errors import MillError, RequestError
from sharding.order import content_id
from sharding.records import Document, Quarantined

EXCERPT_BYTES = 400
READ_BLOCK_BYTES = 1 << 20
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
UNIT_BYTES = 64 << 20
"""An uncompressed file is read in ranges of this size by different workers."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """Where the raw text is and how a record holds it."""

    format: Literal["jsonl"] = Field(
        default="jsonl", description="File format: jsonl, one JSON object per line, plain, .gz or .zst."
    )
    path: str = Field(min_length=1, description="A file, folder or glob in any fsspec store.")
    text_field: str = Field(default="text", min_length=1, description="The field that holds the text.")
    id_field: str | None = Field(
        default=None, description="The field that holds a document's id; without one the id is a hash of the text."
    )
    metadata_fields: tuple[str, ...] = Field(default=(), description="Fields carried through to the scored parts.")
    max_document_bytes: int = Field(
        default=64 << 20, gt=0, description="A longer record is quarantined; bounds a worker's memory, in bytes."
    )


class ReadUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a source that one worker reads.

    Attributes:
        url: the file.
        start, end: the byte range whose lines are meant: those that begin in [start, end); None for the whole file.
    """

    url: str
    start: int = 0
    end: int | None = None


def list_files(config: SourceConfig) -> list[tuple[str, int, str]]:
    """The source's files as (url, size in bytes, version), in the order of their names.

    `version` changes when the content does, as far as the store tells (an ETag, or size and modification time).

    Raises:
        RequestError: nothing matches `source.path`.
        MillError: the store can't be reached.
    """
    fs, path = shard_io.filesystem(config.path)
    try:
        fs.invalidate_cache()
        if fs.isdir(path):
            found = fs.find(path, detail=True)
        elif any(character in path for character in "*?["):
            found = fs.glob(path, detail=True)
        else:
            found = {path: fs.info(path)}
    except FileNotFoundError:
        found = {}
    except OSError as error:
        raise MillError(f"source.path: cannot list {config.path}: {error}") from error
    files = {name: info for name, info in found.items() if info["type"] == "file"}
    if not files:
        raise RequestError(f"source.path: nothing matches {config.path!r}: name an existing file, folder or glob")
    return [(fs.unstrip_protocol(name), int(info["size"]), _version(info)) for name, info in sorted(files.items())]


def _version(info: Mapping[str, Any]) -> str:
    mark = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("mtime") or info.get("created")
    return f"{info['size']}-{mark}"


def read_units(files: list[tuple[str, int, str]]) -> list[ReadUnit]:
    """The pieces that workers read: ranges of plain files, compressed files whole."""
    units = []
    for url, size_bytes, _ in files:
        if _is_compressed(url) or size_bytes <= UNIT_BYTES:
            units.append(ReadUnit(url=url))
        else:
            starts = range(0, size_bytes, UNIT_BYTES)
            units += [ReadUnit(url=url, start=start, end=start + UNIT_BYTES) for start in starts]
    return units


def read_documents(unit: ReadUnit, config: SourceConfig) -> Iterator[Document | Quarantined]:
    """Every record of the unit, as a document or in quarantine with the reason.

    Raises:
        MillError: the file can't be read to its end (absent, a broken gzip or zstd stream); names it.
    """
    fs, path = shard_io.filesystem(unit.url)
    try:
        with fs.open(path, "rb", block_size=READ_BLOCK_BYTES) as raw, _decompressed(raw, unit.url) as stream:
            for origin, line in _lines(stream, unit, config.max_document_bytes):
                if line is None:
                    detail = f"record longer than source.max_document_bytes={config.max_document_bytes}"
                    yield Quarantined(stage="score", origin=origin, reason="too_long", detail=detail)
                elif line.strip():
                    yield parse_json_line(line, origin, config)
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"cannot read {unit.url}: {error}") from error


def _is_compressed(url: str) -> bool:
    return posixpath.splitext(url)[1] in COMPRESSIONS


def _decompressed(raw: IO[bytes], url: str) -> IO[bytes]:
    # Arrow's decompressor: the zstandard package takes a stream cut short for a complete one.
    codec = COMPRESSIONS.get(posixpath.splitext(url)[1])
    return raw if codec is None else pa.CompressedInputStream(raw, codec)


def _lines(stream: IO[bytes], unit: ReadUnit, max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    """(origin, line) pairs; a line over `max_bytes` comes as None and is skipped without being held."""
    position = 0
    if unit.start:
        # One byte back: a line that begins exactly at `start` is this unit's, and then that byte is its newline.
        stream.seek(unit.start - 1)
        position = unit.start - 1
    reader = io.BufferedReader(stream, READ_BLOCK_BYTES) if not hasattr(stream, "peek") else stream  # type: ignore[type-var]
    if unit.start:
        position += _skip_line(reader)
    number = 0
    while unit.end is None or position < unit.end:
        line: bytes | None = reader.readline(max_bytes + 1)
        if not line:
            return
        number += 1
        origin = f"{unit.url}:{number}" if unit.start == 0 else f"{unit.url}@{position}"
        position += len(line)
        if len(line) > max_bytes and not line.endswith(b"\n"):
            position += _skip_line(reader)
            line = None
        yield origin, line


def _skip_line(reader: IO[bytes]) -> int:
    skipped = 0
    while chunk := reader.readline(READ_BLOCK_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def parse_json_line(line: bytes, origin: str, config: SourceConfig) -> Document | Quarantined:
    """One line of JSON as a document, or in quarantine: invalid_utf8, malformed_json, missing_text, empty, ..."""

    def refuse(reason: str, detail: str) -> Quarantined:
        excerpt = line[:EXCERPT_BYTES].decode(errors="backslashreplace")
        return Quarantined(stage="score", origin=origin, reason=reason, detail=detail, excerpt=excerpt)

    try:
        line.decode()
        record = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        return refuse("invalid_utf8", str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        return refuse("malformed_json", str(error))
    if not isinstance(record, dict):
        return refuse("malformed_json", f"the line holds {type(record).__name__}, not an object")
    return document_of(record, origin, config, refuse)


def document_of(record: Mapping[str, Any], origin: str, config: SourceConfig, refuse: Any) -> Document | Quarantined:
    """A record of named fields as a document, or what `refuse(reason, detail)` makes of it."""
    text = record.get(config.text_field)
    if text is None:
        return refuse("missing_text", f"no field {config.text_field!r}; the record has {sorted(record)[:20]}")
    if not isinstance(text, str):
        return refuse("text_not_string", f"field {config.text_field!r} is {type(text).__name__}")
    if not text:
        return refuse("empty", f"field {config.text_field!r} is empty")
    if config.id_field is None:
        doc_id: Any = content_id(text)
    else:
        doc_id = record.get(config.id_field)
        if not isinstance(doc_id, str | int) or isinstance(doc_id, bool) or doc_id == "":
            return refuse("missing_id", f"field {config.id_field!r} is {doc_id!r}, not a string or an integer")
    metadata = {name: record[name] for name in config.metadata_fields if name in record}
    return Document(
        doc_id=str(doc_id),
        text=text,
        origin=origin,
        metadata=json.dumps(metadata, ensure_ascii=False, sort_keys=True) if metadata else None,
    )
