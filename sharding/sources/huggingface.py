"""Datasets that `datasets` opens, on the hub or in a local folder: streamed, each shard by a worker of its own.

Needs the extra `thoughtmill[datasets]`. A folder saved by `save_to_disk` is read without it, as the Arrow files it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from sharding.errors import MillError, RequestError
from sharding.hashing import fingerprint
from sharding.records.types import Document, Quarantined
from sharding.sources.columns import check_columns, documents_of, wanted_columns
from sharding.sources.config import Source, SourceConfig
from sharding.sources.glances import glances_of
from sharding.sources.looks import refusal
from sharding.sources.units import ReadUnit, SourceFile
from sharding.sources.versions import versions_of

BATCH_ROWS = 256
DEFAULT_SPLIT = "train"

_LOOKED_AT = tuple(
    ending + packed
    for ending in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
    for packed in ("", ".gz", ".zst")
)
"""How the files end that are told by their first bytes as those of other formats are."""


def resolve(source: Source) -> tuple[Source, list[SourceFile]]:
    """The source with its revision fixed to a commit, and its shards.

    Raises:
        RequestError: there is no such dataset, subset, split or column, or `datasets` isn't installed.
        MillError: the hub can't be reached.
    """
    datasets = _datasets(source)
    config = source.config
    revision, version, size_bytes = _state(source)
    config = dataclasses.replace(config, revision=revision, split=config.split or DEFAULT_SPLIT)
    try:
        splits = datasets.load_dataset(config.path, config.subset, revision=revision, streaming=True)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise RequestError(f"{source.key}.path: {config.path!r}: {error}") from error
    except (ValueError, FileNotFoundError) as error:
        raise RequestError(f"{source.key}: cannot open the dataset {config.path!r}: {error}") from error
    except Exception as error:  # a damaged file ends in an error of whatever reads it
        raise MillError(f"{source.key}: cannot open the dataset {config.path!r}: {_said(error)}") from error
    if config.split not in splits:
        raise RequestError(f"{source.key}.split: {config.split!r} is not one of {', '.join(splits)} in {config.path}")
    dataset = splits[config.split]
    source = Source(source.key, config)
    where = _where(config)
    try:
        # Of the first shard alone: to fill a batch `datasets` would look into the next, and not say where it failed.
        for table in dataset.shard(dataset.num_shards, 0).take(1).with_format("arrow").iter(1):
            check_columns(table.schema, source, where)
    except RequestError:
        raise
    except Exception as error:
        raise MillError(f"cannot read {where}: {_in_words(error, config, 0)}") from error
    facts = (dataset.info.splits or {}).get(config.split)
    size_bytes = facts.num_bytes if facts is not None and facts.num_bytes else size_bytes
    shards = range(dataset.num_shards)
    return source, [
        SourceFile(url=config.path, size_bytes=size_bytes // len(shards), version=version, shard=i) for i in shards
    ]


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The rows of one shard.

    Raises:
        MillError: the shard can't be read; names the dataset and the shard.
    """
    _datasets(source)
    config = source.config
    where = f"{_where(config)}#{unit.shard}"
    row = 0
    try:
        dataset = _open(config.path, config.subset, config.split or DEFAULT_SPLIT, config.revision)
        shard = dataset.shard(dataset.num_shards, unit.shard).select_columns(wanted_columns(config))
        for table in shard.with_format("arrow").iter(BATCH_ROWS):
            check_columns(table.schema, source, where)
            for batch in table.to_batches():
                before = row

                def origin(index: int, before: int = before) -> str:
                    return f"{where}:{before + index}"

                yield from documents_of(batch, source, origin)
                row += batch.num_rows
    except RequestError:
        raise
    except Exception as error:
        raise MillError(f"cannot read {where} after row {row}: {_in_words(error, config, unit.shard or 0)}") from error


def _datasets(source: Source) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RequestError(
            f"{source.key}.format: huggingface needs the package datasets: pip install 'thoughtmill[datasets]'"
        ) from error
    return datasets


@functools.lru_cache(maxsize=8)
def _open(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    """The dataset, once per process: opening asks the hub."""
    import datasets

    return datasets.load_dataset(path, subset, revision=revision, split=split, streaming=True)


def _in_words(error: Exception, config: SourceConfig, shard: int) -> str:
    """What is wrong with a shard: its file, and the columns that are others there, which `datasets` keeps to itself."""
    said = _said(error)
    files: list[str] = []
    differences: list[str] = []
    # What is already an error must not become another.
    with contextlib.suppress(Exception):
        dataset = _open(config.path, config.subset, config.split or DEFAULT_SPLIT, config.revision)
        files = _files_of(dataset, shard)
        differences = _differences(dataset, files[0]) if len(files) == 1 else []
    named = f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''}: " if files else ""
    return f"{named}{'; '.join([*differences, said])}"


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _files_of(dataset: Any, shard: int) -> list[str]:
    """The files of a shard; none where they can't be told, as of a dataset with a script of its own."""
    # No public way leads to them.
    keywords = dataset.shard(dataset.num_shards, shard)._ex_iterable.kwargs
    named = [member for value in keywords.values() if isinstance(value, list) for member in value]
    return list(dict.fromkeys(member for member in named if isinstance(member, str)))


def _differences(dataset: Any, file: str) -> list[str]:
    """What its columns are in one file and what in the dataset, where the two differ."""
    import datasets

    alone = datasets.load_dataset(dataset.info.builder_name, data_files=file, split="train", streaming=True)
    if not alone.features:
        return []
    here, whole = (
        {name: str(features[name].dtype if hasattr(features[name], "dtype") else features[name]) for name in features}
        for features in (alone.features, dataset.features or {})
    )
    return [
        f"the column {name!r} is {here.get(name, 'missing')} there, and {whole.get(name, 'missing')} in the dataset"
        for name in dict.fromkeys([*whole, *here])
        if here.get(name) != whole.get(name)
    ]


def _where(config: SourceConfig) -> str:
    return f"{config.path}{f'/{config.subset}' if config.subset else ''}[{config.split or DEFAULT_SPLIT}]"


def _state(source: Source) -> tuple[str | None, str, int]:
    """(commit or None, version, size in bytes) of the dataset as it is now."""
    folder = Path(source.config.path)
    if not folder.is_dir():
        return _state_on_hub(source)
    if source.config.revision is not None:
        raise RequestError(f"{source.key}.revision: {source.config.path!r} is a local folder, which has none")
    fs = LocalFileSystem()
    found = sorted(folder.rglob("*"))
    for link in (path for path in found if path.is_symlink() and not path.is_file()):
        # `datasets` leaves it out in silence.
        why = "a folder, which datasets doesn't follow" if link.is_dir() else "what isn't there"
        raise RequestError(f"{source.key}.path: {link} is a link to {why}: put the files in its place, or take it away")
    files = [(str(path), fs.info(str(path))) for path in found if path.is_file()]
    data = [(name, info) for name, info in files if name.lower().endswith(_LOOKED_AT)]
    if data and not any(info["size"] for _, info in data):
        raise RequestError(f"{source.key}.path: {data[0][0]} is empty: the source has no records")
    for (name, _), glance in zip(data, glances_of(fs, data), strict=True):
        # `datasets` reads archives, but takes these for text.
        if glance.kind is not None and glance.kind.name in ("pointer", "markup", "wide", "binary"):
            raise RequestError(f"{source.key}.path: {refusal(glance.kind, name, 'huggingface')}")
    named = zip(files, versions_of(fs, files), strict=True)
    version = fingerprint(f"{name.removeprefix(str(folder))} {version}\n" for (name, _), version in named)
    return None, version, sum(int(info["size"]) for _, info in files)


def _state_on_hub(source: Source) -> tuple[str, str, int]:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import httpx

    path, revision = source.config.path, source.config.revision
    try:
        found = huggingface_hub.HfApi().dataset_info(path, revision=revision, files_metadata=True)
    except RevisionNotFoundError as error:
        raise RequestError(f"{source.key}.revision: {revision!r} is no revision of {path} on the hub") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise RequestError(f"{source.key}.path: {path!r} is neither a local folder nor a dataset on the hub") from error
    except (httpx.HTTPError, OSError) as error:
        raise MillError(
            f"{source.key}.path: {path!r} is not a local folder, and the hub cannot be reached: {error}"
        ) from error
    commit = str(found.sha)
    return commit, commit, sum(file.size or 0 for file in found.siblings or [])
