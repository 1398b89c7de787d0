"""How much an Arrow stream unpacks to, read off its messages before any is unpacked: a kilobyte may claim terabytes.

Under `sharding.storage.arrow_files`. Arrow's own reader takes the sizes that a compressed batch states at their word.
The sizes stand in the messages' flatbuffers; which fields they are is in Arrow's Message.fbs.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

MAX_BATCH_BYTES = 256 << 20
"""Of a batch once it is unpacked. The mill writes batches of 2 MiB and one record more."""

MAX_BATCH_ROWS = 1 << 20

_HEADER = 2  # of Message
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3  # of RecordBatch


@contextlib.contextmanager
def arrow_errors() -> Iterator[None]:
    """What a stream can raise beside Arrow's own errors, such as for names that are no UTF-8, as one of those."""
    try:
        yield
    except (OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise pa.ArrowInvalid(f"it is no stream of records: {error}") from error


def check_messages(data: pa.Buffer | bytes) -> None:
    """Refuse an Arrow stream with a batch that unpacks to more than any that the mill writes.

    Args:
        data: the whole stream.

    Raises:
        pa.ArrowException: there is one, or it is no such stream.
    """
    for message in pa.ipc.MessageReader.open_stream(data):
        if message.type == "schema":
            continue
        if message.type != "record batch":
            raise pa.ArrowInvalid(f"it holds a {message.type}, which the mill doesn't write")
        try:
            rows, size_bytes = _unpacked(memoryview(message.metadata), memoryview(message.body or b""))
        except struct.error as error:
            raise pa.ArrowInvalid(f"the head of a record batch leads out of it: {error}") from error
        if not 0 <= rows <= MAX_BATCH_ROWS or size_bytes > MAX_BATCH_BYTES:
            raise pa.ArrowInvalid(
                f"a record batch of {rows:,} rows and {size_bytes:,} bytes; allowed: {MAX_BATCH_ROWS:,} rows and "
                f"{MAX_BATCH_BYTES:,} bytes"
            )


def _unpacked(head: Any, body: Any) -> tuple[int, int]:
    """Rows of a record batch, and bytes of its buffers once they are unpacked."""

    def number(kind: str, at: int, of: Any = head) -> int:
        return struct.unpack_from(f"<{kind}", of, at)[0]

    def field(table: int, index: int) -> int | None:
        """Where a field of a table is; None where it has its default."""
        vtable = table - number("i", table)
        at = number("H", vtable + 4 + 2 * index) if 4 + 2 * index < number("H", vtable) else 0
        return table + at if at else None

    def behind(at: int | None) -> int:
        if at is None:
            raise struct.error("a field is missing")
        return at + number("I", at)

    batch = behind(field(number("I", 0), _HEADER))
    length, buffers = field(batch, _LENGTH), behind(field(batch, _BUFFERS))
    packed = field(batch, _COMPRESSION) is not None
    size_bytes = 0
    for index in range(number("I", buffers)):
        offset, size = number("q", buffers + 4 + 16 * index), number("q", buffers + 12 + 16 * index)
        states = number("q", offset, body) if packed and size >= 8 else -1
        size_bytes += size if states == -1 else abs(states)
    return number("q", length) if length else 0, size_bytes
