"""Which rows of a ledger another one stands for, found by their keys alone, one range of keys after the other.

    key files ─► dealt out to files, one for each range of hashes ─► of each range the rows that don't count

Under `augment.ledger.compaction`. Nothing but keys is read, unless two rows with one key rank alike and differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from augment.ledger.keys import KEY_ROWS
from augment.ledger.parts import part_keys, read_part
from augment.ledger.reading import choose
from sharding.errors import MillError

NUM_RANGES = 256
"""Ranges of keys, each of which is held in memory for itself: 20 MB at 100 million rows."""

HELD_ROWS = 1 << 20
"""So many keys are held before they go to the files of their ranges."""

READERS = 16
"""So many key files are fetched at once."""

_PLACED = np.dtype([*((name, KEY_ROWS[name]) for name in KEY_ROWS.names or ()), ("part", "<u4"), ("place", "<u4")])


def read_keys(urls: Sequence[str], folder: Path) -> Iterator[int | None]:
    """Deal out the keys of some parts to files of ranges; of each part, in their order, how many rows it has.

    Yields:
        None for a part that can't be read.

    Raises:
        MillError: the store can't be read, or a part is gone.
    """
    held: list[np.ndarray] = []
    held_rows = 0
    with ThreadPoolExecutor(READERS) as pool:
        for number, found in enumerate(_some_at_once(pool, urls)):
            if found is not None:
                rows = np.zeros(len(found), _PLACED)
                for name in KEY_ROWS.names or ():
                    rows[name] = found[name]
                rows["part"], rows["place"] = number, np.arange(len(found))
                held.append(rows)
                held_rows += len(rows)
            if held_rows >= HELD_ROWS or number == len(urls) - 1:
                _deal_out(held, folder)
                held, held_rows = [], 0
            yield None if found is None else len(found)


def superseded(urls: Sequence[str], folder: Path) -> dict[int, np.ndarray]:
    """The rows that don't count of all that were dealt out, by the number of their part: their places, sorted.

    Holds one range of keys, and 8 bytes for each row found.

    Raises:
        MillError: as `read_keys`.
    """
    parts_found, places_found = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
    for path in sorted(folder.iterdir()):
        rows = np.fromfile(path, _PLACED)
        rows = rows[np.lexsort([rows[name] for name in reversed(_PLACED.names or ())])]
        same = np.ones(len(rows), bool)  # as the row before
        same[:1] = False
        same[1:] = (rows["key"][1:] == rows["key"][:-1]) & (rows["key_rest"][1:] == rows["key_rest"][:-1])
        out, starts = same.copy(), np.append(np.flatnonzero(~same), len(rows))
        for first in _tied(rows, same).tolist():
            end = int(starts[np.searchsorted(starts, first, "right")])
            out[first:end] = True
            out[first + _chosen(rows[first:end], urls)] = False
        parts_found.append(rows["part"][out])
        places_found.append(rows["place"][out])
    parts, places = np.concatenate(parts_found), np.concatenate(places_found)
    order = np.lexsort((places, parts))
    numbers, begins = np.unique(parts[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(places[order], begins[1:]), strict=True)) if len(numbers) else {}


def _tied(rows: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Where groups of one key begin whose first rows rank alike and differ, so that their text decides.

    Args:
        rows: (rows,) sorted.
        same: (rows,) bool, whether a row has the key of the one before.
    """
    ranks_on = ~same
    for name in ("finished_at", "thought_tokens"):
        ranks_on[1:] |= rows[name][1:] != rows[name][:-1]
    differs = ~ranks_on
    differs[1:] &= rows["row"][1:] != rows["row"][:-1]
    starts = np.flatnonzero(ranks_on)
    firsts = np.unique(starts[np.searchsorted(starts, np.flatnonzero(differs), "right") - 1])
    return firsts[~same[firsts]]


def _chosen(rows: np.ndarray, urls: Sequence[str]) -> int:
    """Which of the rows with one key stands for all, from the rows themselves."""
    whole = []
    for row in rows:
        part = read_part(urls[int(row["part"])])
        if part is None:
            raise MillError(f"ledger part {urls[int(row['part'])]} could be read a moment ago and can't be now")
        whole.append(part[int(row["place"])])
    best = choose(whole)
    return next(number for number, one in enumerate(whole) if one is best)


def _some_at_once(pool: ThreadPoolExecutor, urls: Sequence[str]) -> Iterator[np.ndarray | None]:
    """The keys of parts, in their order; few of them are there before they are asked for."""
    for first in range(0, len(urls), 8 * READERS):
        yield from pool.map(part_keys, urls[first : first + 8 * READERS])


def _deal_out(held: list[np.ndarray], folder: Path) -> None:
    if not held:
        return
    rows = np.concatenate(held)
    ranges = (rows["key"] >> np.uint64(64 - NUM_RANGES.bit_length() + 1)).astype(np.int64)
    order = np.argsort(ranges, kind="stable")
    numbers, begins = np.unique(ranges[order], return_index=True)
    for number, some in zip(numbers.tolist(), np.split(rows[order], begins[1:]), strict=True):
        with (folder / f"{number:03}").open("ab") as file:
            some.tofile(file)
