"""Tables of Delta, Iceberg and Hudi: folders of Parquet of which a log says which rows are still alive.

Read as the folder it is, such a table gives deleted rows back, and live ones as often as they were rewritten.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from functools import partial

from fsspec import AbstractFileSystem

from sharding import storage
from sharding.storage.retries import patiently

MARKS = {"_delta_log": "Delta", ".hoodie": "Hudi"}
"""Folders that are in a table's own, by the format that puts them there."""

WAYS_OUT = {
    "Delta": "deltalake: DeltaTable(...).to_pyarrow_dataset(), written with pyarrow.dataset.write_dataset",
    "Iceberg": "pyiceberg: table.scan().to_arrow(), written with pyarrow.parquet.write_table",
    "Hudi": 'Spark: spark.read.format("hudi").load(...).write.parquet(...)',
}

_MARKED = re.compile(rf"^(.*?)/?(?<![^/])({'|'.join(map(re.escape, MARKS))})(?:/|$)")
_ICEBERG = re.compile(r"^(.*?)/?(?<![^/])metadata/[^/]*\.metadata\.json(?:\.gz)?$")
_LEVELS_UP = 3
"""A table's partitions are folders below it; so far up is looked."""


def table_among(names: Iterable[str]) -> tuple[str, str] | None:
    """(folder, format) of a table whose files are among the names."""
    for name in names:
        if found := _MARKED.match(name):
            return found[1], MARKS[found[2]]
        if found := _ICEBERG.match(name):
            return found[1], "Iceberg"
    return None


def table_around(fs: AbstractFileSystem, folders: Iterable[str]) -> tuple[str, str] | None:
    """(folder, format) of the table that one of some folders is, or is a part of.

    Raises:
        MillError: the store can't tell.
    """
    seen: set[str] = set()
    for folder in folders:
        here, level = folder.rstrip("/"), 0
        while here and here not in seen and level <= _LEVELS_UP:
            seen.add(here)
            if kind := _kind_of(fs, here):
                return here, kind
            # Partitions are named, however many there are.
            level += "=" not in posixpath.basename(here)
            here = posixpath.dirname(here)
    return None


def _kind_of(fs: AbstractFileSystem, folder: str) -> str | None:
    for mark, kind in MARKS.items():
        place = storage.join(folder, mark)
        if patiently("look up", place, fs, partial(_is_there, fs, place)):
            return kind
    log = storage.join(folder, "metadata")
    return "Iceberg" if table_among(patiently("list", log, fs, partial(_names_in, fs, log))) else None


def way_out(folder: str, kind: str) -> str:
    """Why a table isn't read, and what to do."""
    return (
        f"{folder} is {'an' if kind == 'Iceberg' else 'a'} {kind} table: its files hold deleted rows and earlier "
        f"copies of others: write its live rows as Parquet and name those ({WAYS_OUT[kind]})"
    )


def _is_there(fs: AbstractFileSystem, path: str) -> bool:
    try:
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _names_in(fs: AbstractFileSystem, folder: str) -> list[str]:
    try:
        return list(fs.ls(folder, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
