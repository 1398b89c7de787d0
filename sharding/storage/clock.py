"""What time it is by the clock of a store: one clock for all machines that write there, whatever their own ones say.

Parts of the ledger carry the date of their writing in their names, and whoever looks for what is new goes by it. Two
machines may differ by hours, so they date by the store: a small file is written, the store says when, and from then on
this machine's monotonic clock goes on from there. So a clock that is set while a process works doesn't matter either.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import posixpath
import threading
import time
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sharding.storage.files import filesystem

logger = logging.getLogger(__name__)

AGAIN_S = 3600.0
"""A store is asked again after so long: monotonic clocks of machines run apart too, by seconds in a day."""

RETRY_S = 60.0
"""The same of a store that couldn't say; until then this machine's own clock counts."""

AGREED_S = 60.0
"""Clocks that differ by less are taken to be one: stores date by whole seconds."""

_lock = threading.Lock()
_known: dict[str, tuple[float, float]] = {}
"""Folder → Unix time less the monotonic clock, and until when on that clock it holds."""


def now_s(folder: str) -> float:
    """The Unix time in seconds, by the store that a folder is in.

    Asked seldom, by a file that is written into the folder and removed; where it isn't there yet, into the one above.
    Never fails: where the store refuses, or doesn't say when files were written, it is this machine's time.
    """
    with _lock:
        ahead_s, until = _known.get(folder, (0.0, float("-inf")))
        if time.monotonic() >= until:
            try:
                ahead_s, lasts_s = _measured(folder), AGAIN_S
            except Exception as error:  # noqa: BLE001 - every store's client has errors of its own, and dates or none
                logger.info("%s doesn't say what time it is, so this machine's clock counts: %s", folder, error)
                ahead_s, lasts_s = time.time() - time.monotonic(), RETRY_S
            _known[folder] = ahead_s, time.monotonic() + lasts_s
        return ahead_s + time.monotonic()


def by_store(folder: str, at_s: float) -> float:
    """A Unix time of this machine's clock by that of a store; as it is where the two agree within a minute."""
    ahead_s = now_s(folder) - time.time()
    return at_s + ahead_s if abs(ahead_s) > AGREED_S else at_s


def now_ms(folder: str) -> int:
    """As `now_s`, in milliseconds."""
    return int(now_s(folder) * 1000)


def _measured(folder: str) -> float:
    """The Unix time by a store, less this machine's monotonic clock."""
    fs, path = filesystem(folder)
    if isinstance(fs, LocalFileSystem):
        path = str(next(place for place in (Path(path), *Path(path).parents) if place.is_dir()))
    probe = posixpath.join(path, f".clock.{uuid.uuid4().hex}.tmp")  # what a kill leaves of it, `files.sweep` removes
    began = time.monotonic()
    fs.pipe_file(probe, b"")
    written = (began + time.monotonic()) / 2
    try:
        return _modified(fs, probe) - written
    finally:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(probe)


def _modified(fs: fsspec.AbstractFileSystem, path: str) -> float:
    fs.invalidate_cache()
    at: datetime.datetime = fs.modified(path)
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()
