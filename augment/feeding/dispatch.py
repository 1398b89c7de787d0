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
from collections.abc import Callable

from augment.engines.protocol import (
    ELSEWHERE,
    Engine,
    EngineDead,
    Generation,
    GenerationFailed,
    GenerationRequest,
    RequestRejected,
)
from augment.feeding.config import FeedingConfig
from augment.feeding.keeper import EngineKeeper, EngineOwner, Memory
from augment.feeding.stats import Account
from augment.feeding.tickets import Completed, Failure, Job
from augment.requests.closing import close_request, join_closing, needs_closing, opening_request
from sharding.hashing import fraction_of

__all__ = ["Dispatcher", "EngineOwner", "FeedingConfig", "Memory", "generate_trace"]

logger = logging.getLogger(__name__)

_SHRINK = 8
"""When a request sees its second death, at most one in so many of those that were in flight go to the next engine
together, the ones with most deaths first: what kills engines is soon alone, and the others are not blamed for it."""


async def generate_trace(
    engine: Engine,
    request: GenerationRequest,
    first: Generation | None = None,
    on_first: Callable[[Generation], None] = lambda first: None,
) -> Generation:
    """One trace: the first call and, where the request wants it, the one that closes it at its cap.

    Args:
        first: what the first call gave in an earlier try; it is not made again.
        on_first: called with the result of a first call that needs closing.
    """
    if first is None:
        first = await engine.generate(opening_request(request))
        if not needs_closing(request, first):
            return first
        on_first(first)
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
        self._config = config
        self._max_in_flight = max_in_flight
        self._on_dispatched = on_dispatched
        self._on_settled = on_settled
        self._on_started = on_started
        self._on_broken = on_broken
        self.account = Account(name)
        self._error: BaseException | None = None
        self._jobs: dict[tuple[str, int], Job] = {}  # by key and seed: a closing call has a seed of its own
        self._heap: list[tuple[int, float, int, Job]] = []
        self._sequence = itertools.count()
        self._in_flight: dict[Job, asyncio.Task[None]] = {}
        self._backing_off: dict[Job, asyncio.TimerHandle] = {}
        self._recovery_limit: int | None = None
        self._keeper = EngineKeeper(
            make_engine,
            name=name,
            config=config,
            memory=memory,
            owner=owner,
            account=self.account,
            is_wanted=lambda: bool(self._heap),
            has_work=lambda: bool(self._in_flight),
            on_ready=self._ready,
            on_stalled=self._engine_died,
            on_broken=self._break,
        )

    @property
    def engine(self) -> Engine | None:
        """The engine that runs."""
        return self._keeper.engine

    def admit(self, job: Job) -> None:
        """Take a job in. One whose request is here already, for a bundle that has failed since, shares its result."""
        same = self._jobs.get(_name(job))
        if same is not None and self._error is None:
            same.riders.append(job)
            self._on_dispatched(1)
            return
        self._jobs[_name(job)] = job
        self.account.submitted += 1
        self._enqueue(job)

    def close_if_idle(self) -> None:
        """Let go of the engine if no job is here."""
        if not (self._heap or self._in_flight or self._backing_off):
            self._keeper.let_go()

    async def shut_down(self, error: BaseException) -> None:
        """Fail what is not finished and end the engine."""
        self._break(error)
        await self._keeper.shut_down()

    # --- the way of a job ---------------------------------------------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        if self._error is not None:
            self._give_up(job, self._error)
            return
        expected = job.request.expected_tokens or job.request.max_tokens
        heapq.heappush(self._heap, (-job.deaths, -expected, next(self._sequence), job))
        self._pump()

    def _ready(self) -> None:
        engine = self._keeper.engine
        if engine is not None:
            self._on_started()
            self.account.elsewhere = engine.family == ELSEWHERE
            self.account.capacity = self._max_in_flight or engine.capacity
        self._pump()

    def _pump(self) -> None:
        """Move waiting jobs to the engine while it has room."""
        engine = self._keeper.engine
        if engine is None:
            if self._heap:
                self._keeper.start()
            return
        limit = self.account.capacity
        if self._recovery_limit is not None:
            limit = min(limit, self._recovery_limit)
        first_time = 0
        while self._heap and len(self._in_flight) < limit:
            job = heapq.heappop(self._heap)[-1]
            first_time += job.started_at == 0
            job.started_at = time.monotonic()
            self._in_flight[job] = asyncio.get_running_loop().create_task(self._run(job, engine))
        self.account.observe(len(self._in_flight))
        if first_time:
            self._on_dispatched(first_time)

    async def _run(self, job: Job, engine: Engine) -> None:
        """One try of one job. Whoever takes the job out of `_in_flight` decides what becomes of it."""

        def keep(first: Generation) -> None:
            job.first = first

        try:
            generation = await generate_trace(engine, job.request, job.first, keep)
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
        self._keeper.deaths_in_a_row = 0
        if self._recovery_limit is not None:
            self._recovery_limit += 1
            if self._recovery_limit >= self.account.capacity:
                self._recovery_limit = None
        self.account.finished(len(generation.token_ids))
        wall_s, finished_at = time.monotonic() - job.started_at, time.time()
        for one in self._settle(job):
            one.ticket.deliver(Completed(one.request, one.context, generation, job.retries, wall_s, finished_at))
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
        for one in self._settle(job):
            one.ticket.deliver(Failure(one.request, one.context, one.request.key, self._name, error, job.retries))
            self._on_settled()

    def _give_up(self, job: Job, error: BaseException) -> None:
        for one in self._settle(job):
            one.ticket.fail(error)
            self._on_settled()

    def _settle(self, job: Job) -> list[Job]:
        """A job that has its outcome, with those that share it."""
        if self._jobs.get(_name(job)) is job:
            del self._jobs[_name(job)]
        return [job, *job.riders]

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

    def _engine_died(self, engine: Engine, error: str) -> None:
        """Take everything back from a dead engine and have it replaced; give up on what kills every engine."""
        if engine is not self._keeper.engine:
            return
        jobs = list(self._in_flight)
        self._cancel_in_flight()
        logger.warning("the engine of %s died with %d requests in flight: %s", self._name, len(jobs), error)
        self._keeper.replace(engine, error)
        if not self.account.elsewhere:  # such a one may have been killed with its process
            for job in jobs:
                job.deaths += 1
        if max((job.deaths for job in jobs), default=0) > 1:
            self._recovery_limit = max(1, len(jobs) // _SHRINK)
        for job in jobs:
            if len(jobs) == 1 and job.deaths > 1:
                self._fail_alone(job, f"the engine died with this request alone in flight: {error}")
            else:
                self._enqueue(job)


def _name(job: Job) -> tuple[str, int]:
    return job.request.key, job.request.seed
