"""Shards of an object store on a disk of the machine that reads them: bounded, checked, shared by all its processes.

    s3://.../train-00003-of-00064.arrow
      └► .SHA256.SIZE.….tmp ─► SHA256.arrow ─► mapped, by any process
         being fetched         whole, and what the manifest says; the least recently used goes first

A file stands under the sha256 that its manifest gives it, so corpora share a folder and none is taken for another. Only
a whole file that has this hash gets its name, and every process compares it again when it maps it for the first time.
fsspec's own caching file systems (`filecache`, `simplecache`, `blockcache`) bound the age of files and not their bytes,
write under the final name, and compare nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from sharding.errors import MillError, RequestError
from sharding.records.types import FileEntry
from sharding.shards.recognition import WAY_OUT, note, what_is_wrong
from sharding.storage.files import Location, discard, filesystem
from sharding.storage.retries import patiently

logger = logging.getLogger(__name__)

DEFAULT_BYTES = 64 << 30
"""Of the cache; some hundred shards of a usual size."""

_WHOLE = re.compile(r"[0-9a-f]{64}\.arrow")
_BEGUN = re.compile(r"\.[0-9a-f]{64}\.(?P<size>\d+)\.[0-9a-f]{32}\.tmp")

_LOCKS = 64  # no more files are made than these; shards that share one are not fetched at the same time
_WAIT_S = 0.05
_FETCHES = 2  # of a shard that comes otherwise than its manifest says: a wire may have been the cause


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """A folder for shards that come from an object store. Any number of processes and threads may share it.

    Attributes:
        folder: on a local disk; `thoughtmill/shards` in $XDG_CACHE_HOME or ~/.cache when absent.
        max_bytes: of all files in it, those that are being fetched included. Files that readers have mapped when they
            are removed take their place until they are let go: two shards for each process that reads.
        prefetch_shards: how many of the next shards of the reading order are fetched before they are asked for; fewer
            where they wouldn't fit. 0 fetches none.

    Raises:
        RequestError: a number is out of range.
    """

    folder: Location | None = None
    max_bytes: int = DEFAULT_BYTES
    prefetch_shards: int = 2

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("prefetch_shards", 0)):
            if getattr(self, name) < least:
                raise RequestError(f"cache: {name} is {getattr(self, name)}, and at least {least} is needed")

    @property
    def place(self) -> Path:
        """The folder."""
        if self.folder is not None:
            return Path(self.folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thoughtmill" / "shards"

    def prefetched(self, largest: int) -> int:
        """How many shards of at most so many bytes are fetched ahead: beside them, two that are read have room.

        Raises:
            RequestError: not even one has room.
        """
        if largest > self.max_bytes:
            raise RequestError(
                f"cache: max_bytes is {self.max_bytes:,}, and a shard of this corpus has {largest:,}: give the cache "
                "room for four or more"
            )
        return max(0, min(self.prefetch_shards, self.max_bytes // max(1, largest) - 2))

    def path(self, entry: FileEntry) -> Path:
        """Where a shard is when it is here."""
        return self.place / f"{entry.sha256}.arrow"

    def buffer(self, url: str, entry: FileEntry) -> pa.Buffer:
        """The bytes of a shard, mapped from the cache; fetched first if they aren't there.

        Raises:
            MillError: the store refused for good, what it gave is not what the manifest says, or the disk is full.
        """
        path = self.path(entry)
        with self._errors(url):
            found = _mapped(path)
            if found is not None:
                if (problem := what_is_wrong(entry, found, path)) is None:
                    return found
                logger.warning("%s, the copy of %s, is damaged and fetched again: %s", path, url, problem)
                path.unlink(missing_ok=True)
        return self.fetch(url, entry)

    def fetch(self, url: str, entry: FileEntry) -> pa.Buffer:
        """Fetch a shard that isn't there; one process does, and others that want it meanwhile wait for it.

        Raises:
            MillError: see `buffer`.
        """
        path = self.path(entry)
        with self._errors(url), _locked(self._lock(entry)):
            if (found := _mapped(path)) is not None and found.size == entry.size_bytes:
                return found
            return self._fetch(url, entry, path)

    def fetch_ahead(self, url: str, entry: FileEntry) -> None:
        """Fetch a shard that isn't there, unless somebody is at it: then the next one is of more use.

        Raises:
            MillError: see `buffer`.
        """
        path = self.path(entry)
        with self._errors(url), _locked(self._lock(entry), wait=False) as free:
            if free and not path.exists():
                self._fetch(url, entry, path)

    def _lock(self, entry: FileEntry) -> Path:
        """The lock that whoever fetches a shard holds."""
        self.place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.place / f".lock-{int(entry.sha256[:8], 16) % _LOCKS:02d}"

    @contextlib.contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MillError(f"cannot keep {url} in {self.place}: {error.strerror or error}") from error

    def _fetch(self, url: str, entry: FileEntry, path: Path) -> pa.Buffer:
        fs, remote = filesystem(url)
        problem = None
        for _ in range(_FETCHES):
            with self._begun(entry) as temporary:
                patiently("fetch", f"{url} to {self.place}", fs, partial(fs.get_file, remote, str(temporary)))
                # Mapped before it has its name: another process may remove it in the next moment.
                found = _mapped(temporary) or pa.py_buffer(b"")
                if (problem := what_is_wrong(entry, found, None)) is None:
                    temporary.replace(path)
                    note(path, entry.sha256)
                    return found
        raise MillError(f"{url}: as it was fetched, {problem}: {WAY_OUT}")

    @contextlib.contextmanager
    def _begun(self, entry: FileEntry) -> Iterator[Path]:
        """A file to fetch to, with room for it; locked as long as its process lives, and gone when the block ends."""
        temporary = self.place / f".{entry.sha256}.{entry.size_bytes}.{uuid.uuid4().hex}.tmp"
        while True:
            with _locked(self.place / ".lock"):
                if self._make_room(entry.size_bytes):
                    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    break
            time.sleep(_WAIT_S)  # all the room is of shards that are being fetched
        try:
            yield temporary
        finally:
            discard(temporary)
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing isn't enough: a process forked meanwhile has it open too
            os.close(handle)

    def _make_room(self, size_bytes: int) -> bool:
        """Remove the least recently used shards until so many bytes have room; whether they have. Holds the lock."""
        whole: list[tuple[int, int, Path]] = []
        taken = 0
        for path in self.place.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _WHOLE.fullmatch(path.name):
                    found = path.lstat()
                    whole.append((found.st_atime_ns, found.st_size, path))
                elif begun := _BEGUN.fullmatch(path.name):
                    taken += 0 if _removed_if_left(path) else int(begun["size"])
        taken += sum(size for _, size, _ in whole)
        for _, size, path in sorted(whole):
            if taken + size_bytes <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            taken -= size
        return taken + size_bytes <= self.max_bytes


def _mapped(path: Path) -> pa.Buffer | None:
    """The bytes of a file of the cache, used now; None where there is none."""
    try:
        found = path.stat()
        # The time of access alone: by the time of change it is recognised.
        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        if found.st_size == 0:  # which can't be mapped
            return pa.py_buffer(b"")
        return pa.memory_map(str(path)).read_buffer()
    except FileNotFoundError:
        return None


def _removed_if_left(path: Path) -> bool:
    """Remove a file whose process was killed while it fetched; whether it was."""
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock between the threads and processes of this machine; without waiting, whether it is held."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
