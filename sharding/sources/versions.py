"""What tells a file of a source from another under its name: the store's checksum, or a glance at its two ends.

Size and time of change are not enough: both stay as they were when a file is replaced by one of equal length and the
time is put back, as `cp -p`, `rsync` and archives do. Object stores say a checksum with every listing. Of other files
the first and the last bytes are read, so few that a listing of a million files stays a matter of minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem

from sharding.hashing import fingerprint
from sharding.storage.retries import patiently

CHECKSUMS = ("md5Hash", "crc32c", "ETag", "etag", "blob_id")
"""Names under which stores list what changes with a file's content."""

GLANCE_BYTES = 64 << 10
"""So much is read of each end of a file,"""

MIN_GLANCE_BYTES = 512
LISTING_BYTES = 1 << 30
"""and so much in all, unless that would be less than `MIN_GLANCE_BYTES` of each."""

_THREADS = 16


def versions_of(fs: AbstractFileSystem, files: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The version of each file: changes when its content does, as far as the store or a glance tells.

    Args:
        fs: their store.
        files: (path in the store, the store's facts) of each.

    Raises:
        MillError: a file can't be read.
    """
    glance = max(MIN_GLANCE_BYTES, min(GLANCE_BYTES, LISTING_BYTES // (2 * max(1, len(files)))))

    def version(file: tuple[str, Mapping[str, Any]]) -> str:
        path, info = file
        mark = next((info[name] for name in CHECKSUMS if info.get(name)), None)
        if mark is None:
            mark = f"{info.get('mtime') or info.get('created')}-{_ends(fs, path, int(info['size']), glance)}"
        return f"{info['size']}-{mark}"

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(version, files))


def _ends(fs: AbstractFileSystem, path: str, size_bytes: int, glance: int) -> str:
    """A digest of the first and the last bytes of a file."""
    url = fs.unstrip_protocol(path)
    ends = ((0, min(glance, size_bytes)), (max(glance, size_bytes - glance), size_bytes))
    return fingerprint(
        (
            patiently("read", url, fs, partial(fs.cat_file, path, start=start, end=end))
            for start, end in ends
            if start < end
        ),
        size_bytes=8,
    )
