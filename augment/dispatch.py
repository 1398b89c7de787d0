"""Dispatch: which waiting request goes to the engine when, and what becomes of those that fail.

The part of feeding that runs on one event loop and needs no locks; `augment.feeding` is its thread-safe face. Every job
that comes in goes out exactly once, to its ticket: as completed, as a failure of its own, or with the error that
stopped everything.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.engines import Engine, EngineDead, Generation, GenerationFailed, GenerationRequest, RequestRejected
from augment.occupancy import Account
from augment.requests import fraction_of
from augment.thoughts import close_request, join_closing, needs_closing, opening_request
from augment.tickets import Completed, Failure, Job
from sharding.config import STRICT
from sharding.errors import MillError

logger = logging.getLogger(__name__)

_SHRINK = 8
"""When a request sees its second death, at most one in so many of those that were in flight go to the next engine
together, the ones with most deaths first: what kills engines is soon alone, and the others are not blamed for it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeedingConfig:
    """How an engine is fed."""

    max_waiting: int = Field(
        default=4096, gt=0, description="Requests waiting per engine; more make the submitter wait."
    )
    max_attempts: int = Field(default=4, gt=0, description="Tries per request before it is given up alone.")
    backoff_s: float = Field(default=1.0, ge=0, description="Wait before the second try, seconds; doubles with each.")
    max_backoff_s: float = Field(default=60.0, ge=0, description="Longest wait between tries, seconds.")
    max_restarts: int = Field(default=6, ge=0, description="Deaths of an engine in a row, nothing finished in between.")
    stall_s: float = Field(
        default=3600.0, gt=0, description="Nothing finished for so many seconds: the engine is restarted."
    )


class EngineOwner(Protocol):
    """Who holds an engine, as others that need the memory see it: a `Feeder`."""

    @property
    def idle(self) -> bool: ...

    def close_engine_if_idle(self) -> None: ...


class Memory(Protocol):
    """Who may have an engine in memory; `augment.registry` has the one that several models share."""

    async def reserve(self, owner: EngineOwner, share: float) -> None:
        """Return when `owner` may start an engine that takes `share` of the memory."""

    def release(self, owner: EngineOwner) -> None:
        """Give back what `owner` reserved; nothing where it has not."""


async def generate_trace(engine: Engine, request: GenerationRequest) -> Generation:
    """One trace: the first call and, where the request wants it, the one that closes it at its cap."""
    first = await engine.generate(opening_request(request))
    if not needs_closing(request, first):
        return first
    return join_closing(request, first, await engine.generate(close_request(request, first)))


class Dispatcher:
    """Keeps one engine full. The engine starts with the first job, and anew after a death or an idle close.

    Args:
        owner: stands for this dispatcher at `memory`.
        on_dispatched: called with how many jobs have left the waiting ones for the first time.
        on_settled: called after a job's ticket has its result.
        on_started: called when an engine has started.
        on_broken: called with the error that stopped everything.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        name: str,
        config: FeedingConfig,
        max_in_flight: int | None,
        memory: Memory,
        owner: EngineOwner,
        on_dispatched: Callable[[int], None],
        on_settled: Callable[[], None],
        on_started: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._name = name
        self._make_engine = make_engine
        self._config = config
        self._max_in_flight = max_in_flight
        self._memory = memory
        self._owner = owner
        self._on_dispatched = on_dispatched
        self._on_settled = on_settled
        self._on_started = on_started
        self._on_broken = on_broken
        self.account = Account(name)
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._heap: list[tuple[int, float, int, Job]] = []
        self._sequence = itertools.count()
        self._in_flight: dict[Job, asyncio.Task[None]] = {}
        self._backing_off: dict[Job, asyncio.TimerHandle] = {}
        self._starting: asyncio.Task[None] | None = None
        self._closings: set[asyncio.Task[None]] = set()
        self._stall_timer: asyncio.TimerHandle | None = None
        self._deaths_in_a_row = 0
        self._recovery_limit: int | None = None

    def admit(self, job: Job) -> None:
        """Take a job in."""
        self.account.submitted += 1
        self._enqueue(job)

    def close_if_idle(self) -> None:
        """Let go of the engine if no job is here."""
        if self._engine is not None and not (self._heap or self._in_flight or self._backing_off):
            engine, self._engine = self._engine, None
            self._starting = self._spawn(self._make_room(engine))

    async def shut_down(self, error: BaseException) -> None:
        """Fail what is not finished and end the engine."""
        self._break(error)
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        engine, self._engine = self._engine, None
        if engine is not None:
            await self._close(engine)
        if self._closings:
            await asyncio.wait(self._closings)

    # --- the way of a job ---------------------------------------------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        if self._error is not None:
            self._give_up(job, self._error)
            return
        expected = job.request.expected_tokens or job.request.max_tokens
        heapq.heappush(self._heap, (-job.deaths, -expected, next(self._sequence), job))
        self._pump()

    def _pump(self) -> None:
        """Move waiting jobs to the engine while it has room."""
        engine = self._engine
        if engine is None:
            if self._heap and self._starting is None:
                self._starting = self._spawn(self._start())
            return
        limit = self.account.capacity
        if self._recovery_limit is not None:
            limit = min(limit, self._recovery_limit)
        first_time = 0
        while self._heap and len(self._in_flight) < limit:
            job = heapq.heappop(self._heap)[-1]
            first_time += job.started_at == 0
            job.started_at = time.monotonic()
            self._in_flight[job] = self._spawn(self._run(job, engine))
        self.account.observe(len(self._in_flight))
        if first_time:
            self._on_dispatched(first_time)

    async def _run(self, job: Job, engine: Engine) -> None:
        """One try of one job. Whoever takes the job out of `_in_flight` decides what becomes of it."""
        try:
            generation = await generate_trace(engine, job.request)
        except RequestRejected as error:
            if self._take_back(job):
                self._fail_alone(job, str(error))
        except GenerationFailed as error:
            if self._take_back(job):
                self._retry(job, error)
        except EngineDead as error:
            if job in self._in_flight:
                self._engine_died(engine, str(error))
        except Exception as error:  # noqa: BLE001 - a bug; every bundle that waits raises it
            if self._take_back(job):
                self._give_up(job, error)
                self._break(error)
        else:
            if self._take_back(job):
                self._succeed(job, generation)
        self._pump()

    def _take_back(self, job: Job) -> bool:
        return self._in_flight.pop(job, None) is not None

    def _succeed(self, job: Job, generation: Generation) -> None:
        self._deaths_in_a_row = 0
        if self._recovery_limit is not None:
            self._recovery_limit += 1
            if self._recovery_limit >= self.account.capacity:
                self._recovery_limit = None
        self.account.finished(len(generation.token_ids))
        wall_s = time.monotonic() - job.started_at
        job.ticket.deliver(Completed(job.request, job.context, generation, job.retries, wall_s, time.time()))
        self._on_settled()

    def _retry(self, job: Job, error: GenerationFailed) -> None:
        if error.retry_after_s is not None:  # spread a little, so that they don't all come back at once
            self._back_off(job, error.retry_after_s * (1 + fraction_of(job.request.key) / 4))
            return
        if job.retries + 1 >= self._config.max_attempts:
            self._fail_alone(job, str(error))
            return
        longest_s = min(self._config.backoff_s * 2.0**job.retries, self._config.max_backoff_s)
        delay_s = longest_s * (0.5 + fraction_of(f"{job.request.key}/{job.retries}") / 2)
        job.retries += 1
        self.account.retries += 1
        self._back_off(job, delay_s)

    def _back_off(self, job: Job, delay_s: float) -> None:
        def again() -> None:
            del self._backing_off[job]
            self._enqueue(job)

        self._backing_off[job] = asyncio.get_running_loop().call_later(delay_s, again)

    def _fail_alone(self, job: Job, error: str) -> None:
        self.account.finished(None)
        job.ticket.deliver(Failure(job.request, job.context, job.request.key, self._name, error, job.retries))
        self._on_settled()

    def _give_up(self, job: Job, error: BaseException) -> None:
        job.ticket.fail(error)
        self._on_settled()

    def _break(self, error: BaseException) -> None:
        """Take no more jobs; every bundle with one here raises the error."""
        self._error = self._error or error
        self._on_broken(error)
        jobs = [*(entry[-1] for entry in self._heap), *self._in_flight, *self._backing_off]
        self._cancel_in_flight()
        for timer in self._backing_off.values():
            timer.cancel()
        self._heap.clear()
        self._backing_off.clear()
        for job in jobs:
            self._give_up(job, error)

    def _cancel_in_flight(self) -> None:
        for task in self._in_flight.values():
            if task is not asyncio.current_task():
                task.cancel()
        self._in_flight.clear()
        self.account.observe(0)

    # --- the engine's life --------------------------------------------------------------------------------------------

    async def _start(self, delay_s: float = 0.0) -> None:
        engine = self._make_engine()
        try:
            await asyncio.sleep(delay_s)
            await self._memory.reserve(self._owner, engine.memory_share)
            await engine.start()
        except BaseException as error:
            await self._close(engine)
            if isinstance(error, asyncio.CancelledError):
                raise
            self._break(error)
        else:
            self._engine = engine
            self._on_started()
            self.account.capacity = self._max_in_flight or engine.capacity
            self._watch_stall()
        finally:
            self._starting = None
        self._pump()

    def _engine_died(self, engine: Engine, error: str) -> None:
        """Take everything back from a dead engine and start another; give up on what kills every engine."""
        if engine is not self._engine:
            return
        self._engine = None
        self._deaths_in_a_row += 1
        self.account.restarts += 1
        jobs = list(self._in_flight)
        self._cancel_in_flight()
        logger.warning("the engine of %s died with %d requests in flight: %s", self._name, len(jobs), error)
        self._starting = self._spawn(self._restart(engine, error))
        for job in jobs:
            job.deaths += 1
        if max((job.deaths for job in jobs), default=0) > 1:
            self._recovery_limit = max(1, len(jobs) // _SHRINK)
        for job in jobs:
            if len(jobs) == 1 and job.deaths > 1:
                self._fail_alone(job, f"the engine died with this request alone in flight: {error}")
            else:
                self._enqueue(job)

    async def _restart(self, dead: Engine, error: str) -> None:
        await self._close(dead)
        if self._deaths_in_a_row > self._config.max_restarts:
            self._starting = None
            died = f"the engine of model {self._name} died {self._deaths_in_a_row} times"
            self._break(MillError(f"{died}, the last time with nothing finished in between: {error}"))
        elif self._heap:
            wait_s = self._config.backoff_s * 2.0 ** (self._deaths_in_a_row - 1)
            await self._start(min(wait_s, self._config.max_backoff_s))
        else:
            self._starting = None
            self._pump()

    async def _make_room(self, engine: Engine) -> None:
        await self._close(engine)
        self._starting = None
        self._pump()

    async def _close(self, engine: Engine) -> None:
        """End an engine; goes on to its end even if the caller is cancelled."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        task = self._spawn(self._close_now(engine))
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)
        await asyncio.shield(task)

    async def _close_now(self, engine: Engine) -> None:
        try:
            await engine.close()
        except Exception:
            logger.exception("the engine of %s did not end cleanly", self._name)
        finally:
            self._memory.release(self._owner)

    def _watch_stall(self) -> None:
        if self._engine is None:
            return
        if self._in_flight and time.monotonic() - self.account.progress_at > self._config.stall_s:
            self._engine_died(self._engine, f"nothing finished in {self._config.stall_s:.0f} s")
            return
        self._stall_timer = asyncio.get_running_loop().call_later(self._config.stall_s / 4, self._watch_stall)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)
