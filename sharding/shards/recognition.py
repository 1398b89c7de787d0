"""Whether a shard is the one of its manifest, and which of its record batches is not. Under every reader of shards.

sha256 of the whole file    compared each time a shard is opened, read anew where the file isn't known to this process
CRC-32 of each batch        compared each time one is decoded; names the batch when the whole file is another
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from pathlib import Path

import pyarrow as pa

from sharding.errors import MillError
from sharding.records.types import FileEntry

_Identity = tuple[str, int, int, int, int]
"""Path, device, inode, size and time of change in ns: of a file that has them all unchanged the bytes are too."""

_recognised: dict[_Identity, str] = {}
_lock = threading.Lock()

WAY_OUT = "another corpus is in its place, or it is damaged; `thoughtmill verify` tells"


def recognise(url: str, entry: FileEntry, buffer: pa.Buffer, path: Path | None) -> None:
    """Refuse a file that is not the one of the manifest.

    Args:
        url: the shard, for the message.
        entry: what the manifest says of it.
        buffer: its bytes.
        path: where on a file system they are; None where they are in memory alone.

    Raises:
        MillError: its size or its sha256 is another; names the record batches in which it differs.
    """
    if (problem := what_is_wrong(entry, buffer, path)) is not None:
        raise MillError(f"{url}: {problem}: {WAY_OUT}")


def what_is_wrong(entry: FileEntry, buffer: pa.Buffer, path: Path | None) -> str | None:
    """How a file differs from what its manifest says of it; None where it doesn't. Arguments as for `recognise`."""
    if buffer.size != entry.size_bytes:
        return f"{buffer.size:,} bytes, its manifest says {entry.size_bytes:,}"
    identity = None if path is None else _identity(path)
    with _lock:
        known = _recognised.get(identity) if identity else None
    if known is None:
        known = hashlib.sha256(buffer).hexdigest()
        # Only of a file that stood still while it was read.
        if path is not None and identity == _identity(path):
            note(path, known)
    if known == entry.sha256:
        return None
    return f"its bytes are not those of its manifest{_where(entry, buffer)}"


def note(path: Path, sha256: str) -> None:
    """Remember the sha256 of a file that this process has just read or written whole."""
    identity = _identity(path)
    if identity is not None:
        with _lock:
            _recognised[identity] = sha256


def is_batch(entry: FileEntry, buffer: pa.Buffer, batch: int) -> bool:
    """Whether the bytes of a record batch, from 0, are those of the manifest; True where it doesn't say."""
    if not entry.batches:
        return True
    start = entry.batches[batch - 1][0] if batch else 0
    stop, crc32 = entry.batches[batch]
    return zlib.crc32(memoryview(buffer)[start:stop]) == crc32


def _where(entry: FileEntry, buffer: pa.Buffer) -> str:
    wrong = [batch for batch in range(len(entry.batches)) if not is_batch(entry, buffer, batch)]
    if not wrong or len(wrong) == len(entry.batches) > 1:  # another shard altogether
        return ""
    shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return f", in record batch {shown} of {len(entry.batches)}"


def _identity(path: Path) -> _Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - behind links, as it is mapped
    except FileNotFoundError:
        return None
    return str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
