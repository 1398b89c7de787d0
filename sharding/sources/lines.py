"""Lines of plain and compressed files, in byte ranges, without ever holding a line over the limit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa

from sharding import storage
from sharding.sources.units import ReadUnit, compression_of

READ_BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
def open_text(url: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file."""
    fs, path = storage.filesystem(url)
    codec = compression_of(url)
    with fs.open(path, "rb", block_size=READ_BLOCK_BYTES) as raw:
        # Arrow's decompressor: the zstandard package takes a stream cut short for a complete one.
        yield raw if codec is None else pa.CompressedInputStream(raw, codec)


def lines(stream: IO[bytes], start: int, end: int | None, max_bytes: int) -> Iterator[Line]:
    """The lines that begin at byte `start` or later; one over `max_bytes` comes without its data.

    They go on past `end`, for the caller to stop; but where no line begins in [start, end) there are none. A byte order
    mark at the beginning of the file is left out.
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
            yield Line(begin, number, data.removeprefix(BYTE_ORDER_MARK) if begin == 0 else data)


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
