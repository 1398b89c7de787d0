"""Where the bundles' threads hand their jobs to a feeder's event loop: bounded, until an error ends it.

The only part of feeding that needs a lock; what the loop does with the jobs is in `feeding.feeder`.
"""

from __future__ import annotations

import asyncio
import threading

from augment.feeding.tickets import FeederClosed, Job
from sharding.errors import restated


class Intake:
    """Jobs on their way into one event loop.

    Args:
        name: the model's name, for messages.
        loop: the one that takes the jobs; it may be closed once the intake is.
        max_waiting: jobs that may wait for the engine; more make `put` wait.

    Attributes:
        changed: set when the loop should look. closed: set when it should end. Both are the loop's.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, max_waiting: int) -> None:
        self._name = name
        self._loop = loop
        self.changed, self.closed = asyncio.Event(), asyncio.Event()
        self._lock = threading.Condition()
        self._jobs: list[Job] = []
        self._room = max_waiting
        self._unfinished = 0
        self._error: BaseException | None = None

    def put(self, job: Job) -> None:
        """Hand a job over. Waits while too many are waiting already.

        Raises:
            MillError: the intake is closed.
        """
        with self._lock:
            while self._room == 0 and self._error is None:
                self._lock.wait()
            if isinstance(self._error, FeederClosed):
                raise FeederClosed(str(self._error))
            if self._error is not None:
                raise restated(self._error, f"the engine of model {self._name} failed: {self._error}") from self._error
            self._room -= 1
            self._unfinished += 1
            self._jobs.append(job)
            if len(self._jobs) == 1:
                self._loop.call_soon_threadsafe(self.changed.set)

    def wake(self) -> None:
        """Have the loop look."""
        with self._lock:
            if self._error is None:
                self._loop.call_soon_threadsafe(self.changed.set)

    def close(self, error: BaseException | None) -> BaseException:
        """Take no more jobs; who hands one over gets the error. The first one stays, and is returned."""
        with self._lock:
            if self._error is None:
                self._error = error or FeederClosed(f"the engine of model {self._name} was closed")
                self._loop.call_soon_threadsafe(self.closed.set)
                self._lock.notify_all()
            return self._error

    @property
    def error(self) -> BaseException | None:
        """Why no more jobs are taken, or None."""
        with self._lock:
            return self._error

    @property
    def unfinished(self) -> int:
        """Jobs that were handed over and have no outcome yet."""
        with self._lock:
            return self._unfinished

    # --- for the loop -------------------------------------------------------------------------------------------------

    def take(self) -> list[Job]:
        """What was handed over since the last call."""
        with self._lock:
            jobs, self._jobs = self._jobs, []
        return jobs

    def make_room(self, count: int) -> None:
        """So many jobs no longer wait for the engine."""
        if count:
            with self._lock:
                self._room += count
                self._lock.notify_all()

    def finish(self, count: int) -> None:
        """So many jobs have their outcome."""
        with self._lock:
            self._unfinished -= count
