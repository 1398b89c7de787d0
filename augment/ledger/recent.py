"""What this run has generated since it began, so that a bundle that is run again buys nothing twice.

The join of requests and ledger at the start of the stage knows what earlier runs have made. A bundle that fails half
way is tried again within the run, often by another process, with the same elements. Each process therefore remembers
what it has handed to its ledger writer, and looks now and then at the parts that have come since the run began.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from augment.ledger.parts import every_part, read_part
from augment.ledger.reading import RANK, STEP_COLUMNS, choose
from sharding.errors import MillError
from sharding.hashing import text_number
from sharding.records.types import LedgerRow

logger = logging.getLogger(__name__)

CLOCK_SKEW_MS = 600_000
"""Parts are dated by the clock of the machine that wrote them; so much may it be behind."""

REFRESH_S = 5.0
REFRESH_SHARE = 0.05
"""The store is asked again after 5 s at the earliest, and so seldom that it takes at most this share of the time."""

_MAX_CHUNKS = 16

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Hashes of keys, finished_at and thought_tokens, sorted by all three; and the number of the part each is in."""


class FinishedSince:
    """The generations of one run that are in the ledger, or on their way there through this process.

    Takes 24 bytes of memory a generation: 64 bits of a hash of its key, and what `reading.choose` goes by, so that of
    two generations with one key that one counts which is kept. Among 10 million generations of a run, one in a million
    runs mistakes a key for another.

    Args:
        ledger_url: the ledger.
        since_ms: Unix time in milliseconds when the run began.
    """

    def __init__(self, ledger_url: str, since_ms: int) -> None:
        self._url = ledger_url
        self._since_ms = since_ms - CLOCK_SKEW_MS
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._own: dict[str, tuple[float, int]] = {}
        self._own_steps: dict[str, LedgerRow] = {}  # what recipes go on from, until a part has it
        self._urls: list[str] = []
        self._last_part: tuple[str, dict[str, LedgerRow]] = ("", {})
        self._seen: set[str] = set()
        self._chunks: list[Chunk] = []
        self._next_refresh = 0.0

    def add(self, row: LedgerRow) -> None:
        """Note a generation that this process has handed to its ledger writer."""
        with self._lock:
            self._own[row.key] = (row.finished_at, row.thought_tokens)
            if row.step:
                self._own_steps[row.key] = row

    def refresh(self) -> None:
        """Look at the parts that are new, unless that was done a moment ago. Never fails."""
        with self._refreshing:
            started = time.monotonic()
            if started < self._next_refresh:
                return
            try:
                parts = every_part(self._url, ("key", *RANK), since_ms=self._since_ms, seen=self._seen)
                for url, batches in parts:
                    self._take(url, batches or ())
            except MillError as error:
                logger.warning("what this run has generated already can't be looked up: %s", error)
            now = time.monotonic()
            self._next_refresh = now + max(REFRESH_S, (now - started) / REFRESH_SHARE)

    def tokens(self, key: str) -> int | None:
        """The tokens of a generation that is there, of several the one that `reading.choose` takes; or None."""
        wanted = _hash(key)
        with self._lock:
            found = [self._own[key]] if key in self._own else []
            for hashes, finished_at, tokens, _ in self._chunks:
                at = int(np.searchsorted(hashes, wanted))
                if at < len(hashes) and hashes[at] == wanted:
                    found.append((float(finished_at[at]), int(tokens[at])))
        return min(found)[1] if found else None

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
            own = self._own_steps.get(key)
            urls = self._parts_with(_hash(key)) if own is None else []
        rows = [row for url in urls if (row := self._rows_of(url).get(key)) is not None]
        return own if own is not None or not rows else choose(rows)

    def _is_known(self, key: str) -> bool:
        with self._lock:
            return bool(self._parts_with(_hash(key)))

    def _parts_with(self, wanted: np.uint64) -> list[str]:
        numbers: list[int] = []
        for hashes, _, _, parts in self._chunks:
            first, end = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
            numbers += parts[first:end].tolist()
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

    def _take(self, url: str, batches: Iterable[pa.RecordBatch]) -> None:
        with self._lock:
            self._urls.append(url)
        for batch in batches:
            keys = batch.column("key").to_pylist()
            hashes = np.array([_hash(key) for key in keys], np.uint64)
            finished_at = batch.column("finished_at").to_numpy()
            tokens = batch.column("thought_tokens").to_numpy().astype(np.uint32)
            with self._lock:
                for key in keys:
                    self._own.pop(key, None)  # the part has it now
                    self._own_steps.pop(key, None)
                part = np.full(len(keys), len(self._urls) - 1, np.uint32)
                self._chunks.append(_sorted(hashes, finished_at, tokens, part))
                if len(self._chunks) > _MAX_CHUNKS:
                    self._merge()

    def _merge(self) -> None:
        """Make few chunks of many, the small ones first, so that a row is sorted anew only a few times."""
        self._chunks.sort(key=lambda chunk: len(chunk[0]))
        small, large = self._chunks[: _MAX_CHUNKS // 2], self._chunks[_MAX_CHUNKS // 2 :]
        self._chunks = [_sorted(*map(np.concatenate, zip(*small, strict=True))), *large]


def _sorted(hashes: np.ndarray, finished_at: np.ndarray, tokens: np.ndarray, parts: np.ndarray) -> Chunk:
    order = np.lexsort((tokens, finished_at, hashes))
    return hashes[order], finished_at[order], tokens[order], parts[order]


def _hash(key: str) -> np.uint64:
    return np.uint64(text_number(key))
