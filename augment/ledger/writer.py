"""Writing the ledger: rows from any thread, made durable by count and by time."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time

import pyarrow as pa

from augment.ledger.parts import write_part
from augment.ledger.reading import logger
from sharding.errors import MillError
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.types import LedgerRow

MAX_UNWRITTEN_FLUSHES = 16
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
            while len(self._pending) >= MAX_UNWRITTEN_FLUSHES * self._flush_rows:
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
