"""The feeder: the loop that keeps one engine full from many bundles. The heart of the augment stage.

A `Feeder` owns the engines of a model and runs them on an event loop of its own. Bundles (threads) submit requests
through tickets; they wait, bounded, the longest expected first and those that share a prefix together, and move on to
an engine as slots fall free. There is no barrier: what one bundle leaves of an engine, the next one uses. Every request
that comes in goes out exactly once, to its ticket: completed, as a failure of its own, or with the error that stopped
everything.

    ticket.submit ──► waiting (bounded) ──► in flight (capacity) ──► ledger, then ticket.take / ticket.drain
                          ▲                      │ failed: after a backoff that holds no slot
                          └──────────────────────┘ engine died: at once, ahead of the others, on a new engine

`Feeder._feed` is all of it. Beside it, a `replica` is one engine with what is at it, `keeper` has the engine, `tickets`
what bundles hold, `registry` one feeder per model.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import logging
import threading
import time

from augment.engines.protocol import (
    Engine,
    EngineDead,
    Generation,
    GenerationFailed,
    Interrupted,
    RequestRejected,
)
from augment.feeding.config import FeedingConfig
from augment.feeding.intake import Intake
from augment.feeding.keeper import EngineSource
from augment.feeding.lengths import LearnedLengths
from augment.feeding.replica import Replica, Replicas
from augment.feeding.stats import FeederStats
from augment.feeding.tickets import Completed, Failure, Job, Sink, Ticket
from augment.feeding.waiting import Waiting, pause_s
from sharding.errors import MillError

logger = logging.getLogger(__name__)


class Feeder:
    """The engines of a model on a thread of its own, shared by all bundles of a worker process.

    They start with the first request, each anew after a death or after it was let go.

    Args:
        engines: where engines come from, a source for each replica of the model.
        name: the model's name, for messages.
        config: how to feed.
        max_in_flight: requests at all engines at once; None: what they have room for.

    Attributes:
        lengths: what was learned of how long generations are.
    """

    def __init__(
        self,
        *engines: EngineSource,
        name: str,
        config: FeedingConfig | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        self.name = name
        self._config = config or FeedingConfig()
        self._stats = FeederStats(name)
        self._loop = asyncio.new_event_loop()
        self._intake = Intake(name, self._loop, self._config.max_waiting)
        made = [Replica(one, self, self._config, self._stats, self._intake.changed) for one in engines]
        self._replicas = Replicas(made, max_in_flight)
        self._jobs: dict[tuple[str, int], Job] = {}  # all that are here, by key and seed: closing calls have their own
        self.lengths = LearnedLengths()
        self._waiting = Waiting(self.lengths, by_prefix=self._config.prefix_groups)
        self._backing_off: dict[Job, asyncio.TimerHandle] = {}
        self._let_go = False
        self._drain_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"feeder-{name}", daemon=True)
        self._thread.start()

    def ticket(self, sink: Sink | None = None) -> Ticket:
        """A ticket for one bundle.

        Args:
            sink: is given each result, exactly once, on the feeder's thread, before the ticket yields it; must be
                quick. What it raises stops the bundle at its next `take` or `drain`.
        """
        return Ticket(self, sink)

    def submit(self, job: Job) -> None:
        """Hand a job over; its ticket gets the result. Waits while too many are waiting already.

        Raises:
            MillError: the engine failed for good, or was closed.
        """
        if not self._config.prefix_groups:
            # Nobody below is to keep its prompt with others: not what waits, nor the pool of a model's servers.
            job.request = dataclasses.replace(job.request, prefix_group="")
        self._intake.put(job)

    @property
    def idle(self) -> bool:
        """Whether no request is unfinished."""
        return self._intake.unfinished == 0

    @property
    def error(self) -> BaseException | None:
        """Why no more requests are taken, or None."""
        return self._intake.error

    def stats(self) -> FeederStats:
        """What was done so far."""
        return self._stats.snapshot()

    def close_engine_if_idle(self) -> None:
        """Let go of the engine soon if nothing needs it; the next request starts another. Doesn't wait."""
        self._let_go = True
        self._intake.wake()

    def end(self, error: MillError | None = None, *, drain_s: float = 0.0) -> None:
        """Take no more requests and begin to end; see `close`. Doesn't wait."""
        self._drain_s = drain_s
        self._intake.close(error)

    def close(self, error: MillError | None = None, *, timeout_s: float = 60.0) -> None:
        """End the engine and the thread. Safe to call twice.

        What is not finished fails, with `error` if given. What is in flight may go on for the `drain_s` of `end`
        before that, and what there is then of a request goes to its ticket as `tickets.Partial`.
        """
        self.end(error, drain_s=self._drain_s)
        atexit.unregister(self.close)
        self._thread.join(timeout_s + self._drain_s)
        if self._thread.is_alive():
            logger.error("the engine of %s did not end within %.0f s", self.name, timeout_s)

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """After every change: look after the engines and fill them, the longest first."""
        while self.error is None:
            await self._change()
            let_go, self._let_go = self._let_go, False
            for replica in self._replicas:
                self._look_after(replica, let_go=let_go)
            self._fill()

    async def _change(self) -> None:
        """Return when a job has come, ended or waited long enough, when trouble has, or when it is time to look."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.stall_s / 4):
                await self._intake.changed.wait()
        self._intake.changed.clear()
        self._admit()

    def _look_after(self, replica: Replica, *, let_go: bool) -> None:
        """Have an engine where one is needed: as it is, started, or started anew after a death; else let go of it.

        Raises:
            Exception: what every bundle gets: it can't be started, has died too often, or raised what it should not.
        """
        trouble = replica.look()
        if isinstance(trouble, EngineDead):
            self._take_back(replica, str(trouble))
            replica.replace(str(trouble))
        elif trouble is not None:
            raise trouble
        elif let_go and not self._jobs:
            replica.close()
        if self._waiting and replica.is_vacant:
            replica.start()

    def _fill(self) -> None:
        """Move waiting jobs to the engines while they have room."""
        if self._replicas.count_room(self._stats):
            # Exit handlers run last first: registered after those of the engine's libraries, this one closes the engine
            # before they tear it down under its feet.
            atexit.unregister(self.close)
            atexit.register(self.close)
        first_time = 0
        while self._waiting and (replica := self._replicas.roomiest(self._waiting)) is not None:
            job = self._waiting.pop(replica, self._stats.capacity)
            first_time += job.started_at == 0
            job.started_at = time.monotonic()
            assert replica.engine is not None
            replica.take(job, self._loop.create_task(self._make(job, replica, replica.engine)))
        self._stats.observe(self._replicas.in_flight)
        self._intake.make_room(first_time)

    async def _make(self, job: Job, replica: Replica, engine: Engine) -> None:
        """One try of one job, and what comes of it."""
        try:
            outcome: Generation | Exception = await job.generate(engine)
        except Exception as error:  # noqa: BLE001 - told apart below
            outcome = error
        if replica.in_flight.get(job) is not asyncio.current_task():
            return  # it was taken back
        self._intake.changed.set()
        if isinstance(outcome, Interrupted):
            outcome = GenerationFailed(str(outcome))  # what there is of it, its job has
        if not isinstance(outcome, Generation | RequestRejected | GenerationFailed):
            # The engine is dead, or this is a bug: the next turn decides.
            replica.trouble = replica.trouble or outcome
            return
        replica.finished(job, well=isinstance(outcome, Generation))
        if isinstance(outcome, Generation):
            self._succeed(job, outcome)
        elif isinstance(outcome, GenerationFailed):
            self._retry(job, outcome)
        else:
            self._fail(job, str(outcome), may_pass=outcome.may_pass)

    # --- what becomes of a job ----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take in what was submitted. A request that is here already, for a bundle that has failed, is made once."""
        for job in self._intake.take():
            same = self._jobs.setdefault(job.name, job)
            if same is job:
                self._stats.submitted += 1
                self._waiting.push(job)
            else:
                same.copies.append(job)
                self._intake.make_room(1)

    def _succeed(self, job: Job, generation: Generation) -> None:
        self._waiting.succeeded()
        self._stats.finished(generation.paid_tokens - job.found_tokens)
        self.lengths.note(job.request.kind, generation.paid_tokens)
        wall_s, finished_at = time.monotonic() - job.started_at, time.time()
        for one in self._finish(job):
            one.ticket.deliver(
                Completed(
                    *(one.request, one.context, generation, job.retries, wall_s, finished_at),
                    found_tokens=job.found_tokens,
                )
            )

    def _retry(self, job: Job, error: GenerationFailed) -> None:
        if self.error is not None:
            return  # the end is near, and tells
        if error.retry_after_s is None:
            if job.retries + 1 >= self._config.max_attempts:
                self._fail(job, str(error), may_pass=True)
                return
            job.retries += 1
            self._stats.retries += 1
        delay_s = pause_s(job, error.retry_after_s, self._config)
        self._backing_off[job] = self._loop.call_later(delay_s, self._try_again, job)

    def _try_again(self, job: Job) -> None:
        del self._backing_off[job]
        self._waiting.push(job)
        self._intake.changed.set()

    def _fail(self, job: Job, error: str, *, may_pass: bool) -> None:
        self._stats.finished(None)
        for one in self._finish(job):
            key = one.request.key
            one.ticket.deliver(Failure(one.request, one.context, key, self.name, error, job.retries, may_pass))

    def _finish(self, job: Job) -> list[Job]:
        """A job that has its outcome, with its copies: all that are to be told."""
        del self._jobs[job.name]
        self._intake.finish(1 + len(job.copies))
        return [job, *job.copies]

    def _take_back(self, replica: Replica, error: str) -> None:
        """What a dead engine was at work on waits again, ahead of the others; what kills every engine is given up."""
        jobs = list(replica.in_flight)
        logger.warning("the engine of %s died with %d requests in flight: %s", self.name, len(jobs), error)
        replica.cancel()
        # One that is elsewhere may have been killed with its process.
        killer = self._waiting.take_back(jobs, blamed=not self._stats.elsewhere)
        if killer is not None:
            self._fail(killer, f"the engine died with this request alone in flight: {error}", may_pass=False)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._feed_until_closed())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        except BaseException as error:  # noqa: BLE001 - such as an exit, by a library; no bundle may wait for ever
            self._give_up(error)
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(self._replicas.end([]))
        finally:
            self._loop.close()

    async def _feed_until_closed(self) -> None:
        """Feeds until the feeder is closed or there is no going on; then tells the bundles and ends the engines."""
        feeding, closed = self._loop.create_task(self._feed()), self._loop.create_task(self._intake.closed.wait())
        await asyncio.wait([feeding, closed], return_when=asyncio.FIRST_COMPLETED)
        error = feeding.exception() if feeding.done() else None
        feeding.cancel()
        closed.cancel()
        if error is None:
            await self._replicas.drain(self._drain_s)
        cancelled = self._give_up(error)  # before an engine that is slow to start or to end has done so
        await asyncio.wait([feeding, closed])
        await self._replicas.end(cancelled)

    def _give_up(self, error: BaseException | None) -> list[asyncio.Task[None]]:
        """Take no more jobs; every bundle with one here gets the error, or the one that closed the feeder before."""
        error = self._intake.close(error)
        self._admit()
        cancelled = [task for replica in self._replicas for task in replica.cancel()]
        self._stats.observe(0)
        for timer in self._backing_off.values():
            timer.cancel()
        self._waiting = Waiting()
        for job in list(self._jobs.values()):
            partial = job.partial
            if partial is not None and partial.generation.paid_tokens > job.found_tokens:
                job.ticket.save(partial)
            for one in self._finish(job):
                one.ticket.fail(error)
        return cancelled
