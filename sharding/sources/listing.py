"""From a source's config to its files: listed once, their format known, their columns checked where that is cheap."""

from __future__ import annotations

import dataclasses
import logging
import posixpath
from collections.abc import Sequence
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from sharding import tally
from sharding.errors import MillError, RequestError
from sharding.sources import readers
from sharding.sources.columns import check_columns
from sharding.sources.config import FORMATS, Format, Source, misplaced_key
from sharding.sources.files import list_files, opened
from sharding.sources.glances import Glance, description, glances_of
from sharding.sources.looks import refusal
from sharding.sources.places import name_of, url_of
from sharding.sources.saved import saved_split
from sharding.sources.shares import MAX_SHOWN, BarrenFile, check_files
from sharding.sources.tables import table_around, way_out
from sharding.sources.units import COMPRESSIONS, SourceFile
from sharding.sources.versions import seen, versions_of

logger = logging.getLogger(__name__)

ENDINGS = {ending: name for name, kind in FORMATS.items() for ending in kind.endings}
COMPRESSED_OTHERWISE = (".bz2", ".xz", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz")
"""Not all of them say so in their first bytes."""


UNFINISHED = (
    ".part",
    ".partial",
    ".tmp",
    ".temp",
    ".crdownload",
    ".download",
    ".incomplete",
    ".bak",
    ".orig",
    ".swp",
    "~",
)
"""How the files end that programs leave half-written, or as a copy of what was there before."""


def resolve(source: Source, *, identify: bool = True) -> tuple[Source, list[SourceFile]]:
    """The source as its readers take it, its format and revision fixed, and its files in the order of their names.

    A look at the first bytes decides with the name what a file is. Files that have a schema and datasets are asked for
    their columns, so that a wrong name costs no work.

    Args:
        source: as the config has it.
        identify: tell the versions of its files, for which those that have changed are read; without, versions are "".

    Raises:
        RequestError: a key is wrong: nothing is there, the format can't be told, a column is missing, or a file is
            none that can be read; or nothing will come of too many of them.
        MillError: the store can't be reached, or the first file can't be read.
    """
    _refuse_misplaced(source)
    config = source.config
    if config.format == "huggingface" and (found := saved_split(source)) is None:
        if Path(config.path).is_dir() and (
            table := table_around(LocalFileSystem(), [str(Path(config.path).resolve())])
        ):
            raise RequestError(f"{source.key}.path: {way_out(*table)}")
        from sharding.sources import huggingface

        return huggingface.resolve(source)
    if config.format is not None:
        readers.check(source)
    fs = opened(source)[0]
    if config.format == "huggingface":
        assert found is not None
        names = found
        config = dataclasses.replace(config, format="arrow", subset=None, split=None, revision=None)
    else:
        names = list_files(source)
    urls = [url_of(fs, name, config.path) for name, _ in names]
    for url, (_, info) in zip(urls, names, strict=True):
        if info.get("size") is None:
            raise RequestError(
                f"{source.key}.path: the server doesn't say how long {url} is, so nobody would notice that its end is "
                "missing: fetch it, and name the copy"
            )
        if name_of(url).lower().endswith(UNFINISHED) and not config.path.lower().endswith(UNFINISHED):
            raise RequestError(
                f"{source.key}.path: {url} is by its name unfinished, or a copy of what was there before: take it "
                "away, leave it out by a glob, or name it by one"
            )
    try:
        glances = glances_of(fs, names)
        with tally.at(f"reading what is new of the {len(names):,} files of {config.path}"):
            versions = versions_of(fs, names) if identify else [""] * len(names)
    except MillError as error:
        raise MillError(f"{source.key}.path: {error}") from error
    config = dataclasses.replace(config, format=config.format or _format_of(source, urls, glances))
    source = Source(source.key, config)
    _refuse_misplaced(source)
    readers.check(source)
    files = [
        SourceFile(
            url=url,
            size_bytes=int(info["size"]),
            version=version,
            compression=glance.compression,
            seen=seen(info),
        )
        for url, (_, info), version, glance in zip(urls, names, versions, glances, strict=True)
    ]
    assert config.format is not None
    for url, glance in zip(urls, glances, strict=True):
        if refused := refusal(glance.kind, url, config.format):
            raise RequestError(f"{source.key}.path: {refused}")
        if FORMATS[config.format].has_schema and glance.compression is not None:
            raise RequestError(
                f"{source.key}.path: {url} is compressed by {glance.compression} as a whole, and {config.format} files "
                "are compressed within: unpack it"
            )
        is_readable = glance.compression is not None or glance.is_json_lines
        if FORMATS[config.format].in_lines and not is_readable and url.lower().endswith(COMPRESSED_OTHERWISE):
            known = " or ".join(COMPRESSIONS)
            raise RequestError(f"{source.key}.path: {url} is not plain, {known}: recompress it or leave it out")
    _refuse_barren(source, files, glances)
    if FORMATS[config.format].has_schema:
        first = next(file for file in files if file.size_bytes)
        check_columns(readers.columns_of(first.url, source), source, first.url)
    return source, files


def _refuse_barren(source: Source, files: Sequence[SourceFile], glances: Sequence[Glance]) -> None:
    """Refuse a source of which too many files hold nothing, as far as their beginnings tell, before any work."""
    if not any(file.size_bytes for file in files):
        others = f", and so are the {len(files) - 1:,} others" if len(files) > 1 else ""
        raise RequestError(f"{source.key}.path: {files[0].url} is empty{others}: the source has no records")
    is_jsonl = source.config.format == "jsonl"
    barren = [
        file.url
        for file, glance in zip(files, glances, strict=True)
        if not file.size_bytes or (is_jsonl and glance.is_json_array)
    ]
    shown = [BarrenFile(file=url, why=f"it looks like {description(url)}") for url in barren[:MAX_SHOWN]]
    for found in shown:
        logger.warning("%s: none of it will become a document; %s", found.file, found.why)
    check_files(source, len(barren), len(files), shown)


def _refuse_misplaced(source: Source) -> None:
    if problem := misplaced_key(source.config):
        raise RequestError(f"{source.key}.{problem}")


def _format_of(source: Source, urls: Sequence[str], glances: Sequence[Glance]) -> Format:
    """The format that all the files have: by their first bytes where these are plain, else by their names.

    Raises:
        RequestError: a file tells none, or another than the first.
    """
    first: Format | None = None
    for url, glance in zip(urls, glances, strict=True):
        found = _format_by_look(url, glance)
        if found is None:
            if refused := refusal(glance.kind, url, ""):
                raise RequestError(f"{source.key}.path: {refused}")
            looks = description(url)
            raise RequestError(
                f"{source.key}.format: {url} does not tell its format by its ending ({', '.join(ENDINGS)})"
                f"{f' and looks like {looks}' if looks else ''}: "
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


def _format_by_look(url: str, glance: Glance) -> Format | None:
    stem, ending = posixpath.splitext(name_of(url))
    if ending.lower() in COMPRESSIONS:
        ending = posixpath.splitext(stem)[1]
    named = ENDINGS.get(ending.lower())
    if glance.kind is not None and glance.kind.name in FORMATS:
        return glance.kind.name
    return "jsonl" if named is None and glance.is_json_lines else named
