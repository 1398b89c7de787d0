"""One engine of a feeder, with the requests that are at it; and all of them, as many as the model has replicas here.

Under `feeding.feeder`, on the same event loop. An engine is started and ended by a task of its own, so that the others
go on meanwhile; which request goes to which is decided by the feeder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterator, Sequence
from typing import Any

from augment.engines.protocol import ELSEWHERE, Engine, EngineDead
from augment.feeding.config import FeedingConfig
from augment.feeding.draining import let_finish
from augment.feeding.keeper import EngineHolder, EngineKeeper, EngineSource
from augment.feeding.stats import FeederStats
from augment.feeding.tickets import Job
from augment.feeding.waiting import Waiting

_CANCEL_S = 5.0
"""So long the end of a feeder waits for its cancelled requests."""


class Replica:
    """A place for one engine at a time.

    Args:
        engines: where its engines come from.
        feeder: that it is one of.
        config, stats: of the feeder.
        changed: of the feeder; set when an engine has started or ended.

    Attributes:
        in_flight: the requests at the engine.
        trouble: what the engine, or a bug, has raised since the feeder looked.
    """

    def __init__(
        self,
        engines: EngineSource,
        feeder: EngineHolder,
        config: FeedingConfig,
        stats: FeederStats,
        changed: asyncio.Event,
    ) -> None:
        self.name, self.feeder = feeder.name, feeder
        self._config, self._changed = config, changed
        self.keeper = EngineKeeper(engines, self, config, stats)
        self.in_flight: dict[Job, asyncio.Task[None]] = {}
        self.trouble: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None  # that starts or ends an engine
        self._progress_at = 0.0

    # --- for others that need the memory ------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no request of the feeder is unfinished."""
        return self.feeder.idle

    def close_engine_if_idle(self) -> None:
        """Let go of the engine soon if nothing needs it; all of the feeder's."""
        self.feeder.close_engine_if_idle()

    # --- the engine ---------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine | None:
        """The engine, if it can be given requests."""
        return None if self._task is not None else self.keeper.engine

    @property
    def is_vacant(self) -> bool:
        """Whether there is no engine, and none on its way."""
        return self._task is None and self.keeper.engine is None

    def start(self) -> None:
        """Begin to start an engine."""
        self._begin(self.keeper.start())

    def replace(self, error: str) -> None:
        """Begin to clear away the engine, which has died."""
        self._begin(self.keeper.replace(error))

    def close(self) -> None:
        """Begin to end the engine, if there is one."""
        if self.keeper.engine is not None and self._task is None:
            self._begin(self.keeper.close())

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        if not task.cancelled():
            self.trouble = self.trouble or task.exception()
        self._changed.set()

    # --- its requests -------------------------------------------------------------------------------------------------

    def take(self, job: Job, task: asyncio.Task[None]) -> None:
        """A request goes to the engine."""
        if not self.in_flight:
            self._progress_at = time.monotonic()
        self.in_flight[job] = task

    def finished(self, job: Job, *, well: bool) -> None:
        """A request has come back."""
        del self.in_flight[job]
        self._progress_at = time.monotonic()
        if well:
            self.keeper.deaths_in_a_row = 0

    def look(self) -> BaseException | None:
        """What has gone wrong since the last look; an engine that has finished nothing for long is dead."""
        if self.in_flight and time.monotonic() - self._progress_at > self._config.stall_s:
            self.trouble = self.trouble or EngineDead(f"nothing finished in {self._config.stall_s:.0f} s")
        trouble, self.trouble = self.trouble, None
        return trouble

    def cancel(self) -> list[asyncio.Task[None]]:
        """Let go of the requests; what was at work on them."""
        tasks = list(self.in_flight.values())
        for task in tasks:
            task.cancel()
        self.in_flight.clear()
        return tasks

    # --- the end ------------------------------------------------------------------------------------------------------

    async def drain(self, drain_s: float) -> None:
        """See `draining.let_finish`."""
        await let_finish(self.name, self.engine, list(self.in_flight.values()), drain_s)

    async def end(self) -> None:
        """End the engine, one that is being started too."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.keeper.close()


class Replicas:
    """All engines of a feeder.

    Args:
        replicas: one at least.
        max_in_flight: requests at all engines at once, shared out evenly; None: what they have room for.
    """

    def __init__(self, replicas: Sequence[Replica], max_in_flight: int | None) -> None:
        self._replicas = replicas
        self._max_in_flight = max_in_flight
        self._counted: list[Engine] = []

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def __getitem__(self, number: int) -> Replica:
        return self._replicas[number]

    @property
    def in_flight(self) -> int:
        """How many requests are at all engines together."""
        return sum(len(replica.in_flight) for replica in self._replicas)

    def count_room(self, stats: FeederStats) -> bool:
        """Have the stats say how much room there is; whether engines have come or gone since it was counted."""
        engines = [replica.engine for replica in self._replicas if replica.engine is not None]
        if not engines or engines == self._counted:
            return False
        self._counted = engines
        stats.elsewhere = any(engine.family == ELSEWHERE for engine in engines)
        stats.capacity = self._max_in_flight or sum(engine.capacity for engine in engines)
        return True

    def roomiest(self, waiting: Waiting) -> Replica | None:
        """The replica that is the least full, by its share; None where all are full or not there."""
        found, least = None, 1.0
        for replica in self._replicas:
            if replica.engine is not None:
                share = len(replica.in_flight) / waiting.limit(self._room_of(replica.engine))
                if share < least:
                    found, least = replica, share
        return found

    def _room_of(self, engine: Engine) -> int:
        return engine.capacity if self._max_in_flight is None else -(-self._max_in_flight // len(self._replicas))

    async def drain(self, drain_s: float) -> None:
        """See `draining.let_finish`; all of them at once."""
        await asyncio.gather(*(replica.drain(drain_s) for replica in self._replicas))

    async def end(self, cancelled: Collection[asyncio.Task[None]]) -> None:
        """End all engines, after what was cancelled."""
        if cancelled:
            await asyncio.wait(cancelled, timeout=_CANCEL_S)
        await asyncio.gather(*(replica.end() for replica in self._replicas))
