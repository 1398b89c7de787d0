"""The files below a local folder, links followed: each folder once, and what can't be followed by name.

Listings of `fsspec` leave out what is neither a file nor a folder by itself, so a folder of links is an empty one to
them. A link to what is read under its own name anyway adds nothing, and a circle of links is one of those.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from sharding.sources.tables import MARKS
from sharding.storage import EXTRA_FOR_PROTOCOL

logger = logging.getLogger(__name__)

_KINDS = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(kw_only=True)
class Found:
    """What is below a folder.

    Attributes:
        files: path → the store's facts.
        unreadable: path → why it can't be followed or read.
        marks: paths of folders that tell a table, whose files are not all its own: see `sharding.sources.tables`.
    """

    files: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)


def walk(folder: str, is_wanted: Callable[[str], bool], glob: Glob | None = None) -> Found:
    """The files below a local folder.

    Args:
        folder: where to begin.
        is_wanted: whether what has this path may be meant; what isn't is not looked at.
        glob: what the files have to match.
    """
    found = Found()
    own: set[tuple[int, int]] = set()
    linked: list[tuple[str, os.stat_result]] = []
    # Of two ways into a folder on which the same names below it are meant one is enough: so circles end.
    listed: set[tuple[int, int, frozenset[int]]] = set()
    # What stands in folders themselves goes before what links lead to: then a link to it is known to add nothing.
    waiting, through_links = deque([folder]), deque[str]()
    while waiting or through_links:
        is_own = bool(waiting)
        here = waiting.popleft() if is_own else through_links.popleft()
        state = glob.state(here) if glob else frozenset({0})
        try:
            status = Path(here).stat()
            key = (status.st_dev, status.st_ino, state)
            if key in listed:
                logger.warning("%s leads to a folder that is read already: left out", here)
                continue
            listed.add(key)
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable[here] = _reason(error)
            continue
        for entry in entries:
            if entry.name in MARKS:
                found.marks.append(entry.path + "/")
            leads_on = is_wanted(entry.path) and (glob is None or bool(glob.state(entry.path)))
            is_meant = is_wanted(entry.path) and (glob is None or glob.matches(entry.path))
            try:
                status = entry.stat()
            except OSError as error:
                # Nobody knows whether it would be a file or a folder on the way to one.
                if is_meant or (leads_on and glob is not None and not glob.any_depth):
                    found.unreadable[entry.path] = _reason(error, entry.path)
                elif leads_on:
                    logger.warning("%s %s: left out", entry.path, _reason(error, entry.path))
                continue
            if stat.S_ISDIR(status.st_mode):
                if leads_on:
                    (waiting if is_own and not entry.is_symlink() else through_links).append(entry.path)
                elif is_meant:
                    found.files[entry.path] = {"type": "directory"}
            elif not is_meant:
                continue
            elif not stat.S_ISREG(status.st_mode):
                found.unreadable[entry.path] = f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a file"
            elif not is_own or entry.is_symlink():
                linked.append((entry.path, status))
            else:
                own.add((status.st_dev, status.st_ino))
                found.files[entry.path] = _facts(status)
    for path, status in linked:
        if (status.st_dev, status.st_ino) in own:
            logger.warning("%s leads to a file that is read under its own name: left out", path)
        else:
            found.files[path] = _facts(status)
    return found


class Glob:
    """A pattern, and how far a path leads into it.

    Args:
        pattern: the glob.
        root: the folders of it before its first wildcard.
    """

    def __init__(self, pattern: str, root: str) -> None:
        self.any_depth = "**" in pattern
        self._matches = re.compile(glob_translate(pattern)).match
        self._root = root
        parts = pattern[len(root) :].strip("/").split("/")
        self._parts = [part if part == "**" else re.compile(glob_translate(part)) for part in parts]

    def matches(self, path: str) -> bool:
        """Whether it is one that the pattern names."""
        return self._matches(path) is not None

    def state(self, folder: str) -> frozenset[int]:
        """Which parts of the pattern may come below a folder; none where nothing below it can match."""
        here = self._closed({0})
        for name in folder[len(self._root) :].strip("/").split("/") if len(folder) > len(self._root) else ():
            here = self._closed(
                {
                    number if part == "**" else number + 1
                    for number, part in ((n, self._parts[n]) for n in here if n < len(self._parts))
                    if isinstance(part, str) or part.match(name)
                }
            )
        return frozenset(number for number in here if number < len(self._parts))

    def _closed(self, numbers: set[int]) -> set[int]:
        # "**" may stand for no folder at all.
        for number in sorted(numbers):
            while number < len(self._parts) and self._parts[number] == "**":
                number += 1
                numbers = numbers | {number}
        return numbers


def below(fs: AbstractFileSystem, folder: str, is_wanted: Callable[[str], bool]) -> Found:
    """The files below a folder of any store; see `walk`."""
    return walk(folder, is_wanted) if isinstance(fs, LocalFileSystem) else Found(files=fs.find(folder, detail=True))


def files_at(fs: AbstractFileSystem, path: str) -> Found | None:
    """The file that a path names, or why it is none; None for a folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if isinstance(fs, LocalFileSystem):
        return _local_file(path)
    info = fs.info(path)
    if info["type"] == "directory":
        return None
    if _is_object_store(fs):
        # To an object store a name may be a file's and that of a folder as well.
        deeper = fs.find(path.rstrip("/") + "/", detail=True)
        return Found(files={path: info} | deeper) if info.get("size") else Found(files=deeper or {path: info})
    return Found(files={path: info})


def _local_file(path: str) -> Found | None:
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        if Path(path).is_symlink():
            return Found(unreadable={path: _reason(error, path)})
        raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG):
            return Found(unreadable={path: _reason(error, path)})
        status = None
    if status is None:  # behind the handler: what it caught isn't the cause of an outage
        raise FileNotFoundError(path)
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return Found(unreadable={path: f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a file"})
    return Found(files={path: _facts(status)})


def matching(fs: AbstractFileSystem, pattern: str, root: str, is_wanted: Callable[[str], bool]) -> Found:
    """The files that a glob names; local ones through links.

    Args:
        fs: the store.
        pattern: the glob.
        root: the folders of the glob before its first wildcard.
        is_wanted: see `walk`.
    """
    if isinstance(fs, LocalFileSystem):
        return walk(root or "/", is_wanted, Glob(pattern, root)) if Path(root or "/").is_dir() else Found()
    if not _is_object_store(fs):
        return Found(files=fs.glob(pattern, detail=True))
    if "**" in pattern:
        fits = Glob(pattern, root).matches
        return Found(files={name: info for name, info in fs.find(root, detail=True).items() if fits(name)})
    found = fs.glob(pattern, detail=True)
    # A name that is a file's and that of a folder as well is listed as the folder.
    folders = [name for name, info in found.items() if info["type"] == "directory"]
    return Found(files=found | {name: fs.info(name) for name in folders})


def _is_object_store(fs: AbstractFileSystem) -> bool:
    return not EXTRA_FOR_PROTOCOL.keys().isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _facts(status: os.stat_result) -> dict[str, Any]:
    return {"size": status.st_size, "mtime": status.st_mtime, "type": "file"}


def _reason(error: OSError, link: str | None = None) -> str:
    why = (error.strerror or str(error)).lower()
    if link is None or not Path(link).is_symlink():
        return f"can't be read: {why}"
    if error.errno == errno.ELOOP:
        return "is a link in a circle"
    return f"is a link to {str(Path(link).readlink())!r}, which can't be read: {why}"
