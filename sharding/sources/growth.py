"""Whether sources have only grown since they were listed: what each file was then, in few bytes, held against the files
as they are now.

A file that is there still, under whatever name, is told by its version. One that has become longer is read as far as it
went then: where that is what it was, and nothing was written into its last record, records were only added. Names and
versions are kept as hashes: what a file was called, and what was in it, is nobody's business any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec

from sharding.hashing import fingerprint
from sharding.sources.config import Source
from sharding.sources.places import locate
from sharding.sources.units import SourceFile, is_compressed, listing_digest
from sharding.sources.versions import versions_of_beginning
from sharding.storage.retries import patiently

MAX_FILES = 1_000_000
"""What more files than these were is not kept: the manifest of so many is a matter of its own."""


class Listed(msgspec.Struct, frozen=True):
    """What sources held when they were listed.

    Attributes:
        digest: `listing_digest` of the files.
        files: of each file its source's number, a hash of its name, its length in bytes and a hash of its version,
            with spaces between.
    """

    digest: str
    files: list[str]


class Growth(msgspec.Struct, frozen=True):
    """What has come to sources of which nothing has gone or changed.

    Attributes:
        files_added: files that weren't there.
        files_longer: files that go on behind what they were.
    """

    files_added: int
    files_longer: int


def listed(listings: Sequence[Sequence[SourceFile]]) -> Listed | None:
    """What is kept of the files of each source; None where they are more than `MAX_FILES`."""
    if sum(map(len, listings)) > MAX_FILES:
        return None
    files = [
        f"{_name(number, file)} {file.size_bytes} {_hash(file.version)}"
        for number, files in enumerate(listings)
        for file in files
    ]
    return Listed(listing_digest(listings), files)


def growth_of(before: Listed, sources: Sequence[Source], listings: Sequence[Sequence[SourceFile]]) -> Growth | None:
    """What has come to the sources; None where anything has gone or changed, or that can't be told.

    Args:
        before: what they held.
        sources: the sources as `resolve` gives them, in the order of then; further ones may follow.
        listings: the files of each as they are now.

    Raises:
        MillError: a file that has become longer can't be read.
    """
    now = {_name(number, file): (number, file) for number, files in enumerate(listings) for file in files}
    there = Counter(f"{number} {_hash(file.version)}" for number, file in now.values())
    longer = []
    for entry in before.files:
        try:
            number, name, length, version = entry.split(" ")
            beginning = f"{number} {name}", int(length), version
        except ValueError:
            return None  # whoever wrote that
        if there[f"{number} {version}"]:
            there[f"{number} {version}"] -= 1
        else:
            longer.append(beginning)
    for name, size_bytes, version in longer:
        number_of_source, file = now.get(name, (0, None))
        if file is None or not there[f"{number_of_source} {_hash(file.version)}"]:
            return None
        there[f"{number_of_source} {_hash(file.version)}"] -= 1
        if not _goes_on(file, sources[number_of_source], size_bytes, version):
            return None
    return Growth(len(now) - len(before.files), len(longer))


def _goes_on(file: SourceFile, source: Source, size_bytes: int, version: str) -> bool:
    """Whether a file is what it was, and whole records behind it."""
    in_lines = source.config.format == "jsonl" or (source.config.format == "text" and source.config.document == "line")
    in_paragraphs = source.config.format == "text" and source.config.document == "paragraph"
    if not (in_lines or in_paragraphs) or is_compressed(file) or file.size_bytes <= size_bytes:
        return False
    fs, path = locate(file.url)
    if version not in map(_hash, versions_of_beginning(fs, path, size_bytes)):
        return False
    begin = max(0, size_bytes - 2)
    seam = patiently("read", file.url, fs, partial(fs.cat_file, path, start=begin, end=size_bytes + 2))
    before, behind = seam[: size_bytes - begin], seam[size_bytes - begin :]
    if in_paragraphs:
        return not before or b"\n\n" in seam
    return before[-1:] in (b"", b"\n") or behind[:1] == b"\n" or behind == b"\r\n"


def _name(number: int, file: SourceFile) -> str:
    return f"{number} {_hash(file.url if file.shard is None else f'{file.url} {file.shard}')}"


def _hash(what: str) -> str:
    return fingerprint([what], size_bytes=8)
