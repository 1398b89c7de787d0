"""What comes back from a feeder: results, and the tickets through which bundles wait for theirs.

A bundle of the augment stage holds one ticket: it submits its requests, takes what has finished while it goes on, and
drains the rest at its end. Results of other bundles never reach it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from augment.engines.protocol import Engine, Generation, GenerationRequest, Interrupted
from augment.requests.closing import close_request, join_closing, needs_closing, opening_request
from augment.requests.continuing import join_rest, rest_of, whole
from sharding.errors import MillError, restated

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Completed:
    """A finished request.

    Attributes:
        context: as given to `submit`.
        retries: failed tries before.
        wall_s: seconds from when the engine got it.
        finished_at: Unix time, seconds.
        found_tokens: of the tokens, those that were given to `submit` as begun.
    """

    request: GenerationRequest
    context: Any
    generation: Generation
    retries: int
    wall_s: float
    finished_at: float
    found_tokens: int = 0


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


@dataclass(frozen=True, eq=False)
class Partial:
    """What there is of a request that won't be finished here, because this process is told to end.

    Attributes:
        context: as given to `submit`.
        generation: that another process can go on from.
        wall_s, finished_at: as in `Completed`.
    """

    request: GenerationRequest
    context: Any
    generation: Generation
    wall_s: float
    finished_at: float


Result = Completed | Failure


class FeederClosed(MillError):
    """The feeder was closed; nothing is wrong with what was asked, nor with the engine."""


class Receiver(Protocol):
    """Where results go, on the feeder's thread: a `Ticket`, or a connection to another process."""

    def deliver(self, result: Result) -> None:
        """Take a result in."""

    def save(self, partial: Partial) -> None:
        """Take in what there is of a request; `fail` follows."""

    def fail(self, error: BaseException) -> None:
        """Take in that a request will have no result, because of what stopped the feeder."""


class Sink(Protocol):
    """Where the results of a bundle are kept: the ledger."""

    def keep(self, result: Result | Partial) -> None:
        """Take a result, exactly once, on the feeder's thread, before the ticket yields it, if it is whole."""


class Job:
    """A submitted request on its way; its result goes to its ticket."""

    __slots__ = (
        *("begun", "context", "copies", "deaths", "first", "found_tokens", "request", "retries", "started_at"),
        "ticket",
    )

    def __init__(
        self, request: GenerationRequest, context: Any, ticket: Receiver, begun: Generation | None = None
    ) -> None:
        self.request = request
        self.context = context
        self.ticket = ticket
        self.begun = begun  # what there is of the first call: interrupted, to be gone on with
        self.found_tokens = begun.paid_tokens if begun is not None else 0
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
            first = await self._open(engine, opening_request(self.request))
            if not needs_closing(self.request, first):
                return first
            self.first = first
        second = await engine.generate(close_request(self.request, self.first))
        return join_closing(self.request, self.first, second)

    async def _open(self, engine: Engine, opening: GenerationRequest) -> Generation:
        """The first call, or what is left to make of it."""
        asked = opening if self.begun is None else rest_of(opening, self.begun)
        try:
            made = await engine.generate(asked) if asked is not None else None
        except Interrupted as error:
            if error.generated is not None:
                self.begun = error.generated if self.begun is None else join_rest(self.begun, error.generated)
            raise
        if made is None:
            assert self.begun is not None
            return whole(self.begun)
        return made if self.begun is None else join_rest(self.begun, made)

    @property
    def partial(self) -> Partial | None:
        """What there is of it, if another process can go on from there."""
        generation = self.begun if self.first is None else self.first
        if generation is None or not len(generation.token_ids):
            return None
        wall_s = time.monotonic() - self.started_at if self.started_at else 0.0
        return Partial(self.request, self.context, generation, wall_s, time.time())


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

    def submit(
        self,
        request: GenerationRequest,
        context: Any = None,
        feeder: Submits | None = None,
        *,
        begun: Generation | None = None,
    ) -> None:
        """Hand a request over; waits while too many are waiting already.

        Args:
            context: comes back with the result.
            feeder: of another model; None: the ticket's own.
            begun: what there is of it already, from the ledger.

        Raises:
            MillError: the engine failed for good.
        """
        with self._changed:
            self._outstanding += 1
        try:
            (feeder or self._feeder).submit(Job(request, context, self, begun))
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

    def save(self, partial: Partial) -> None:
        """Take in what there is of a request; `fail` follows."""
        if self._sink is None:
            return
        try:
            self._sink.keep(partial)
        except Exception as error:  # noqa: BLE001 - the bundle hears of its end anyway
            logger.warning("what there is of request %s is lost: %s", partial.request.key, error)

    def fail(self, error: BaseException) -> None:
        """Take in that a request will have no result, because of what stopped the feeder."""
        with self._changed:
            self._end_one(error)

    def _end_one(self, error: BaseException | None) -> None:
        self._outstanding -= 1
        self._error = self._error or error
        self._changed.notify_all()
