"""The target of an export: a folder that holds one export and nothing else, or is refused.

    EXPORTING.json ─► the files of every shard ─► EXPORT.json, which names them all ─► no EXPORTING.json

Readers take whatever lies in the folder, so what a killed or an earlier export has left is removed before a new one
begins, and a file that no export has written is a reason to refuse. Only what a listing of the target shows is removed.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator

import msgspec
from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.types import FileEntry, Size
from sharding.storage.json_files import MAX_BYTES, read_json
from sharding.storage.known import Length

EXPORT_NAME = "EXPORT.json"
BEGUN_NAME = "EXPORTING.json"
"""There from before the first file until EXPORT.json names them all: what is to be exported."""

EXPORT_VERSION = 1
"""Version of the layout of EXPORT.json and of the files."""

_WRITTEN = re.compile(
    r"(?P<split>[^/]+)/([^/]+/)?(\.?(?P=split)-\d{5,}-of-\d{5,}[^/]*|index\.json|\.index\.json[^/]*\.tmp)"
)
"""The names that exports give to files: of a shard, or a split's index; and of those that a killed one has begun."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """EXPORT.json: what an export is of, and its files.

    Attributes:
        version: of this layout.
        format: a name of `FORMATS`.
        loss_mask: the policy of the loss mask, or null where there is none.
        splits: the splits in it.
        source_fingerprint: the fingerprint of the pack manifest it was made from.
        source_digest: hash of the bytes of the shards it was made from.
        sequence_length, vocab_size, tokenizer, tokenizer_fingerprint, document_end_ids: of the corpus.
        rehearsal: made by a rehearsal scorer or engine: not for training.
        tokens: by kind, in all files.
        files: by split, in the order of the shards.
    """

    version: int
    format: str
    loss_mask: str | None
    splits: list[str]
    source_fingerprint: str
    source_digest: str
    sequence_length: Length
    vocab_size: Length
    tokenizer: str
    tokenizer_fingerprint: str
    document_end_ids: list[int]
    rehearsal: bool
    tokens: dict[str, Size] = {}
    files: dict[str, list[FileEntry]] = {}


def read(target: str, name: str = EXPORT_NAME) -> Export | None:
    """What the target's EXPORT.json says, or None where there is none.

    Raises:
        MillError: it cannot be understood.
    """
    url = storage.join(target, name)
    if not storage.exists(url):
        return None
    found = read_json(url, Export, "an export", MAX_BYTES)
    for entry in (entry for entries in found.files.values() for entry in entries):
        if not _WRITTEN.fullmatch(entry.name):
            raise MillError(f"{url} is not an export of this version: no export writes a file {entry.name[:200]!r}")
    return found


def begin(output: str, target: str, plan: Export, *, replace: bool) -> Export | None:
    """Make the target ready for an export, or tell that it holds it already.

    Args:
        output: the run's output folder.
        target: URL of the folder.
        plan: the export that is asked for, without its files.
        replace: another export may go.

    Returns:
        The finished export when it is this one and all its files are there; None when the target is empty now and
        waits for its files.

    Raises:
        RequestError: the target is the output, holds another export, or files that no export has written.
        MillError: its EXPORT.json can't be understood, or the store refused.
    """
    _check_apart(output, target)
    finished = read(target)
    held = finished or read(target, BEGUN_NAME)
    named = {entry.name for entries in finished.files.values() for entry in entries} if finished else set[str]()
    listed: list[str] = []
    leftovers: list[str] = []
    for name in _files(target):
        if name in (EXPORT_NAME, BEGUN_NAME):
            continue
        listed.append(name)
        if name in named:
            continue
        if held is None or not _WRITTEN.fullmatch(name):
            raise RequestError(f"target: {target} holds {name}, which no export has written: name an empty folder")
        leftovers.append(name)
    same = held is not None and msgspec.structs.replace(held, tokens={}, files={}) == plan
    if held is not None and not same and not replace:
        unfinished = "" if finished else "an unfinished part of "
        raise RequestError(
            f"target: {target} holds {unfinished}another export ({held.format}, loss mask {held.loss_mask}, splits "
            f"{' '.join(held.splits)}, of {held.source_fingerprint[:12]}): name another folder, or add --replace"
        )
    if finished is None or not same or not named.issubset(listed):
        # From here on whoever is killed leaves a target that the next one clears.
        storage.write_json(storage.join(target, BEGUN_NAME), msgspec.to_builtins(plan))
        leftovers = listed
        storage.remove(storage.join(target, EXPORT_NAME), target)
        finished = None
    for name in leftovers:
        storage.remove(storage.join(target, name), target)
    if finished is not None:
        storage.remove(storage.join(target, BEGUN_NAME), target)
    return finished


def finish(target: str, done: Export) -> None:
    """Publish EXPORT.json, when every file is there."""
    storage.write_json(storage.join(target, EXPORT_NAME), msgspec.to_builtins(done))
    storage.remove(storage.join(target, BEGUN_NAME), target)


def _check_apart(output: str, target: str) -> None:
    """Refuse a target that is the output, lies in it, or holds it; however it is spelled."""
    (output_store, output_path), (target_store, target_path) = _place(output), _place(target)
    if output_store != target_store:
        return
    common = posixpath.commonpath([output_path, target_path])
    if common == output_path:
        raise RequestError(f"target: {target} is the output itself, or a part of it: name another folder")
    if common == target_path:
        raise RequestError(f"target: {target} holds the output: name another folder")


def _place(url: str) -> tuple[type, str]:
    """The kind of store, and the path in it without links and turns."""
    fs, path = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        path = os.path.realpath(path)
    return type(fs), posixpath.normpath("/" + path.strip("/"))


def _files(target: str) -> Iterator[str]:
    """The files in the target, by their names from it; links are files, whatever they lead to."""
    fs, path = storage.filesystem(target)
    fs.invalidate_cache()
    for folder, _, names in fs.walk(path):
        below = folder[len(path.rstrip("/")) :].strip("/")
        yield from (posixpath.join(below, name) for name in sorted(names) if name)
