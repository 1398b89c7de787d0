"""The files that a path names, be it a file, a folder or a glob, in any store; nothing is left out in silence."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from sharding.errors import MillError, RequestError, restated
from sharding.sources.config import Source
from sharding.sources.places import locate, raise_outage, url_of
from sharding.sources.saved import saved_files
from sharding.sources.tables import table_among, table_around, way_out
from sharding.sources.walking import Found, below, files_at, matching
from sharding.storage.retries import patiently

logger = logging.getLogger(__name__)

MAX_FOLDERS = 20
"""Of the folders that a glob leads to so many are asked for the table that they belong to."""

FOLDER_MARKS = ("/", "_$folder$")
"""How the names of empty keys end that tools leave in object stores to say that a folder is there."""


def opened(source: Source) -> tuple[AbstractFileSystem, str]:
    """The store of a source and the path in it.

    Raises:
        RequestError: there is no such store.
        MillError: it can't be opened.
    """
    try:
        return locate(source.config.path)
    except MillError as error:
        raise restated(error, f"{source.key}.path: {error}") from error


def list_files(source: Source) -> list[tuple[str, Mapping[str, Any]]]:
    """The files that the path names, as (path in the store, the store's facts), sorted.

    Raises:
        RequestError: nothing is there, something there can't be followed, or it is a table.
        MillError: the store can't be reached.
    """
    path_given = source.config.path
    fs, path = opened(source)
    wildcard = any(character in path for character in "*?[")
    # A file or folder may have the name of a pattern; then it is the one that is meant.
    root = _root_of(path) if wildcard else path
    asks_for_hidden = wildcard and _hidden(path, root)

    def is_wanted(name: str) -> bool:
        return asks_for_hidden or name == path or not _hidden(name, root)

    def ask() -> tuple[bool, Found]:
        fs.invalidate_cache()
        try:
            here = files_at(fs, path)
        except FileNotFoundError as error:
            raise_outage(error)
            return False, matching(fs, path, root, is_wanted) if wildcard else Found()
        return here is None, below(fs, path, is_wanted) if here is None else here

    try:
        # Not fs.isdir: it takes a store that fails for one that has no such folder.
        is_folder, found = patiently("list", path_given, fs, ask)
        if is_folder and source.config.format in (None, "arrow"):
            saved = saved_files(fs, path, source)
            if saved is not None:
                return saved
        if is_folder or (wildcard and path not in found.files):
            entered = [path] if is_folder else [root, *dict.fromkeys(map(posixpath.dirname, sorted(found.files)))]
            table = table_among([*found.files, *found.marks]) or table_around(fs, entered[:MAX_FOLDERS])
            if table is not None:
                raise RequestError(f"{source.key}.path: {way_out(*table)}")
    except RequestError:
        raise
    except MillError as error:
        raise MillError(f"{source.key}.path: {error}") from error
    for name, why in found.unreadable.items():
        raise RequestError(
            f"{source.key}.path: {url_of(fs, name, path_given)} {why}: mend it, or leave it out by a glob"
        )
    folders = [name for name, info in found.files.items() if info["type"] == "directory" and is_wanted(name)]
    if folders and "**" not in path:
        logger.warning(
            "%s.path: %s matches and is a folder (of %d): what is in it is left out; name it as a source of its own",
            source.key,
            url_of(fs, min(folders), path_given),
            len(folders),
        )
    names = sorted(name for name, info in found.files.items() if _is_file(name, info) and is_wanted(name))
    if not names:
        raise RequestError(
            f"{source.key}.path: nothing matches {path_given!r}: name an existing file, folder or glob; a dataset "
            "on the hub needs format: huggingface"
        )
    return [(name, found.files[name]) for name in names]


def _is_file(name: str, info: Mapping[str, Any]) -> bool:
    """Whether what a store lists is a file, and no mark that a folder is there, as tools leave in object stores."""
    return info["type"] == "file" and not (name.endswith(FOLDER_MARKS) and not info.get("size"))


def _root_of(pattern: str) -> str:
    """The folders of a glob before its first wildcard."""
    first = min(pattern.find(character) for character in "*?[" if character in pattern)
    return posixpath.dirname(pattern[:first])


def _hidden(name: str, root: str) -> bool:
    """Whether a part of the name below `root` begins with a dot or an underscore: what other writers left there."""
    below = name[len(root) :] if name.startswith(root) else posixpath.basename(name)
    return any(part.startswith((".", "_")) for part in below.split("/"))
