"""Plain text: a document is a file, a paragraph or a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source
from sharding.sources.documents import document_of, refuse, too_long
from sharding.sources.lines import READ_BLOCK_BYTES, Line, lines, open_text, origin_of, without_marks
from sharding.sources.units import ReadUnit


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The documents of the unit, as `source.document` says: blank lines and blank space between paragraphs are none."""
    is_whole = source.config.document in (None, "file")
    with open_text(unit.url, "text", in_lines=not is_whole) as stream:
        if is_whole:
            yield _file(stream, unit, source)
        elif source.config.document == "line":
            yield from _lines(stream, unit, source)
        else:
            yield from _paragraphs(stream, unit, source)


def _document(data: bytes, origin: str, source: Source) -> Document | Quarantined:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return refuse(origin, "invalid_utf8", str(error), data)
    return document_of({source.config.text_field: text}, origin, source, data)


def _file(stream: IO[bytes], unit: ReadUnit, source: Source) -> Document | Quarantined:
    limit = source.config.max_document_bytes
    data = bytearray()
    while len(data) <= limit and (block := stream.read(min(READ_BLOCK_BYTES, limit + 1 - len(data)))):
        data += block
    if len(data) > limit:
        return too_long(unit.url, source)
    return _document(without_marks(bytes(data)), unit.url, source)


def _lines(stream: IO[bytes], unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    for line in lines(stream, unit.start, unit.end, source.config.max_document_bytes):
        if unit.end is not None and line.start >= unit.end:
            return
        origin = origin_of(unit, line)
        if line.data is None:
            yield too_long(origin, source)
        elif line.data.strip():
            yield _document(_without_end(line.data), origin, source)


def _paragraphs(stream: IO[bytes], unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """A unit reaches from the first blank line that begins in it to the first that begins in the next one.

    Whether a line opens a paragraph depends on the line before, which may lie in another unit; where the first blank
    line at or after some byte is does not, so neighbours agree.
    """
    limit = source.config.max_document_bytes
    mine = unit.start == 0
    first: Line | None = None
    pieces: list[bytes] = []
    size = 0
    for line in lines(stream, unit.start, unit.end, limit):
        if not mine and unit.end is not None and line.start >= unit.end:
            return
        if line.data is None or line.data.strip():
            if mine:
                first = first or line
                size += limit + 1 if line.data is None else len(line.data)
                if size <= limit and line.data is not None:
                    pieces.append(line.data)
                else:
                    pieces.clear()
            continue
        if first is not None:
            yield _paragraph(first, pieces, size, unit, source)
            first, pieces, size = None, [], 0
        mine = True
        if unit.end is not None and line.start >= unit.end:
            return
    if first is not None:
        yield _paragraph(first, pieces, size, unit, source)


def _paragraph(first: Line, pieces: list[bytes], size: int, unit: ReadUnit, source: Source) -> Document | Quarantined:
    origin = origin_of(unit, first)
    if size > source.config.max_document_bytes:
        return too_long(origin, source)
    return _document(_without_end(b"".join(pieces)), origin, source)


def _without_end(data: bytes) -> bytes:
    return data.removesuffix(b"\n").removesuffix(b"\r")
