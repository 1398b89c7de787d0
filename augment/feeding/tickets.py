"""What comes back from a feeder: results, and the tickets through which bundles wait for theirs.

A bundle of the augment stage holds one ticket: it submits its requests, takes what has finished while it goes on, and
drains the rest at its end. Results of other bundles never reach it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from augment.engines.protocol import Engine, Generation, GenerationRequest
from augment.requests.closing import close_request, join_closing, needs_closing, opening_request
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
        may_pass: whether the same request may have more luck in another run.
    """

    request: GenerationRequest
    context: Any
    key: str
    model: str
    error: str
    retries: int
    may_pass: bool = True


Result = Completed | Failure


class FeederClosed(MillError):
    """The feeder was closed; nothing is wrong with what was asked, nor with the engine."""


class Receiver(Protocol):
    """Where results go, on the feeder's thread: a `Ticket`, or a connection to another process."""

    def deliver(self, result: Result) -> None:
        """Take a result in."""

    def fail(self, error: BaseException) -> None:
        """Take in that a request will have no result, because of what stopped the feeder."""


class Sink(Protocol):
    """Where the results of a bundle are kept: the ledger."""

    def keep(self, result: Result) -> None:
        """Take a result, exactly once, on the feeder's thread, before the ticket yields it."""


class Job:
    """A submitted request on its way; its result goes to its ticket."""

    __slots__ = ("context", "copies", "deaths", "first", "request", "retries", "started_at", "ticket")

    def __init__(self, request: GenerationRequest, context: Any, ticket: Receiver) -> None:
        self.request = request
        self.context = context
        self.ticket = ticket
        self.copies: list[Job] = []  # the same request again, of a bundle that is run anew; they share its result
        self.first: Generation | None = None  # paid for; what a failed closing call must not buy again
        self.retries = 0
        self.deaths = 0  # of engines while it was in flight
        self.started_at = 0.0

    @property
    def name(self) -> tuple[str, int]:
        """What it has in common with its copies alone: key and seed, as the calls of one trace differ in the seed."""
        return self.request.key, self.request.seed

    async def generate(self, engine: Engine) -> Generation:
        """One try: the first call, unless an earlier try has made it, and the one that closes it at its cap if need be.

        Raises:
            MillError: as `Engine.generate`.
        """
        if self.first is None:
            first = await engine.generate(opening_request(self.request))
            if not needs_closing(self.request, first):
                return first
            self.first = first
        second = await engine.generate(close_request(self.request, self.first))
        return join_closing(self.request, self.first, second)


class Submits(Protocol):
    """Who takes jobs: a `Feeder`."""

    def submit(self, job: Job) -> None: ...


class Ticket:
    """One bundle's requests at a feeder, and at others; get one from `Feeder.ticket`, use it from one thread."""

    def __init__(self, feeder: Submits, sink: Sink | None) -> None:
        self._feeder = feeder
        self._sink = sink
        self._changed = threading.Condition()
        self._done: deque[Result] = deque()
        self._outstanding = 0
        self._error: BaseException | None = None

    def submit(self, request: GenerationRequest, context: Any = None, feeder: Submits | None = None) -> None:
        """Hand a request over; waits while too many are waiting already.

        Args:
            context: comes back with the result.
            feeder: of another model; None: the ticket's own.

        Raises:
            MillError: the engine failed for good.
        """
        with self._changed:
            self._outstanding += 1
        try:
            (feeder or self._feeder).submit(Job(request, context, self))
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
            MillError: the engine failed for good, or the sink raised. What had finished went to the sink.
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
        """Take a result in, once the sink has it."""
        error: BaseException | None = None
        try:
            if self._sink is not None:
                self._sink.keep(result)
        except Exception as raised:  # noqa: BLE001 - raised again in the bundle's own thread
            error = raised
        with self._changed:
            self._done.append(result)
            self._end_one(error)

    def fail(self, error: BaseException) -> None:
        """Take in that a request will have no result, because of what stopped the feeder."""
        with self._changed:
            self._end_one(error)

    def _end_one(self, error: BaseException | None) -> None:
        self._outstanding -= 1
        self._error = self._error or error
        self._changed.notify_all()
