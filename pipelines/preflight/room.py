"""Checks of where a run writes: a folder that can't be written, a disk that is too small for what is to come.

How much room a run takes follows from the size of its sources, roughly: `REST_PER_BYTE` and the others are those of
12 MB of source code in a vocabulary of 49,152 entries, with a thought token for every ten of the source. Text that
compresses less takes more, so what stays is an error, and what the shuffles take besides a warning.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipelines.preflight.subject import BYTES_PER_TOKEN, Subject
from sharding import storage
from sharding.errors import MillError

logger = logging.getLogger(__name__)

REST_PER_BYTE = {"score": 0.70, "pack": 0.27}
"""What a stage leaves in the output, in bytes for each of the source's text."""

REST_PER_THOUGHT_TOKEN = {"augment": 4.0, "select": 3.4, "pack": 0.85}
"""The same for each token that is generated."""

SHUFFLED_PER_BYTE = {"score": 2.7, "augment": 4.0, "select": 1.2, "pack": 3.0}
"""What the shuffles of the local runner take while the stage is made, in bytes for each of the source's text. Those
of augment are nearly all prompts, which go twice: by their keys, and by document for `feeding.prefix_groups`."""


def writable(subject: Subject) -> Iterator[MillError]:
    """An output or a ledger that can't be written; other stores than disks tell when the lease is taken."""
    config = subject.config
    places = {"output": config.output}
    if "augment" in subject.here and config.ledger.path is not None:
        places["ledger.path"] = config.ledger.path
    for key, url in places.items():
        if (nearest := _nearest(url)) is None:
            continue
        if not nearest.is_dir():
            yield MillError(f"{key}: {url} can't be a folder: {nearest} is a file; name another place")
        elif not os.access(nearest, os.W_OK | os.X_OK):
            yield MillError(f"{key}: {url} can't be written: {nearest} is read-only for this user; name another place")


def disk(subject: Subject) -> Iterator[MillError]:
    """A disk without room for what the stages leave; one that is too small for their shuffles is warned of."""
    nearest = _nearest(subject.config.output)
    if nearest is None or not subject.source_bytes:
        return
    rest, shuffled = needed_bytes(subject)
    free = shutil.disk_usage(nearest).free
    said = (
        f"output: {subject.config.output} has {_size(free)} free, and {_size(subject.source_bytes)} of text take about "
        f"{_size(rest)} there in the end, and {_size(rest + shuffled)} at the most while it is made"
    )
    if free < rest:
        yield MillError(f"{said}: name an output on a larger disk, or mill the sources in several runs")
    elif free < rest + shuffled:
        logger.warning("%s", said)


def needed_bytes(subject: Subject) -> tuple[float, float]:
    """What the stages made here leave in the output, and what the largest of their shuffles takes besides; bytes."""
    budget, text = subject.config.budget, subject.source_bytes
    thoughts = budget.target_spend(text // BYTES_PER_TOKEN) if budget.unit == "tokens" else 0.0
    if all(tier.skips for tier in budget.tiers):
        thoughts = 0.0
    # Every epoch with other traces has shards of its own.
    times = {"pack": subject.config.pack.trace_per_epoch}
    rest = sum(
        times.get(stage, 1) * (REST_PER_BYTE.get(stage, 0.0) * text + REST_PER_THOUGHT_TOKEN.get(stage, 0.0) * thoughts)
        for stage in subject.here
    )
    shuffles = {**times, "augment": 1.0 if subject.config.feeding.prefix_groups else 0.5}
    shuffled = (shuffles.get(stage, 1) * SHUFFLED_PER_BYTE[stage] for stage in subject.here)
    return rest, text * max(shuffled, default=0.0)


def _nearest(url: str) -> Path | None:
    """The place itself, or the nearest folder above it that is there; None on another store than a disk."""
    fs, path = storage.filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        return None
    return next(place for place in (Path(path), *Path(path).parents) if place.exists())


def _size(number: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return f"{number / 1e3:,.0f} kB"
