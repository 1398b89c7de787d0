"""The life of a feeder's engine: started when it is needed, ended when it has died or when others need its memory.

Under `feeding.feeder`, on the same event loop; which request goes to the engine is no business of this module.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from augment.engines.protocol import Engine, EngineDead
from augment.feeding.config import FeedingConfig
from augment.feeding.stats import FeederStats
from sharding.errors import MillError
from sharding.memory_kills import kills_for_memory

logger = logging.getLogger(__name__)


class EngineHolder(Protocol):
    """Who holds engines, as others that need the memory see it: a `Feeder`."""

    name: str

    @property
    def idle(self) -> bool: ...

    def close_engine_if_idle(self) -> None: ...


class Place(EngineHolder, Protocol):
    """Where one engine is held: a `Replica`."""

    feeder: EngineHolder


class EngineSource(Protocol):
    """Where the engines of one model come from, and the memory they take; `feeding.registry` has the one of a run."""

    def make(self) -> Engine:
        """Another engine, not started."""

    async def reserve(self, holder: Place, share: float) -> None:
        """Return when `holder` may start an engine that takes `share` of the memory."""

    def release(self, holder: Place) -> None:
        """Give back what `holder` reserved; nothing where it has not."""


class EngineKeeper:
    """Has at most one engine at a time.

    Args:
        engines: where they come from.
        holder: where they are held.
        config: how often, and after which pauses, a dead one is replaced.
        stats: count the restarts.

    Attributes:
        engine: the one that runs, or None.
        deaths_in_a_row: of engines, nothing finished in between.
    """

    def __init__(self, engines: EngineSource, holder: Place, config: FeedingConfig, stats: FeederStats) -> None:
        self._engines = engines
        self._holder = holder
        self._config = config
        self._stats = stats
        self.engine: Engine | None = None
        self.deaths_in_a_row = 0
        self._kills = kills_for_memory()

    async def start(self) -> Engine:
        """Start an engine, after a pause where the last ones have died. One that dies while it starts is replaced.

        Raises:
            Exception: it can't be made or started; with `MillError` if too many have died.
        """
        while True:
            if self.deaths_in_a_row:
                pause_s = self._config.backoff_s * 2.0 ** (self.deaths_in_a_row - 1)
                await asyncio.sleep(min(pause_s, self._config.max_backoff_s))
            engine = self._engines.make()
            try:
                await self._engines.reserve(self._holder, engine.memory_share)
                await engine.start()
            except EngineDead as error:
                logger.warning("the engine of %s died while it started: %s", self._holder.name, error)
                await self._end(engine)
                self._count_death(str(error))
            except BaseException:
                await self._end(engine)
                raise
            else:
                self.engine = engine
                return engine

    async def replace(self, error: str) -> None:
        """Clear away the engine, which has died; the next `start` brings another.

        Raises:
            MillError: too many have died in a row.
        """
        await self.close()
        self._count_death(error)

    async def close(self) -> None:
        """End the engine, if there is one."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await self._end(engine)

    def _count_death(self, error: str) -> None:
        self.deaths_in_a_row += 1
        self._stats.restarts += 1
        if self.deaths_in_a_row > self._config.max_restarts:
            died = f"the engine of model {self._holder.name} died {self.deaths_in_a_row} times"
            why = f"{died}, the last time with nothing finished in between: {error}"
            if kills_for_memory() > self._kills:
                lower = "kv_cache_memory_bytes, max_num_seqs or max_model_len"
                why += f"; memory ran out on this machine: lower models.{self._holder.name}.engine_args ({lower})"
            raise MillError(why)

    async def _end(self, engine: Engine) -> None:
        """End an engine, to its end even if the feeder is closed meanwhile."""
        ending = asyncio.get_running_loop().create_task(self._end_now(engine))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _end_now(self, engine: Engine) -> None:
        try:
            await engine.close()
        except Exception:
            logger.exception("the engine of %s did not end cleanly", self._holder.name)
        finally:
            self._engines.release(self._holder)
