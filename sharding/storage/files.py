"""Files on any fsspec store: whole or absent.

Every durable result of the mill goes through `publish`: the bytes are written beside their place (or locally, for an
object store) and appear under their final name only when they are complete. Arrow itself detects next to nothing: a
flipped bit in a zstd buffer mostly loads silently wrong, so the sha256 and row count of `FileEntry` are the guard.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError, RequestError
from sharding.records.base import Record
from sharding.storage.private import private_folder
from sharding.storage.retries import patiently

logger = logging.getLogger(__name__)

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


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path in it. A local path may hold "::", which in fsspec joins stores.

    Raises:
        RequestError: the store's protocol is unknown, or its package is not installed.
    """
    if "://" not in url or url.startswith("file://"):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(url)
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.split("://")[0]
        extra = EXTRA_FOR_PROTOCOL.get(protocol)
        way_out = f"install it with: pip install 'thoughtmill[{extra}]'" if extra else f"({error})"
        raise RequestError(f"{url}: no filesystem for {protocol}://: {way_out}") from error


def join(base: str, *parts: str) -> str:
    """`base` and `parts` as one URL or path."""
    return posixpath.join(base.rstrip("/"), *parts)


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
            _discard(temporary)


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
    for left in Path(path).glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if _TEMPORARY.search(left.name) and time.time() - left.lstat().st_mtime > LEFT_BEHIND_S:
                _discard(left)


def _discard(temporary: Path) -> None:
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


def read_bytes(url: str) -> bytes:
    """The content of `url`.

    Raises:
        MillError: the file is absent or unreadable; names it.
    """
    fs, path = filesystem(url)
    return patiently("read", url, fs, lambda: fs.cat_file(path))


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


def list_names(folder: str) -> list[str]:
    """The names directly in a folder as the store has them now, sorted; none where there is no folder.

    What a user wrote is never taken as a pattern: a folder may be called "out[1]".

    Raises:
        MillError: the store can't be listed; names the folder.
    """
    fs, path = filesystem(folder)

    def ask() -> list[str]:
        fs.invalidate_cache()
        try:
            return list(fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    return sorted(posixpath.basename(name.rstrip("/")) for name in patiently("list", folder, fs, ask))


def remove(url: str) -> None:
    """Delete a file if it is there.

    Raises:
        MillError: the store refused; names the file.
    """
    fs, path = filesystem(url)
    # One that was there before a call that failed may be gone at the next: that is what was asked for.
    patiently("remove", url, fs, lambda: _remove(fs, path))


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)
