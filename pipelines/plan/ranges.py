"""Which pieces of the source a plan looks at: ranges by hash, so that a file counts in proportion to its size. Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sharding import sources
from sharding.hashing import content_id
from sharding.sources import ReadUnit, Source, SourceFile
from sharding.sources.config import FORMATS
from sharding.sources.units import UNIT_BYTES, is_read_whole

RANGE_BYTES = 1 << 20
"""A plain file is sampled in ranges of this size: enough for whole records, little to read."""

MAX_RANGES = 16
"""So many ranges, chosen by hash over all bytes of the source, stand for it; fewer than that are read entirely."""


class Range(NamedTuple):
    """A piece of one file: which source, what to read, and the bytes of the file it covers."""

    source: Source
    unit: ReadUnit
    size_bytes: int


def choose_ranges(resolved: Sequence[Source], listings: Sequence[Sequence[SourceFile]]) -> tuple[list[Range], bool]:
    """The pieces of the source to look at, and whether they are all of it.

    A piece is chosen by a byte that a hash points to, so that a file is looked at in proportion to its size.
    """
    files = [
        (source, file, number)
        for number, s in enumerate(resolved)
        for source, file in ((s, f) for f in listings[number])
    ]
    ends = list(itertools.accumulate(file.size_bytes for _, file, _ in files))
    few = list(itertools.islice((r for entry in files for r in _ranges_of(*entry)), MAX_RANGES + 1))
    if len(few) <= MAX_RANGES:
        return few, True
    digest = sources.listing_digest(listings)
    chosen: dict[tuple[str, int, int | None], Range] = {}
    for draw in range(MAX_RANGES):
        place = int(content_id(f"{digest} {draw}"), 16) % ends[-1]
        index = bisect_right(ends, place)
        source, file, number = files[index]
        piece = _range_at(source, file, number, place - (ends[index] - file.size_bytes))
        chosen[(piece.unit.url, piece.unit.start, piece.unit.shard)] = piece
    return list(chosen.values()), False


def _ranges_of(source: Source, file: SourceFile, number: int) -> Iterator[Range]:
    step = _step(source, file)
    for start in range(0, max(file.size_bytes, 1), step):
        yield _range_at(source, file, number, start)


def _range_at(source: Source, file: SourceFile, number: int, offset: int) -> Range:
    step = _step(source, file)
    if step >= file.size_bytes:
        return Range(source, ReadUnit(url=file.url, shard=file.shard, source=number), file.size_bytes)
    start = offset // step * step
    end = min(start + step, file.size_bytes)
    return Range(source, ReadUnit(url=file.url, start=start, end=end, source=number), end - start)


def _step(source: Source, file: SourceFile) -> int:
    """In what pieces the file can be read: see `sharding.sources.units`."""
    if is_read_whole(file, source.config):
        return max(file.size_bytes, 1)
    assert source.config.format is not None  # `resolve` has seen to it
    return RANGE_BYTES if FORMATS[source.config.format].in_lines else UNIT_BYTES
