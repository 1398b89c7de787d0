"""A file whose size and sha256 are known when it is published: what a manifest says of it."""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from sharding.records.types import FileEntry
from sharding.storage.files import publish


class HashedFile:
    """A binary file that knows the size and the sha256 of what was written to it.

    Attributes:
        size_bytes: of all that was written.
        crc32: of what was written since it was last set to 0; None: it isn't wanted.
    """

    closed = False  # Arrow asks

    def __init__(self, name: str, out: IO[bytes]) -> None:
        self._name, self._out = name, out
        self._sha = hashlib.sha256()
        self.size_bytes = 0
        self.crc32: int | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or the bytes of a contiguous array."""
        view = memoryview(data).cast("B")
        self._sha.update(view)
        if self.crc32 is not None:
            self.crc32 = zlib.crc32(view, self.crc32)
        self._out.write(view)
        self.size_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        """Nothing: the file is closed when it is published."""

    def entry(self, *, rows: int, tokens: Mapping[str, int] | None = None) -> FileEntry:
        """What is to be said of the file as it is now."""
        return FileEntry(
            name=self._name,
            size_bytes=self.size_bytes,
            sha256=self._sha.hexdigest(),
            rows=rows,
            tokens=dict(sorted((tokens or {}).items())),  # as JSON gives it back: entries are compared as bytes
        )


def holds(data: Any, entry: FileEntry) -> bool:
    """Whether bytes, such as those of an Arrow buffer, are the ones that an entry is of."""
    return memoryview(data).nbytes == entry.size_bytes and hashlib.sha256(data).hexdigest() == entry.sha256


@contextlib.contextmanager
def publish_hashed(url: str, name: str | None = None) -> Iterator[HashedFile]:
    """A file to write: there whole when the block ends, absent when it raises.

    Args:
        url: where it goes.
        name: what its entry calls it; the last part of `url` when absent.

    Raises:
        MillError: the store refused; names the file.
    """
    with publish(url) as out:
        yield HashedFile(name or posixpath.basename(url), out)
