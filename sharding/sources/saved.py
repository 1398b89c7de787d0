"""Folders that `datasets` saved with `save_to_disk`: which of their files are the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.sources.config import Source
from sharding.sources.places import locate

SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `datasets` writes into a folder it saves: the files of one split, and the names of several."""


def saved_split(source: Source) -> list[tuple[str, Mapping[str, Any]]] | None:
    """The files of a split of a folder that `datasets` saved, or None when the path is no such folder."""
    config = source.config
    fs, path = locate(config.path)
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
            return saved_files(fs, path, source)
        split = config.split or "train"
        if split not in splits:
            raise RequestError(f"{source.key}.split: {split!r} is not one of {', '.join(splits)} in {config.path}")
        return saved_files(fs, storage.join(path, split), source)
    except (OSError, ValueError, KeyError) as error:
        raise MillError(f"{source.key}.path: cannot read the dataset saved in {config.path}: {error}") from error


def saved_files(fs: AbstractFileSystem, folder: str, source: Source) -> list[tuple[str, Mapping[str, Any]]] | None:
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
