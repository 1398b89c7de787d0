"""What a worker process keeps for a run, shared by its bundles: ledger writer, what is finished, failures, heartbeat.

Between the transforms, whose bundles come and go, and the feeders of `augment.feeding.registry`, which know of no run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass

import msgspec

from augment.feeding import registry
from augment.feeding.heartbeat import Heartbeat
from augment.feeding.lengths import LearnedLengths, Measured
from augment.feeding.tickets import Failure
from augment.ledger.parts import PARTIAL_PART, write_part
from augment.ledger.recent import FinishedSince
from augment.ledger.writer import LedgerWriter
from sharding.errors import MillError
from sharding.records.types import LedgerRow
from sharding.storage import clock

logger = logging.getLogger(__name__)

MIN_FAILURES = 100
"""Fewer failures than this in a process say nothing of the share that will fail in the whole run."""


_lock = threading.Lock()


class TooManyFailures(MillError):
    """The run is stopped before it pays for more of what fails."""


class Stopped(TooManyFailures):
    """Who watches the run has stopped it, before it pays for more."""


def way_out(failed: int, hopeless: int) -> str:
    """What to do after failures, of which `hopeless` would be the same in another run."""
    if hopeless == failed:
        return "what was generated is in the ledger; the same requests would fail again: change what they failed for"
    return "what was generated is in the ledger, run again to try the rest"


def too_many_empty(empty: int, ended: int, limit: float, ledger_url: str) -> TooManyFailures:
    """What to say where generations have no text: they are in the ledger, and would be found there for good."""
    return TooManyFailures(
        f"{empty} of {ended} generations have no text, more than ledger.max_empty_fraction={limit} allows: mend what "
        f"answers, take them out with `thoughtmill ledger drop {ledger_url} --where reason=empty`, and run again"
    )


@dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """A run as its worker processes know it.

    Attributes:
        run_id: tells this attempt at the stage from all others.
        began_ms: when it began, Unix time in milliseconds by the clock of the ledger's store.
        ledger_url, flush_rows, flush_seconds: where finished generations go, and when: see `LedgerWriter`.
        planned_generations: of the whole run, at most; None: not known.
        max_failed_fraction, max_empty_fraction: of them; more that fail, or have no text, stop the run.
        beats_url: folder of the heartbeats; None: there are none.
        drain_s: what is in flight may go on for so long when the process is told to end, seconds.
        lengths: of generations, as the ledger's last parts had them: see `lengths.measured_in`.
    """

    run_id: str
    began_ms: int
    ledger_url: str
    flush_rows: int = 256
    flush_seconds: float = 10.0
    planned_generations: int | None = None
    max_failed_fraction: float = 1.0
    max_empty_fraction: float = 1.0
    beats_url: str | None = None
    drain_s: float = 0.0
    lengths: tuple[Measured, ...] = ()


class Worker:
    """This process's part in a run.

    Attributes:
        finished: what the run has generated.
        run_lengths: what was learned of how many tokens whole runs of recipes take.
        bundles: how many are at work here.
    """

    def __init__(self, order: WorkOrder) -> None:
        self.order = order
        self.finished = FinishedSince(order.ledger_url, order.began_ms)
        self.run_lengths = LearnedLengths(order.lengths)
        self._writer = LedgerWriter(order.ledger_url, flush_rows=order.flush_rows, flush_seconds=order.flush_seconds)
        self._heartbeat = Heartbeat(order.beats_url) if order.beats_url else None
        self._lock = threading.Lock()
        self._failed: dict[str, bool] = {}  # by key: whether it may pass in another run
        self._empty: set[str] = set()
        self._partial: list[LedgerRow] = []
        self._writing_partial = threading.Lock()
        self._completed = 0
        self._last_failure = ""
        self._stopped = ""
        self.bundles = 0

    def end(self) -> None:
        """A bundle has ended, well or not."""
        with _lock:
            self.bundles -= 1
        if self._heartbeat is not None:
            self._heartbeat.end()

    def begin(self) -> None:
        """A bundle begins; see `begin_bundle`."""
        if self._heartbeat is not None:
            self._heartbeat.begin()
        self.check_failures()
        self.finished.refresh()

    def keep(self, row: LedgerRow) -> None:
        """Take a finished generation. It is durable after the next `flush`.

        Raises:
            MillError: the store has refused for long.
        """
        row = self._dated(row)
        with self._lock:
            if not row.step:  # a recipe counts once, with what comes of it
                self._completed += 1
                if not row.text.strip():
                    self._empty.add(row.key)
        if self.finished.tokens(row.key) is None:  # two bundles may have asked for it
            self._writer.add(row)
            self.finished.add(row)

    def keep_partial(self, row: LedgerRow) -> None:
        """Take what there is of a generation that won't be finished here. It is durable after the next `flush`."""
        row = self._dated(row)
        with self._lock:
            self._partial.append(row)

    def _dated(self, row: LedgerRow) -> LedgerRow:
        """The row, dated by the store's clock: rows of several machines are compared by their dates."""
        finished_at = clock.by_store(self.order.ledger_url, row.finished_at)
        return row if finished_at == row.finished_at else msgspec.structs.replace(row, finished_at=finished_at)

    def note_failure(self, failure: Failure) -> None:
        """Take note of a request that was given up."""
        self.note_failed_run(failure.key, failure.error, may_pass=failure.may_pass)

    def note_failed_run(self, key: str, error: str, *, may_pass: bool) -> None:
        """Take note of a run of a recipe that was given up, by the key of what should have come of it."""
        with self._lock:
            self._failed[key] = may_pass
            self._last_failure = error

    def is_empty(self, key: str) -> bool:
        """Whether a generation of this process has no text."""
        return key in self._empty

    def check_failures(self) -> None:
        """Stop a run that can't end well, before it has paid for the rest.

        It can't when more has failed here than may fail in the whole run, or, as far as one process can tell, when
        after `MIN_FAILURES` failures their share is over the limit; the same goes for generations without text.

        Raises:
            TooManyFailures: says how much failed, and the last reason; or how much is empty.
            Stopped: somebody has stopped it.
        """
        self._check_stop()
        limit, empty_limit = self.order.max_failed_fraction, self.order.max_empty_fraction
        with self._lock:
            failed, empty, ended = len(self._failed), len(self._empty), len(self._failed) + self._completed
            if self._is_too_much(empty, empty_limit, ended):
                raise too_many_empty(empty, ended, empty_limit, self.order.ledger_url)
            if not self._is_too_much(failed, limit, ended):
                return
            reason, hopeless = self._last_failure, failed - sum(self._failed.values())
        raise TooManyFailures(
            f"{failed} of the first {ended} generations of a worker failed, more than "
            f"ledger.max_failed_fraction={limit} allows; the last one: {reason}; {way_out(failed, hopeless)}"
        )

    def stop(self, reason: str) -> None:
        """Have every bundle here end with `Stopped` at its next result."""
        self._stopped = reason

    def _check_stop(self) -> None:
        told = self._heartbeat.stop if self._heartbeat is not None else None
        if told is not None and told[0] == self.order.run_id:
            self._stopped = told[1]
        if self._stopped:
            raise Stopped(self._stopped)

    def _is_too_much(self, bad: int, limit: float, ended: int) -> bool:
        planned = self.order.planned_generations
        certain = planned is not None and bad > limit * planned
        return certain or (bad >= MIN_FAILURES and bad > limit * ended)

    def flush(self) -> None:
        """Return when everything kept so far is durable.

        Raises:
            MillError: the store refused.
        """
        self._writer.flush()
        self._write_partial()

    def _write_partial(self) -> None:
        with self._writing_partial:  # whoever comes second returns when what the first has taken is durable
            with self._lock:
                rows = list(self._partial)
            if rows:
                write_part(self.order.ledger_url, rows, kind=PARTIAL_PART)
                with self._lock:
                    del self._partial[: len(rows)]

    def close(self) -> None:
        """Write what is left and end; for a run that is over."""
        if self._heartbeat is not None:
            self._heartbeat.close()
        for write in (self._writer.close, self._write_partial):
            try:
                write()
            except MillError as error:
                logger.warning("%s", error)


_workers: dict[WorkOrder, Worker] = {}


def begin_bundle(order: WorkOrder) -> Worker:
    """This process's part in a run, for one bundle; give it back with `Worker.end`. Ends those in runs that are over.

    Raises:
        TooManyFailures: as `Worker.check_failures`.
    """
    with _lock:
        over = [other for other in _workers.values() if other.bundles == 0 and other.order != order]
        for other in over:
            del _workers[other.order]
        if order not in _workers:
            _workers[order] = Worker(order)
        found = _workers[order]
        found.bundles += 1
    for other in over:
        other.close()
    try:
        found.begin()
    except MillError:
        found.end()
        raise
    return found


def stop(order: WorkOrder, reason: str) -> None:
    """Have this process's part in a run stop; see `feeding.stopping`."""
    with _lock:
        found = _workers.get(order)
    if found is not None:
        found.stop(reason)


def close_all(*, drain: bool = False) -> None:
    """End all engines and writers of this process. What there is of what doesn't finish is written as partial rows.

    Args:
        drain: what is in flight may go on for the `drain_s` of its run.
    """
    with _lock:
        drain_s = max((order.drain_s for order in _workers), default=0.0) if drain else 0.0
    registry.close_all(drain_s)
    with _lock:
        workers = list(_workers.values())
        _workers.clear()
    for one in workers:
        with contextlib.suppress(MillError):  # was logged, and must not hide why everything ends
            one.close()
