"""The ledger: every finished generation, appended to immutable Arrow parts on any store, never bought twice.

Written by the augment stage while it generates, read when it starts (to leave out what is there), by select, and by
`thoughtmill status` from another machine. A part appears whole or not at all; what it looks like, and how a damaged one
is recognised, is in `augment.parts`. Rows with equal keys, from bundles that were run twice, collapse to one by
`choose`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from augment.parts import every_part, ledger_parts, read_part, write_part
from sharding.errors import MillError
from sharding.records import LEDGER_SCHEMA, LedgerRow, encode, from_batch
from sharding.shard_io import chunks, remove

__all__ = [
    "Compaction",
    "LedgerWriter",
    "choose",
    "collapse_duplicates",
    "compact",
    "finished_keys",
    "ledger_parts",
    "read_ledger",
    "read_part",
]

logger = logging.getLogger(__name__)

_MAX_UNWRITTEN_FLUSHES = 16
"""How many flushes' worth of rows may wait for a slow store before `add` waits too."""


class LedgerWriter:
    """Appends rows from any thread; a thread of its own writes them out by count and by time.

    What was added is durable once `flush` has returned. A part that can't be written is tried again with the next
    flush, its rows kept; only `flush`, `close` and an overfull buffer report the error.
    """

    def __init__(
        self, ledger_url: str, schema: pa.Schema = LEDGER_SCHEMA, *, flush_rows: int = 256, flush_seconds: float = 10.0
    ) -> None:
        self._url = ledger_url
        self._schema = schema
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._changed = threading.Condition()
        self._pending: list[LedgerRow] = []
        self._added = 0
        self._durable = 0
        self._wanted = 0  # rows that a caller of flush waits for
        self._attempts = 0
        self._due = 0.0
        self._error: MillError | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, row: LedgerRow) -> None:
        """Take a row to be written soon. Returns at once unless the store is far behind.

        Raises:
            MillError: the writer is closed, or the buffer is full and the store refuses.
        """
        with self._changed:
            if self._closed:
                raise MillError(f"ledger {self._url} is closed")
            while len(self._pending) >= _MAX_UNWRITTEN_FLUSHES * self._flush_rows:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            if not self._pending:
                self._due = time.monotonic() + self._flush_seconds
            self._pending.append(row)
            self._added += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="thoughtmill-ledger", daemon=True)
                self._thread.start()
                atexit.register(self._close_at_exit)  # what was paid for and waits to be written
            if len(self._pending) >= self._flush_rows or len(self._pending) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when every row added before is durable.

        Raises:
            MillError: the store refused.
        """
        with self._changed:
            goal, attempts = self._added, self._attempts
            self._wanted = max(self._wanted, goal)
            self._changed.notify_all()
            while self._durable < goal:
                if self._error is not None and self._attempts > attempts:
                    raise self._error
                self._changed.wait()

    def close(self) -> None:
        """Flush and end. Safe to call twice.

        Raises:
            MillError: the store refused the last rows.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        atexit.unregister(self._close_at_exit)
        try:
            self.flush()
        finally:
            if self._thread is not None:
                self._thread.join()

    def _close_at_exit(self) -> None:
        with contextlib.suppress(MillError):  # was logged
            self.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    if self._closed and not self._pending:
                        return
                    self._changed.wait(self._due - time.monotonic() if self._pending else None)
                rows, self._pending = self._pending, []
            error = self._write(rows)
            with self._changed:
                self._attempts += 1
                self._error = error
                if error is None:
                    self._durable += len(rows)
                else:
                    self._pending = rows + self._pending
                    self._wanted = self._durable
                    self._due = time.monotonic() + self._flush_seconds
                self._changed.notify_all()
                if self._closed:
                    return

    def _is_due(self) -> bool:
        if not self._pending:
            return False
        if self._closed:
            return True
        if self._error is not None and self._wanted <= self._durable:
            return time.monotonic() >= self._due  # the store refused: count no longer hurries
        full = len(self._pending) >= self._flush_rows
        return full or self._wanted > self._durable or time.monotonic() >= self._due

    def _write(self, rows: list[LedgerRow]) -> MillError | None:
        try:
            write_part(self._url, rows, self._schema)
        except Exception as error:  # noqa: BLE001 - this thread has no caller; flush and close raise it
            logger.warning("ledger: %d rows wait to be written: %s", len(rows), error)
            return error if isinstance(error, MillError) else MillError(f"cannot write to ledger {self._url}: {error}")
        return None


def read_ledger(ledger_url: str, columns: Sequence[str] | None = None) -> Iterator[LedgerRow]:
    """All rows, duplicates included, in no order that means anything; parts that can't be read are left out.

    A part that a compaction has just replaced is found under its new name; its rows may then come twice.

    Raises:
        MillError: the store can't be read.
    """
    for batches in every_part(ledger_url, columns):
        for batch in batches:
            yield from from_batch(LedgerRow, batch)


def finished_keys(ledger_url: str) -> set[str]:
    """The keys of all generations that are there: what need not be generated."""
    return {row.key for row in read_ledger(ledger_url, columns=["key"])}


def choose(rows: Iterable[LedgerRow]) -> LedgerRow:
    """The row that stands for rows with equal keys: the earliest, and among equals the least in bytes.

    Depends on the rows alone, not on their order or the parts they came from.

    Raises:
        ValueError: there are no rows.
    """
    return min(rows, key=lambda row: (row.finished_at, row.text, encode(row)))


def collapse_duplicates(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """One row per key, in the order of request and sample; all are held in memory."""
    by_key: dict[str, LedgerRow] = {}
    for row in rows:
        other = by_key.get(row.key)
        by_key[row.key] = row if other is None else choose([row, other])
    return sorted(by_key.values(), key=lambda row: (row.request_key, row.sample))


@dataclass(frozen=True)
class Compaction:
    """What `compact` did: parts and rows before and after."""

    parts_before: int
    parts_after: int
    rows_before: int
    rows_after: int


def compact(ledger_url: str, *, rows_per_part: int = 20_000) -> Compaction:
    """Rewrite the ledger as few large parts without duplicates, while others may read and append.

    The new parts are there before the old ones go, so a kill in between leaves duplicates, never holes. Parts that
    can't be read are left where they are. Holds the keys of all rows in memory, about 100 bytes each, and one part.

    Raises:
        MillError: the store can't be read or written.
    """
    old: list[str] = []
    counts: dict[str, int] = {}
    for url in ledger_parts(ledger_url):
        rows = read_part(url)
        if rows is None:
            continue
        old.append(url)
        for row in rows:
            counts[row.key] = counts.get(row.key, 0) + 1
    rows_before = sum(counts.values())
    if len(old) <= 1 and rows_before == len(counts):
        return Compaction(len(old), len(old), rows_before, rows_before)
    new = 0
    for chunk in chunks(_unique(old, counts), rows_per_part, lambda row: 1):
        write_part(ledger_url, chunk)
        new += 1
    for url in old:
        remove(url)
    return Compaction(len(old), new, rows_before, len(counts))


def _unique(urls: list[str], counts: dict[str, int]) -> Iterator[LedgerRow]:
    """The rows of some parts, one per key; duplicates come once the last of them has been read."""
    waiting: dict[str, list[LedgerRow]] = {}
    for url in urls:
        rows = read_part(url)
        if rows is None:
            raise MillError(f"ledger part {url} could be read a moment ago and can't be now; nothing was removed")
        for row in rows:
            if counts[row.key] == 1:
                yield row
                continue
            same = waiting.setdefault(row.key, [])
            same.append(row)
            if len(same) == counts[row.key]:
                yield choose(waiting.pop(row.key))
