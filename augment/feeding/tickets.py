"""What comes back from a feeder: results, and the tickets through which bundles wait for theirs.

A bundle of the augment stage holds one ticket: it submits its requests, takes what has finished while it goes on, and
drains the rest at its end. Results of other bundles never reach it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from augment.engines.protocol import Generation, GenerationRequest
from sharding.errors import MillError, restated


@dataclass(frozen=True, eq=False)
class Completed:
    """A finished request.

    Attributes:
        context: as given to `submit`.
        retries: failed tries before.
        wall_s: seconds from when the engine got it.
        finished_at: Unix time, seconds.
    """

    request: GenerationRequest
    context: Any
    generation: Generation
    retries: int
    wall_s: float
    finished_at: float


@dataclass(frozen=True, eq=False)
class Failure:
    """A request that was given up, alone: for the quarantine.

    Attributes:
        context: as given to `submit`.
        key, model, error: what failed, where and why.
        retries: tries after the first.
    """

    request: GenerationRequest
    context: Any
    key: str
    model: str
    error: str
    retries: int


Result = Completed | Failure


class FeederClosed(MillError):
    """The feeder was closed; nothing is wrong with what was asked, nor with the engine."""


class Receiver(Protocol):
    """Where results go, called on the feeder's thread: a `Ticket`, or a connection to another process."""

    def deliver(self, result: Result) -> None:
        """Take a result in."""

    def fail(self, error: BaseException) -> None:
        """Take in that a request will have no result, because of what stopped the feeder."""


class Job:
    """A submitted request on its way; its result goes to its ticket."""

    __slots__ = ("context", "deaths", "first", "request", "retries", "riders", "started_at", "ticket")

    def __init__(self, request: GenerationRequest, context: Any, ticket: Receiver) -> None:
        self.request = request
        self.context = context
        self.ticket = ticket
        self.first: Generation | None = None  # paid for; what a failed closing call must not buy again
        self.riders: list[Job] = []  # the same request again, of a bundle that is run anew; they share its result
        self.retries = 0
        self.deaths = 0  # of engines while it was in flight
        self.started_at = 0.0


class Ticket:
    """One bundle's requests at a feeder; get one from `Feeder.ticket`, use it from one thread."""

    def __init__(self, submit: Callable[[Job], None], on_result: Callable[[Result], None] | None) -> None:
        self._submit = submit
        self._on_result = on_result
        self._changed = threading.Condition()
        self._done: deque[Result] = deque()
        self._outstanding = 0
        self._error: BaseException | None = None

    def submit(self, request: GenerationRequest, context: Any = None) -> None:
        """Hand a request over; waits while too many are waiting already.

        Args:
            context: comes back with the result.

        Raises:
            MillError: the engine failed for good.
        """
        with self._changed:
            self._outstanding += 1
        try:
            self._submit(Job(request, context, self))
        except MillError:
            with self._changed:
                self._outstanding -= 1
            raise

    def take(self) -> list[Result]:
        """What has finished since the last call, without waiting.

        Raises:
            MillError: as `drain`.
        """
        with self._changed:
            return self._collect()

    def drain(self) -> Iterator[Result]:
        """All results not taken yet, as they come; ends when every submitted request has one.

        Raises:
            MillError: the engine failed for good, or the callback raised. What had finished went to the callback.
        """
        while True:
            with self._changed:
                while not self._done and self._outstanding and self._error is None:
                    self._changed.wait()
                results = self._collect()
            if not results:
                return
            yield from results

    def _collect(self) -> list[Result]:
        if isinstance(self._error, MillError):
            raise restated(self._error, str(self._error)) from self._error
        if self._error is not None:
            raise MillError(f"generation stopped: {self._error!r}") from self._error
        results = list(self._done)
        self._done.clear()
        return results

    # --- from the feeder's thread -------------------------------------------------------------------------------------

    def deliver(self, result: Result) -> None:
        """Take a result in; the callback first."""
        error: BaseException | None = None
        try:
            if self._on_result is not None:
                self._on_result(result)
        except Exception as raised:  # noqa: BLE001 - raised again in the bundle's own thread
            error = raised
        with self._changed:
            self._done.append(result)
            self._settled(error)

    def fail(self, error: BaseException) -> None:
        """Take in that a request will have no result, because of what stopped the feeder."""
        with self._changed:
            self._settled(error)

    def _settled(self, error: BaseException | None) -> None:
        self._outstanding -= 1
        self._error = self._error or error
        self._changed.notify_all()
