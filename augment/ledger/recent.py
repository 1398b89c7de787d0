"""What this run has generated since it began, so that a bundle that is run again buys nothing twice.

The join of requests and ledger at the start of the stage knows what earlier runs have made. A bundle that fails half
way is tried again within the run, often by another process, with the same elements. Each process therefore remembers
what it has handed to its ledger writer, and looks now and then at the keys of the parts that have come since it last
looked. What is in parts is in sorted runs: short ones in memory, long ones in files that the system maps into memory
as they are looked at.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from typing import NamedTuple

import numpy as np

from augment.ledger.keys import key_hash
from augment.ledger.parts import every_part_keys, part_batches, read_part
from augment.ledger.reading import STEP_COLUMNS, choose
from sharding.errors import MillError
from sharding.records.types import LedgerRow
from sharding.storage import clock

logger = logging.getLogger(__name__)

CLOCK_SKEW_MS = 600_000
"""Parts are dated by the store's clock; where a store has none to go by, so much may a writer's be behind."""

REFRESH_S = 5.0
REFRESH_SHARE = 0.05
"""The store is asked again after 5 s at the earliest, and so seldom that it takes at most this share of the time."""

_MAX_RUNS = 16
LONG_ROWS = 1 << 19
"""Runs of so many rows, 13 MB, go to files, and are not merged with others again."""


class Run(NamedTuple):
    """Generations of some parts, sorted: four arrays of (rows,), so that keys lie side by side and can be searched.

    Attributes:
        key: uint64, hashes of their keys.
        finished_at, thought_tokens: float64 and uint32, what they rank by.
        part: uint32, the number of the part that each is in.
    """

    key: np.ndarray
    finished_at: np.ndarray
    thought_tokens: np.ndarray
    part: np.ndarray

    def __len__(self) -> int:
        return len(self.key)


class FinishedSince:
    """The generations of one run that are in the ledger, or on their way there through this process.

    Takes 24 bytes a generation, 200 MB of memory at most and of temporary files for those that were found first: 64
    bits of a hash of its key, and what `reading.choose` goes by, so that of two generations with one key that one
    counts which is kept. Among 10 million generations of a run, one in a million runs mistakes a key for another.

    Args:
        ledger_url: the ledger.
        since_ms: Unix time in milliseconds when the run began, by the store's clock.
    """

    def __init__(self, ledger_url: str, since_ms: int) -> None:
        self._url = ledger_url
        self._since_ms = since_ms - CLOCK_SKEW_MS
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._own: dict[int, tuple[float, int]] = {}  # by hash, until a part has it
        self._own_steps: dict[int, LedgerRow] = {}  # what recipes go on from, as long
        self._urls: list[str] = []
        self._last_part: tuple[str, dict[str, LedgerRow]] = ("", {})
        self._seen: set[str] = set()
        self._sound: dict[str, bool] = {}
        self._runs: list[Run] = []
        self._long_runs: list[Run] = []
        self._next_refresh = 0.0

    def add(self, row: LedgerRow) -> None:
        """Note a generation that this process has handed to its ledger writer."""
        with self._lock:
            self._own[_hash(row.key)] = (row.finished_at, row.thought_tokens)
            if row.step:
                self._own_steps[_hash(row.key)] = row

    def refresh(self) -> None:
        """Look at the parts that are new, unless that was done a moment ago. Never fails."""
        with self._refreshing:
            started, started_ms = time.monotonic(), clock.now_ms(self._url)
            if started < self._next_refresh:
                return
            try:
                for url, keys in every_part_keys(self._url, since_ms=self._since_ms, seen=self._seen):
                    if keys is not None:
                        self._take(url, keys)
                # What is dated earlier was listed now, however late its writer's clock is and however long it took.
                self._since_ms = max(self._since_ms, started_ms - 2 * CLOCK_SKEW_MS)
            except MillError as error:
                logger.warning("what this run has generated already can't be looked up: %s", error)
            now = time.monotonic()
            self._next_refresh = now + max(REFRESH_S, (now - started) / REFRESH_SHARE)

    def tokens(self, key: str) -> int | None:
        """The tokens of a generation that is there, of several the one that `reading.choose` takes; or None."""
        wanted = _hash(key)
        with self._lock:
            found = [self._own[wanted]] if wanted in self._own else []
            in_parts = [
                (float(run.finished_at[at]), int(run.thought_tokens[at]), self._urls[int(run.part[at])])
                for run in (*self._runs, *self._long_runs)
                for at in range(*(int(np.searchsorted(run.key, np.uint64(wanted), s)) for s in ("left", "right")))
            ]
        found += [(finished_at, tokens) for finished_at, tokens, url in in_parts if self._is_sound(url)]
        return min(found)[1] if found else None

    def _is_sound(self, url: str) -> bool:
        """Whether a part can be read, of which its keys don't tell; looked at once, where something of it is wanted."""
        if url not in self._sound:
            try:
                self._sound[url] = part_batches(url, ("key",)) is not None
            except MillError:  # gone, since a compaction has read it; or the store refuses for now
                return True
        return self._sound[url]

    def row(self, key: str) -> LedgerRow | None:
        """The row of a recipe's call that is there, without its token ids; None where there is none, or no longer.

        Raises:
            MillError: the store can't be read.
        """
        found = self._find(key)
        if found is None and self._is_known(key):  # a compaction has just replaced its part
            self._next_refresh = 0.0
            self.refresh()
            found = self._find(key)
        return found

    def _find(self, key: str) -> LedgerRow | None:
        with self._lock:
            own = self._own_steps.get(_hash(key))
            urls = self._parts_with(_hash(key)) if own is None else []
        rows = [row for url in urls if (row := self._rows_of(url).get(key)) is not None]
        return own if own is not None or not rows else choose(rows)

    def _is_known(self, key: str) -> bool:
        with self._lock:
            return bool(self._parts_with(_hash(key)))

    def _parts_with(self, wanted: int) -> list[str]:
        numbers: list[int] = []
        for run in (*self._runs, *self._long_runs):
            first, end = (int(np.searchsorted(run.key, np.uint64(wanted), side)) for side in ("left", "right"))
            numbers += run.part[first:end].tolist()
        return [self._urls[number] for number in sorted(set(numbers))]

    def _rows_of(self, url: str) -> dict[str, LedgerRow]:
        """The rows of a part by key; of the last part asked for they are at hand."""
        if self._last_part[0] != url:
            try:
                rows = read_part(url, STEP_COLUMNS) or ()
            except MillError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                rows = ()  # a compaction has just replaced it
            self._last_part = (url, {row.key: row for row in rows if row.step})
        return self._last_part[1]

    def _take(self, url: str, keys: np.ndarray) -> None:
        with self._lock:
            self._urls.append(url)
            part = np.full(len(keys), len(self._urls) - 1, np.uint32)
            run = _sorted(keys["key"], keys["finished_at"], keys["thought_tokens"], part)
            for key in keys["key"].tolist():
                self._own.pop(key, None)  # the part has it now
                self._own_steps.pop(key, None)
            self._runs.append(run)
            if len(self._runs) > _MAX_RUNS:
                self._merge()

    def _merge(self) -> None:
        """Make few runs of many, the short ones first, so that a row is sorted anew only a few times."""
        self._runs.sort(key=len)
        short, others = self._runs[: _MAX_RUNS // 2], self._runs[_MAX_RUNS // 2 :]
        merged = _sorted(*map(np.concatenate, zip(*short, strict=True)))
        self._runs = [merged, *(run for run in others if len(run) < LONG_ROWS)]
        self._long_runs += [_in_files(run) for run in others if len(run) >= LONG_ROWS]


def _sorted(key: np.ndarray, finished_at: np.ndarray, tokens: np.ndarray, part: np.ndarray) -> Run:
    order = np.lexsort((tokens, finished_at, key))
    return Run(key[order], finished_at[order], tokens[order], part[order])


def _in_files(run: Run) -> Run:
    """The same rows in temporary files that go with the process."""
    arrays = []
    for array in run:
        with tempfile.TemporaryFile() as file:
            array.tofile(file)
            file.flush()
            arrays.append(np.memmap(file, array.dtype, mode="r", shape=array.shape))
    return Run(*arrays)


def _hash(key: str) -> int:
    return key_hash(key)[0]
