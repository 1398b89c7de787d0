"""Files on any fsspec store: whole or absent.

Every durable result of the mill goes through `publish`: the bytes are written beside their place (or locally, for an
object store) and appear under their final name only when they are complete. Arrow itself detects next to nothing: a
flipped bit in a zstd buffer mostly loads silently wrong, so the sha256 and row count of `FileEntry` are the guard.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import logging
import os
import posixpath
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError, RequestError
from sharding.records.base import Record
from sharding.storage.private import private_folder
from sharding.storage.retries import patiently

logger = logging.getLogger(__name__)

Location = str | os.PathLike[str]
"""A path or URL as callers give it; `os.fspath` makes it a string."""

R = TypeVar("R", bound=Record)
T = TypeVar("T")

LEFT_BEHIND_S = 3600.0
"""What nobody has written to for so long is of a writer that is gone."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")

_UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""How file systems that sync no folders say so."""

EXTRA_FOR_PROTOCOL = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
}

STORES = frozenset({"file", "hf", "memory", *EXTRA_FOR_PROTOCOL})
"""The protocols of the stores that outputs are kept in: of any other nothing is asked because a file says so."""


def filesystem(url: Location, *, chained: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path in it. A local path may hold "::".

    Args:
        url: a path or URL.
        chained: whether one store may be read through another ("::"), which can run what a file says: only where the
            config says so itself.

    Raises:
        RequestError: the store's protocol is unknown, its package is not installed, or stores are joined that mustn't.
    """
    url = os.fspath(url)
    if "://" not in url or url.startswith("file://"):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(url)
    if "::" in url and not chained:
        raise RequestError(f"{url}: stores joined by :: are not read: name a folder of one store")
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.split("://")[0]
        extra = EXTRA_FOR_PROTOCOL.get(protocol)
        way_out = f"install it with: pip install 'thoughtmill[{extra}]'" if extra else f"({error})"
        raise RequestError(f"{url}: no filesystem for {protocol}://: {way_out}") from error


def foreign(url: str, where: str) -> str:
    """A URL that a file of an output names, when it is one of a store that outputs are kept in.

    Args:
        url: what the file says; anyone may have written it.
        where: the file, for the message.

    Raises:
        MillError: it is of another kind of store, or of several joined.
    """
    protocol = url.split("://")[0] if "://" in url else "file"
    if protocol not in STORES or (protocol != "file" and "::" in url):
        allowed = ", ".join(sorted(STORES))
        raise MillError(f"{where} names the folder {url!r}: not a path, or a URL of one store of these: {allowed}")
    return url


def join(base: Location, *parts: str) -> str:
    """`base` and `parts` as one URL or path."""
    return posixpath.join(os.fspath(base).rstrip("/"), *parts)


@contextlib.contextmanager
def publish(url: str) -> Iterator[IO[bytes]]:
    """A binary file to write; it appears at `url` whole when the block ends, and not at all when the block raises.

    On a local disk the bytes go to a temporary name in the same folder, are synced and renamed, and so is the folder:
    a machine that loses power keeps what was said to be there. On an object store they go to a local temporary file
    and are uploaded in one call, which those stores make visible atomically.

    Raises:
        MillError: the store refused (disk full, no permission, ...); names the file.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    folder = posixpath.dirname(path)
    temporary: Path | None = None
    try:
        if local:
            new = [each for each in (Path(folder), *Path(folder).parents) if not each.exists()]
            Path(folder).mkdir(parents=True, exist_ok=True)
            temporary = Path(folder) / f".{posixpath.basename(path)}.{uuid.uuid4().hex}.tmp"
        else:
            folder = str(private_folder())
            sweep(folder)
            handle, name = tempfile.mkstemp(prefix=".", suffix=f".{uuid.uuid4().hex}.tmp", dir=folder)
            os.close(handle)
            temporary = Path(name)
        with temporary.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if local:
            temporary.replace(path)
            for each in (Path(folder), *(made.parent for made in new)):
                _sync_folder(each)
        else:
            patiently("write", url, fs, lambda: fs.put_file(str(temporary), path))
    except OSError as error:
        way = "" if local else f" by way of {folder}, which TMPDIR moves"
        raise MillError(f"cannot write {url}{way}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            discard(temporary)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise
    finally:
        os.close(handle)


def sweep(folder: str) -> None:
    """Remove what writers that were killed have left half-written in a local folder, an hour ago or longer."""
    fs, path = filesystem(folder)
    if not isinstance(fs, LocalFileSystem):
        return
    for left in [left for left in Path(path).glob(".*.tmp") if _TEMPORARY.search(left.name)]:
        with contextlib.suppress(FileNotFoundError):
            if _disk_time(path) - left.lstat().st_mtime > LEFT_BEHIND_S:
                discard(left)


def _disk_time(folder: str) -> float:
    """The Unix time by the disk of a folder, in seconds: of a disk that machines share it is not this one's.

    A disk that takes no file gives up none either: as if no time had passed.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as new:
            return os.fstat(new.fileno()).st_mtime
    except OSError:
        return 0.0


def discard(temporary: Path) -> None:
    """Remove a temporary file; that it stays must not hide why it wasn't wanted."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s can't be removed, and is of no use: %s", temporary, error.strerror or error)


def write_bytes(url: str, data: bytes) -> None:
    """Publish `data` at `url`."""
    with publish(url) as out:
        out.write(data)


def write_json(url: str, value: Any) -> None:
    """Publish `value` as indented JSON with sorted keys."""
    write_bytes(url, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_bytes(url: str, max_bytes: int | None = None) -> bytes:
    """The content of `url`.

    Args:
        max_bytes: refuse more.

    Raises:
        MillError: the file is absent, unreadable or longer than that; names it.
    """
    fs, path = filesystem(url)

    def read() -> bytes:
        check_regular(fs, path)
        if max_bytes is not None and (size_bytes := fs.size(path)) > max_bytes:
            raise MillError(f"cannot read {url}: {size_bytes:,} bytes, and such a file has at most {max_bytes:,}")
        data: bytes = fs.cat_file(path)
        return data

    return patiently("read", url, fs, read)


def check_regular(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Refuse a pipe or a device in a file's place: reading it may never end.

    Raises:
        OSError: it is one, or absent.
    """
    if isinstance(fs, LocalFileSystem):
        mode = os.stat(path).st_mode  # noqa: PTH116 - behind links: folders of the hub's cache consist of them
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(None, "it is a pipe or a device, not a file")


def exists(url: str) -> bool:
    """Whether a file is there, as the store says now (no cached listing).

    Raises:
        MillError: the store can't tell; names the file.
    """
    fs, path = filesystem(url)

    def ask() -> bool:
        # Not fs.exists: it takes any failure for an absence, and a stage would be made again.
        fs.invalidate_cache()
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    return patiently("look up", url, fs, ask)


def list_names(folder: str, prefixes: Sequence[str] = ()) -> list[str]:
    """The names directly in a folder as the store has them now, sorted; none where there is no folder.

    What a user wrote is never taken as a pattern: a folder may be called "out[1]".

    Args:
        prefixes: only names that begin with one of them; stores that can list by it are asked for no others.

    Raises:
        MillError: the store can't be listed; names the folder.
    """
    fs, path = filesystem(folder)

    def ask() -> list[str]:
        fs.invalidate_cache()
        try:
            if prefixes and _lists_by_prefix(fs):
                return [name for prefix in prefixes for name in fs.find(path, prefix=prefix)]
            return list(fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    found = patiently("list", folder, fs, ask)
    names = {posixpath.basename(name.rstrip("/")) for name in found}
    return sorted(name for name in names if not prefixes or name.startswith(tuple(prefixes)))


def _lists_by_prefix(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a store takes the beginning of names: those of fsspec say so by an argument of `find`."""
    return "prefix" in inspect.signature(getattr(fs, "_find", fs.find)).parameters


def remove(url: str, below: str) -> None:
    """Delete a file if it is there. A link is deleted, never what is behind it.

    Args:
        url: the file.
        below: the folder that it is removed from: an output, a target, a ledger. Nothing outside of it is removed.

    Raises:
        MillError: the way from there to the file leads through a link, or the store refused; names the file.
    """
    fs, path = filesystem(url)
    root = filesystem(below)[1].rstrip("/")
    *folders, name = path.removeprefix(f"{root}/").split("/")
    if not path.startswith(f"{root}/") or ".." in folders or name in ("", ".", ".."):
        raise MillError(f"cannot remove {url}: it is not in {below}")
    # One that was there before a call that failed may be gone at the next: that is what was asked for.
    if isinstance(fs, LocalFileSystem):
        patiently("remove", url, fs, lambda: _unlink(root or "/", folders, name))
    else:
        patiently("remove", url, fs, lambda: _remove(fs, path))


def _unlink(root: str, folders: list[str], name: str) -> None:
    """Step by step, so that no link is followed, whoever plants one meanwhile."""
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
        folder = opened.enter_context(_folder(root))
        for inner in folders:
            if stat.S_ISLNK(os.lstat(inner, dir_fd=folder).st_mode):
                raise OSError(None, f"{inner} is a link, and behind links nothing is removed")
            folder = opened.enter_context(_folder(inner, os.O_NOFOLLOW, folder))
        os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _folder(name: str, flags: int = 0, parent: int | None = None) -> Iterator[int]:
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)
