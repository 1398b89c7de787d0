"""Feeding: one engine kept full from many bundles, each of which waits for its own requests only.

A `Feeder` owns an engine and runs it on an event loop of its own. Bundles (threads) submit requests through tickets;
submitted requests wait in a bounded heap, the longest expected first, and move on to the engine as slots fall free.
There is no barrier: what one bundle leaves of the engine, the next one uses. Results go to a callback (the ledger) and
to their ticket at once, exactly once.

    ticket.submit ──► waiting (bounded) ──► in flight (capacity) ──► callback, ticket.take / ticket.drain
                          ▲                      │ failed: after a backoff that holds no slot
                          └──────────────────────┘ engine died: at once, ahead of the others, on a new engine

`feeding.dispatch` decides what goes when; `feeding.registry` gives a worker process one feeder per model.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable

from augment.engines.protocol import Engine
from augment.feeding.config import FeedingConfig
from augment.feeding.dispatch import Dispatcher
from augment.feeding.keeper import EngineOwner, Memory
from augment.feeding.stats import FeederStats
from augment.feeding.tickets import Completed, Failure, FeederClosed, Job, Result, Ticket
from sharding.errors import MillError, restated

__all__ = ["Completed", "Failure", "Feeder", "FeederStats", "FeedingConfig", "Result", "Ticket"]

logger = logging.getLogger(__name__)


class Feeder:
    """An engine on a thread of its own, shared by all bundles of a worker process.

    Args:
        make_engine: makes an engine, not started; called for every start, the first one with the first request.
        name: the model's name, for messages.
        config: how to feed.
        max_in_flight: requests at the engine at once; None: the engine's capacity.
        memory: who else has an engine in this machine's memory; None: nobody.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        name: str,
        config: FeedingConfig | None = None,
        max_in_flight: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.name = name
        config = config or FeedingConfig()
        self._changed = threading.Condition()
        self._free = config.max_waiting
        self._unfinished = 0
        self._error: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._loop = asyncio.new_event_loop()
        self._dispatcher = Dispatcher(
            make_engine,
            name=name,
            config=config,
            max_in_flight=max_in_flight,
            memory=memory or _Unshared(),
            owner=self,
            on_dispatched=self._dispatched,
            on_settled=self._settled,
            on_started=self._started,
            on_broken=self._broken,
        )

    def ticket(self, on_result: Callable[[Result], None] | None = None) -> Ticket:
        """A ticket for one bundle.

        Args:
            on_result: called with each result, exactly once, on the feeder's thread, before the ticket yields it; must
                be quick. What it raises stops the bundle at its next `take` or `drain`.
        """
        return Ticket(self.submit, on_result)

    def submit(self, job: Job) -> None:
        """Hand a job over; its ticket gets the result. Waits while too many are waiting already.

        Raises:
            MillError: the engine failed for good, or was closed.
        """
        with self._changed:
            while self._free == 0 and self._error is None and not self._closing:
                self._changed.wait()
            if self._closing and (self._error is None or isinstance(self._error, FeederClosed)):
                raise FeederClosed(f"the engine of model {self.name} was closed")
            if self._error is not None:
                raise restated(self._error, f"the engine of model {self.name} failed: {self._error}") from self._error
            self._free -= 1
            self._unfinished += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_loop, name=f"feeder-{self.name}", daemon=True)
                self._thread.start()
            self._loop.call_soon_threadsafe(self._dispatcher.admit, job)

    @property
    def idle(self) -> bool:
        """Whether no request is unfinished."""
        with self._changed:
            return self._unfinished == 0

    @property
    def error(self) -> BaseException | None:
        """Why no more requests are taken, or None."""
        with self._changed:
            return self._error

    def stats(self) -> FeederStats:
        """What was done so far."""
        return self._dispatcher.account.stats()

    def close_engine_if_idle(self) -> None:
        """Let go of the engine soon if nothing needs it; the next request starts another. Doesn't wait."""
        with self._changed:
            if self._thread is not None and not self._closing:
                self._loop.call_soon_threadsafe(self._dispatcher.close_if_idle)

    def close(self, error: MillError | None = None, *, timeout_s: float = 60.0) -> None:
        """End the engine and the thread; what is not finished fails, with `error` if given. Safe to call twice."""
        with self._changed:
            first, self._closing = not self._closing, True
            thread = self._thread
            self._changed.notify_all()
        atexit.unregister(self.close)
        if thread is None:
            if first:
                self._loop.close()
            return
        if first:
            error = error or FeederClosed(f"the engine of model {self.name} was closed")
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._shut_down(error)))
        thread.join(timeout_s)
        if thread.is_alive():
            logger.error("the engine of %s did not end within %.0f s", self.name, timeout_s)

    # --- on the feeder's thread ---------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _dispatched(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()

    def _settled(self) -> None:
        with self._changed:
            self._unfinished -= 1

    def _started(self) -> None:
        # Exit handlers run last first: registered after those of the engine's libraries, this one closes the engine
        # before they tear it down under its feet.
        atexit.unregister(self.close)
        atexit.register(self.close)

    def _broken(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    async def _shut_down(self, error: MillError) -> None:
        await self._dispatcher.shut_down(error)
        self._loop.stop()


class _Unshared:
    """Memory that nobody else uses."""

    async def reserve(self, owner: EngineOwner, share: float) -> None: ...

    def release(self, owner: EngineOwner) -> None: ...
