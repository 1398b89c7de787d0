"""From a source's config to its files: listed once, their format known, their columns checked where that is cheap."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.sources import readers
from sharding.sources.columns import check_columns
from sharding.sources.config import FORMATS, Format, Source, misplaced_key
from sharding.sources.units import COMPRESSIONS, SourceFile
from sharding.sources.versions import versions_of
from sharding.storage.retries import patiently

ENDINGS = {ending: name for name, kind in FORMATS.items() for ending in kind.endings}
COMPRESSED_OTHERWISE = (".bz2", ".xz", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz")
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `datasets` writes into a folder it saves: the files of one split, and the names of several."""


def resolve(source: Source) -> tuple[Source, list[SourceFile]]:
    """The source as its readers take it, its format and revision fixed, and its files in the order of their names.

    Files that have a schema and datasets are asked for their columns, so that a wrong name costs no work.

    Raises:
        RequestError: a key is wrong: nothing is there, the format can't be told, a column is missing.
        MillError: the store can't be reached, or the first file can't be read.
    """
    _refuse_misplaced(source)
    config = source.config
    if config.format == "huggingface" and (found := _saved_split(source)) is None:
        from sharding.sources import huggingface

        return huggingface.resolve(source)
    fs = storage.filesystem(config.path)[0]
    if config.format == "huggingface":
        assert found is not None
        names = found
        config = dataclasses.replace(config, format="arrow", subset=None, split=None, revision=None)
    else:
        names = _list(source)
        urls = [fs.unstrip_protocol(name) for name, _ in names]
        config = dataclasses.replace(config, format=config.format or _format_of(source, urls))
    source = Source(source.key, config)
    _refuse_misplaced(source)
    try:
        versions = versions_of(fs, names)
    except MillError as error:
        raise MillError(f"{source.key}.path: {error}") from error
    files = [
        SourceFile(url=fs.unstrip_protocol(name), size_bytes=int(info["size"]), version=version)
        for (name, info), version in zip(names, versions, strict=True)
    ]
    assert config.format is not None
    kind = FORMATS[config.format]
    for file in files:
        if kind.in_lines and file.url.lower().endswith(COMPRESSED_OTHERWISE):
            known = " or ".join(COMPRESSIONS)
            raise RequestError(f"{source.key}.path: {file.url} is not plain, {known}: recompress it or leave it out")
    if kind.has_schema:
        check_columns(readers.columns_of(files[0].url, source), source, files[0].url)
    return source, files


def _refuse_misplaced(source: Source) -> None:
    if problem := misplaced_key(source.config):
        raise RequestError(f"{source.key}.{problem}")


def _list(source: Source) -> list[tuple[str, Mapping[str, Any]]]:
    """The files that the path names, as (path in the store, the store's facts)."""
    path_given = source.config.path
    fs, path = storage.filesystem(path_given)

    def ask() -> tuple[bool, Mapping[str, Any]]:
        fs.invalidate_cache()
        try:
            info = fs.info(path)
        except FileNotFoundError:
            return False, fs.glob(path, detail=True) if wildcard else {}
        is_folder = info["type"] == "directory"
        return is_folder, fs.find(path, detail=True) if is_folder else {path: info}

    wildcard = any(character in path for character in "*?[")
    try:
        # Not fs.isdir: it takes a store that fails for one that has no such folder.
        is_folder, found = patiently("list", path_given, fs, ask)
    except MillError as error:
        raise MillError(f"{source.key}.path: {error}") from error
    if is_folder and source.config.format in (None, "arrow"):
        saved = _saved_files(fs, path, source)
        if saved is not None:
            return saved
    root = _root_of(path) if wildcard and not is_folder and path not in found else path
    names = sorted(name for name, info in found.items() if info["type"] == "file" and not _hidden(name, root))
    if not names:
        raise RequestError(
            f"{source.key}.path: nothing matches {path_given!r}: name an existing file, folder or glob; a dataset "
            "on the hub needs format: huggingface"
        )
    return [(name, found[name]) for name in names]


def _root_of(pattern: str) -> str | None:
    """The folders of a glob before its first wildcard; None when what follows asks for hidden names itself."""
    first = min(pattern.find(character) for character in "*?[" if character in pattern)
    root = posixpath.dirname(pattern[:first])
    return None if _hidden(pattern, root) else root


def _hidden(name: str, root: str | None) -> bool:
    """Whether a part of the name below `root` begins with a dot or an underscore: what other writers left there."""
    if root is None:
        return False
    below = name[len(root) :] if name.startswith(root) else posixpath.basename(name)
    return any(part.startswith((".", "_")) for part in below.split("/"))


def _format_of(source: Source, urls: list[str]) -> Format:
    """The format that all the names tell.

    Raises:
        RequestError: a name tells none, or another than the first.
    """
    first: Format | None = None
    for url in urls:
        stem, ending = posixpath.splitext(url)
        if ending in COMPRESSIONS:
            ending = posixpath.splitext(stem)[1]
        found = ENDINGS.get(ending.lower())
        if found is None:
            raise RequestError(
                f"{source.key}.format: {url} does not tell its format by its ending ({', '.join(ENDINGS)}): "
                f"set {source.key}.format, or leave it out by a glob in {source.key}.path"
            )
        first = first or found
        if found != first:
            raise RequestError(
                f"{source.key}.path: {source.config.path!r} holds files of several formats: {urls[0]} is {first}, "
                f"{url} is {found}: choose by a glob, or make them several sources"
            )
    assert first is not None
    return first


def _saved_split(source: Source) -> list[tuple[str, Mapping[str, Any]]] | None:
    """The files of a split of a folder that `datasets` saved, or None when the path is no such folder."""
    config = source.config
    fs, path = storage.filesystem(config.path)
    fs.invalidate_cache()
    saved_splits = storage.join(path, SAVED_SPLITS)
    try:
        splits = json.loads(fs.cat_file(saved_splits))["splits"] if fs.exists(saved_splits) else None
        if splits is None and not fs.exists(storage.join(path, SAVED_DATASET)):
            return None
        for key in ("subset", "revision"):
            if getattr(config, key) is not None:
                raise RequestError(
                    f"{source.key}.{key}: {config.path} is a saved dataset, which has none: leave it out"
                )
        if splits is None:
            if config.split is not None:
                raise RequestError(f"{source.key}.split: {config.path} is saved without splits: leave it out")
            return _saved_files(fs, path, source)
        split = config.split or "train"
        if split not in splits:
            raise RequestError(f"{source.key}.split: {split!r} is not one of {', '.join(splits)} in {config.path}")
        return _saved_files(fs, storage.join(path, split), source)
    except (OSError, ValueError, KeyError) as error:
        raise MillError(f"{source.key}.path: cannot read the dataset saved in {config.path}: {error}") from error


def _saved_files(fs: AbstractFileSystem, folder: str, source: Source) -> list[tuple[str, Mapping[str, Any]]] | None:
    """The files of a dataset saved in `folder`; others beside them are caches. None when none is saved there."""
    if fs.exists(storage.join(folder, SAVED_SPLITS)):
        raise RequestError(
            f"{source.key}.path: {source.config.path} holds a dataset of several splits: name the folder of one, or "
            "set format: huggingface and split"
        )
    state = storage.join(folder, SAVED_DATASET)
    if not fs.exists(state):
        return None
    try:
        names = [storage.join(folder, entry["filename"]) for entry in json.loads(fs.cat_file(state))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MillError(f"{source.key}.path: cannot read the dataset saved in {folder}: {error!r}") from error
    gone = [name for name in names if not fs.exists(name)]
    if gone:
        raise MillError(f"{source.key}.path: {gone[0]} is missing from the dataset saved in {folder}")
    return [(name, fs.info(name)) for name in names]
