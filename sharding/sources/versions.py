"""What tells a file of a source from another under its name: its content, wherever that can be had.

Size and time of change say too little and too much: both stay as they were when a file is replaced by one of equal
length and the time is put back, as `cp -p`, `rsync` and archives do, and the time changes where a file is only touched
or copied. Object stores say a checksum with every listing. Short files are read; longer ones on a local disk too, once
for as long as they stay as they are (`sharding.models.store.content_digest`). Of what is left, long files of stores
without checksums and very many long ones, the two ends and the time of change tell, so that a listing of a million
files stays a matter of minutes.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.models.store import content_digest
from sharding.sources.places import locate
from sharding.storage.retries import patiently

CHECKSUMS = ("md5Hash", "crc32c", "ETag", "etag", "blob_id")
"""Names under which stores list what changes with a file's content."""

GLANCE_BYTES = 64 << 10
"""So much is read of each end of a file,"""

MIN_GLANCE_BYTES = 512
LISTING_BYTES = 1 << 30
"""and so much in all, unless that would be less than `MIN_GLANCE_BYTES` of each."""

MAX_READ_WHOLE = 10_000
"""So many long files of a local listing are read whole, and what they hold is remembered."""

_THREADS = 16
_PIECE_BYTES = 1 << 20


def versions_of(fs: AbstractFileSystem, files: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The version of each file: changes when its content does, as far as the store or a glance tells.

    Args:
        fs: their store.
        files: (path in the store, the store's facts) of each.

    Raises:
        MillError: a file can't be read.
    """
    glance = max(MIN_GLANCE_BYTES, min(GLANCE_BYTES, LISTING_BYTES // (2 * max(1, len(files)))))
    long = sum(int(info["size"]) > 2 * glance for _, info in files)
    read_whole = isinstance(fs, LocalFileSystem) and long <= MAX_READ_WHOLE

    def version(file: tuple[str, Mapping[str, Any]]) -> str:
        path, info = file
        size_bytes = int(info["size"])
        if has_checksum(info):
            return seen(info)
        if size_bytes <= 2 * glance:  # the two ends are the file
            return f"{size_bytes}-{_ends(fs, path, size_bytes, glance)}"
        if read_whole:
            return (
                f"{size_bytes}-{patiently('read', fs.unstrip_protocol(path), fs, partial(content_digest, Path(path)))}"
            )
        return f"{seen(info)}-{_ends(fs, path, size_bytes, glance)}"

    with ThreadPoolExecutor(num_threads(fs)) as pool:
        return list(pool.map(version, files))


def versions_of_beginning(fs: AbstractFileSystem, path: str, size_bytes: int) -> set[str]:
    """The versions that `versions_of` may have told of a file when it was no more than its first bytes.

    None that is a store's checksum, or goes by a time, is among them.

    Args:
        size_bytes: how many bytes it was.

    Raises:
        MillError: the file can't be read.
    """

    def digest() -> str:
        with fs.open(path, "rb") as file:
            return fingerprint(_beginning(file, size_bytes))

    url = fs.unstrip_protocol(path)
    versions = {f"{size_bytes}-{patiently('read', url, fs, digest)}"}
    if size_bytes <= 2 * GLANCE_BYTES:
        versions.add(f"{size_bytes}-{_ends(fs, path, size_bytes, max(MIN_GLANCE_BYTES, size_bytes))}")
    return versions


def _beginning(file: Any, size_bytes: int) -> Iterator[bytes]:
    """The first bytes of a file, a piece at a time."""
    while size_bytes > 0 and (piece := file.read(min(size_bytes, _PIECE_BYTES))):
        size_bytes -= len(piece)
        yield piece


def has_checksum(info: Mapping[str, Any]) -> bool:
    """Whether the store's facts about a file change with its content."""
    return any(info.get(name) for name in CHECKSUMS)


def num_threads(fs: AbstractFileSystem) -> int:
    """How many may read from a store at a time: an archive's members are found by one reader that all would move."""
    return 1 if isinstance(fs, AbstractArchiveFileSystem) else _THREADS


def check_unchanged(url: str, version: str) -> None:
    """Compare a file with what was listed of it, without reading it again.

    Args:
        url: the file.
        version: as `seen` told it; "" for a file that wasn't listed.

    Raises:
        MillError: it is another by now; names it.
    """
    if not version:
        return
    fs, path = locate(url)
    if isinstance(fs, CachingFileSystem):
        return  # what is read is its copy

    def ask() -> str:
        fs.invalidate_cache()
        try:
            return seen(fs.info(path))
        except FileNotFoundError:
            return "gone"

    now = patiently("look up", url, fs, ask)
    if version != now:
        raise MillError(
            f"{url} changed while it was read (its size and time, or checksum, were {version}, and are {now}): run "
            "again when nothing writes to it"
        )


def seen(info: Mapping[str, Any]) -> str:
    """What a store tells of a file without reading: the size, and a checksum or else a time."""
    mark = next((info[name] for name in CHECKSUMS if info.get(name)), None)
    when = info.get("mtime") or info.get("created")
    # A store may tell the same time as a date in one call and as seconds in another.
    return f"{info['size']}-{mark or (when.timestamp() if isinstance(when, datetime.datetime) else when)}"


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
