"""Compaction: the ledger rewritten as few large parts without duplicates.

    keys of all parts ─► rows that don't count, range by range ─► a process for each run of parts ─► one part from many

So memory holds one range of keys and, in each process, the parts that become one; rows are read once and written once.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from augment.ledger.partial import clear_partial
from augment.ledger.parts import ledger_parts, part_batches, part_keys, remove_part, write_table
from augment.ledger.superseded import READERS, read_keys, superseded
from sharding.errors import MillError
from sharding.records.arrow import from_batch, to_batch
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.types import LedgerRow
from sharding.storage.files import exists
from sharding.storage.private import private_folder

ROWS_FOR_PROCESSES = 200_000
"""Of fewer rows one process is done before others have started."""


@dataclass(frozen=True)
class Compaction:
    """What `compact` did: parts and rows before and after."""

    parts_before: int
    parts_after: int
    rows_before: int
    rows_after: int


@dataclass(frozen=True)
class _Made:
    """What came of a job: new parts, or a part that is damaged though its keys are not."""

    urls: tuple[str, ...] = ()
    damaged: str = ""


@dataclass(frozen=True)
class _Job:
    """Parts that become one, with the places of the rows that don't count."""

    ledger_url: str
    urls: tuple[str, ...]
    out: tuple[np.ndarray, ...]
    rows_per_part: int


def compact(ledger_url: str, *, rows_per_part: int = 20_000, processes: int | None = None) -> Compaction:
    """Rewrite the ledger as few large parts without duplicates, while others may read and append.

    The new parts are there before the old ones go, so a kill in between leaves duplicates, never holes. Parts that
    can't be read are left where they are. Partial rows stay as far as nothing of their key is finished. Needs room
    among the temporary files, 44 bytes a row, and memory for a 256th of that, for 8 bytes a duplicate, and in each
    process for the parts that become one.

    Args:
        rows_per_part: so many rows a new part has at least, but for the last; twice as many at most.
        processes: how many rewrite; None: one for each core where there is much.

    Raises:
        MillError: the store can't be read or written; or a takedown, a drop or another compaction has taken parts away
            meanwhile, and what was written is removed.
    """
    clear_partial(ledger_url)
    return _compact(ledger_url, rows_per_part, processes, frozenset())


def _compact(ledger_url: str, rows_per_part: int, processes: int | None, damaged: frozenset[str]) -> Compaction:
    urls = [url for url in ledger_parts(ledger_url) if url not in damaged]
    with tempfile.TemporaryDirectory(prefix="compaction-", dir=private_folder()) as folder:
        counts = list(read_keys(urls, Path(folder)))
        out = superseded(urls, Path(folder))
    old = [url for url, rows in zip(urls, counts, strict=True) if rows is not None]
    rows_before = sum(rows or 0 for rows in counts)
    rows_after = rows_before - sum(map(len, out.values()))
    if len(old) <= 1 and rows_before == rows_after:
        return Compaction(len(old), len(old), rows_before, rows_before)
    jobs = list(_jobs(ledger_url, urls, counts, out, rows_per_part))
    if processes is None:
        processes = (os.cpu_count() or 1) if rows_before >= ROWS_FOR_PROCESSES else 1
    made = list(_rewritten(jobs, processes))
    new = [url for one in made for url in one.urls]
    with ThreadPoolExecutor(READERS) as pool:  # each by its name: a listing may be late
        gone = [url for url, there in zip(old, pool.map(exists, old), strict=True) if not there]
    found = frozenset(one.damaged for one in made if one.damaged)
    if gone or found:
        for url in set(new) - set(old):
            remove_part(url, ledger_url)
    if found:  # a row of another part may be there in its place
        return _compact(ledger_url, rows_per_part, processes, damaged | found)
    if gone:
        raise MillError(
            f"{ledger_url}: {len(gone)} parts were taken away while they were compacted, by a takedown, a drop or "
            "another compaction; nothing was changed, run it again when that has ended"
        )
    for url in set(old) - set(new):
        remove_part(url, ledger_url)
    return Compaction(len(old), len(new), rows_before, rows_after)


def _jobs(
    ledger_url: str,
    urls: Sequence[str],
    counts: Sequence[int | None],
    out: Mapping[int, np.ndarray],
    rows_per_part: int,
) -> Iterator[_Job]:
    """Runs of parts that together have enough rows that count."""
    nothing = np.zeros(0, np.uint32)
    taken: list[int] = []
    rows = 0
    for number, count in enumerate(counts):
        if count is not None:
            taken.append(number)
            rows += count - len(out.get(number, nothing))
        if taken and (rows >= rows_per_part or number == len(counts) - 1):
            places = tuple(out.get(one, nothing) for one in taken)
            yield _Job(ledger_url, tuple(urls[one] for one in taken), places, rows_per_part)
            taken, rows = [], 0


def _rewritten(jobs: Sequence[_Job], processes: int) -> Iterator[_Made]:
    if processes == 1:
        yield from map(_rewrite, jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_rewrite, jobs)


def _rewrite(job: _Job) -> _Made:
    """New parts with the rows of a job's parts that count."""
    tables, keys = [], []
    for url, places in zip(job.urls, job.out, strict=True):
        batches, found = part_batches(url), part_keys(url)
        if batches is None or found is None or len(found) != sum(map(len, batches)):
            return _Made(damaged=url)
        table = pa.Table.from_batches([_as_written_today(batch) for batch in batches], LEDGER_SCHEMA)
        stays = np.ones(len(table), bool)
        stays[places] = False
        tables.append(table.filter(pa.array(stays)))
        keys.append(found[stays])
    rows, known = pa.concat_tables(tables), np.concatenate(keys)
    pieces = max(1, len(rows) // job.rows_per_part)
    bounds = [len(rows) * piece // pieces for piece in range(pieces + 1)]
    some = [(rows.slice(first, end - first), known[first:end]) for first, end in itertools.pairwise(bounds)]
    return _Made(tuple(write_table(job.ledger_url, piece, known=keys) for piece, keys in some if len(piece)))


def _as_written_today(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of an earlier version with the columns that have come since."""
    same = batch.schema.equals(LEDGER_SCHEMA)
    return batch if same else to_batch(list(from_batch(LedgerRow, batch)), LEDGER_SCHEMA)
