"""A look into the files of a listing before any work: what their first bytes say, in few bytes for each.

Where the store doesn't say a checksum, `versions` reads both ends of every file anyway, so every file is looked at. Of
other stores' files those are that might be cut into ranges, and the first thousand; each is looked at again when it is
opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from sharding.sources.line_looks import is_json_array, is_json_lines, looks_like
from sharding.sources.looks import (
    HEAD_BYTES,
    Kind,
    compression_in,
    kind_of,
    unpacked,
)
from sharding.sources.places import locate
from sharding.sources.units import UNIT_BYTES
from sharding.sources.versions import has_checksum, num_threads
from sharding.storage.retries import patiently

MAX_LOOKED_AT = 1000


class Glance(NamedTuple):
    """What the first bytes of a file say.

    Attributes:
        compression: of the whole file, as Arrow calls it.
        kind: what is in it, where it is neither JSON lines nor text.
        is_json_lines, is_json_array: whether what is in it begins like that.
    """

    compression: str | None = None
    kind: Kind | None = None
    is_json_lines: bool = False
    is_json_array: bool = False


def glances_of(fs: AbstractFileSystem, files: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Glance]:
    """A look at each file, or at some of very many.

    Args:
        fs: their store.
        files: (path in the store, the store's facts) of each.

    Raises:
        MillError: a file can't be read.
    """

    def glance(numbered: tuple[int, tuple[str, Mapping[str, Any]]]) -> Glance:
        number, (path, info) = numbered
        size_bytes = int(info["size"])
        if not size_bytes or (number >= MAX_LOOKED_AT and has_checksum(info) and size_bytes <= UNIT_BYTES):
            return Glance()
        begin = _begin(fs, path, size_bytes)
        head = unpacked(begin)
        return Glance(
            compression=compression_in(begin),
            kind=kind_of(head),
            is_json_lines=is_json_lines(head, whole=head is begin and len(head) == size_bytes),
            is_json_array=is_json_array(head),
        )

    with ThreadPoolExecutor(num_threads(fs)) as pool:
        return list(pool.map(glance, enumerate(files)))


def description(url: str) -> str | None:
    """What a file looks like, in words; None where nobody knows.

    Raises:
        MillError: it can't be read.
    """
    fs, path = locate(url)
    size_bytes = patiently("look up", url, fs, lambda: int(fs.info(path)["size"]))
    return looks_like(unpacked(_begin(fs, path, size_bytes)))


def _begin(fs: AbstractFileSystem, path: str, size_bytes: int) -> bytes:
    if not size_bytes:
        return b""
    read = partial(fs.cat_file, path, start=0, end=min(HEAD_BYTES, size_bytes))
    return bytes(patiently("read", fs.unstrip_protocol(path), fs, read))
