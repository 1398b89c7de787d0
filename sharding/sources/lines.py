"""Lines of plain and compressed files, in byte ranges, without ever holding a line over the limit."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa

from sharding.errors import RequestError
from sharding.sources.line_looks import has_cr_line_ends
from sharding.sources.looks import (
    BYTE_ORDER_MARK,
    HEAD_BYTES,
    MAX_WRAPPINGS,
    compression_in,
    kind_of,
    refusal,
)
from sharding.sources.places import open_file
from sharding.sources.units import ReadUnit

READ_BLOCK_BYTES = 1 << 20

_MARKS = re.compile(rb"^(?:" + BYTE_ORDER_MARK + rb")+", re.MULTILINE)


class Line(NamedTuple):
    """One line.

    Attributes:
        start: byte offset in the (decompressed) file.
        number: counted from 1 in the range.
        data: with its line end; None when it is over the limit.
    """

    start: int
    number: int
    data: bytes | None


@contextlib.contextmanager
def open_text(url: str, format: str = "jsonl", *, in_lines: bool = True) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, compressed or not whatever its name.

    Args:
        url: the file.
        format: what its reader takes.
        in_lines: whether it is read line by line.

    Raises:
        RequestError: its first bytes say that it is something else; names it and the way out.
    """
    with open_file(url, block_size=READ_BLOCK_BYTES) as raw:
        stream: Any = raw
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        for _ in range(MAX_WRAPPINGS):
            if (codec := compression_in(head)) is None:
                break
            # Arrow's zstd: the zstandard package takes a stream cut short for a complete one. Python's gzip: it takes
            # the zero bytes behind a stream for the padding they are.
            inner = (
                gzip.GzipFile(fileobj=stream, mode="rb") if codec == "gzip" else pa.CompressedInputStream(stream, codec)
            )
            stream = io.BufferedReader(inner, READ_BLOCK_BYTES)
            head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
        if compression_in(head) is not None:
            raise RequestError(f"{url} is compressed more than {MAX_WRAPPINGS} times over: unpack it")
        if refused := refusal(kind_of(head), url, format):
            raise RequestError(refused)
        if format == "text" and in_lines and has_cr_line_ends(head):
            raise RequestError(f"{url} has CR line ends, so that it is one line: convert it: tr '\\r' '\\n'")
        yield stream


def lines(stream: IO[bytes], start: int, end: int | None, max_bytes: int) -> Iterator[Line]:
    """The lines that begin at byte `start` or later; one over `max_bytes` comes without its data.

    They go on past `end`, for the caller to stop; but where no line begins in [start, end) there are none. A byte order
    mark at the beginning of a line is left out: it was that of a file which was joined to others.
    """
    position = 0
    if start:
        # One byte back: where a line begins exactly at `start`, that byte ends the one before.
        stream.seek(start - 1)
        position = start - 1
    reader: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream, READ_BLOCK_BYTES)
    if start:
        position += _skip_line(reader, None if end is None else end - position)
        if end is not None and position >= end:
            return
    number = 0
    while data := reader.readline(max_bytes + 1):
        number += 1
        begin = position
        position += len(data)
        if len(data) > max_bytes and not data.endswith(b"\n"):
            position += _skip_line(reader, None)
            yield Line(begin, number, None)
        else:
            yield Line(begin, number, without_marks(data))


def without_marks(data: bytes) -> bytes:
    """Lines without the byte order marks before them."""
    return _MARKS.sub(b"", data) if BYTE_ORDER_MARK in data else data


def origin_of(unit: ReadUnit, line: Line) -> str:
    """Where a line is: its number, or its byte offset where the lines before it were read by others."""
    return f"{unit.url}:{line.number}" if unit.start == 0 else f"{unit.url}@{line.start}"


def _skip_line(reader: IO[bytes], enough: int | None) -> int:
    """Reads on to the next line, or past `enough` bytes; how many bytes that took."""
    skipped = 0
    while (enough is None or skipped < enough) and (chunk := reader.readline(READ_BLOCK_BYTES)):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped
