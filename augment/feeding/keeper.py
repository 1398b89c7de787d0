"""The life of one engine: started when it is wanted, again after a death, closed when others need its memory.

Under `feeding.dispatch`, on the same event loop; which request goes to the engine is no business of this module.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from augment.engines.protocol import Engine, EngineDead
from augment.feeding.config import FeedingConfig
from augment.feeding.stats import Account
from sharding.errors import MillError

logger = logging.getLogger(__name__)


class EngineOwner(Protocol):
    """Who holds an engine, as others that need the memory see it: a `Feeder`."""

    @property
    def idle(self) -> bool: ...

    def close_engine_if_idle(self) -> None: ...


class Memory(Protocol):
    """Who may have an engine in memory; `augment.feeding.registry` has the one that several models share."""

    async def reserve(self, owner: EngineOwner, share: float) -> None:
        """Return when `owner` may start an engine that takes `share` of the memory."""

    def release(self, owner: EngineOwner) -> None:
        """Give back what `owner` reserved; nothing where it has not."""


class EngineKeeper:
    """Has at most one engine at a time.

    Args:
        owner: stands for this keeper at `memory`.
        account: whose `progress_at` tells a stalled engine.
        is_wanted: whether something waits for an engine.
        has_work: whether something is in flight at the engine.
        on_ready: called after every change: an engine has started, or there is room to start one.
        on_stalled: called with the engine and why, when nothing has finished for too long.
        on_broken: called with the error after which there will be no engine.

    Attributes:
        engine: the one that runs, or None.
        deaths_in_a_row: of engines, nothing finished in between.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        name: str,
        config: FeedingConfig,
        memory: Memory,
        owner: EngineOwner,
        account: Account,
        is_wanted: Callable[[], bool],
        has_work: Callable[[], bool],
        on_ready: Callable[[], None],
        on_stalled: Callable[[Engine, str], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._make_engine = make_engine
        self._name = name
        self._config = config
        self._memory = memory
        self._owner = owner
        self._account = account
        self._is_wanted = is_wanted
        self._has_work = has_work
        self._on_ready = on_ready
        self._on_stalled = on_stalled
        self._on_broken = on_broken
        self.engine: Engine | None = None
        self.deaths_in_a_row = 0
        self._changing: asyncio.Task[None] | None = None  # one start, restart or close at a time
        self._closings: set[asyncio.Task[None]] = set()
        self._stall_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """See to it that there is an engine soon; `on_ready` tells."""
        if self.engine is None and self._changing is None:
            self._change(self._start)

    def let_go(self) -> None:
        """Close the engine; the next `start` brings another."""
        if self.engine is not None:
            closing = self._close(self.engine)
            self.engine = None
            self._change(lambda: _ended(closing))

    def replace(self, dead: Engine, error: str) -> None:
        """Clear away a dead engine, and start another where one is wanted."""
        self.engine = None
        closing = self._close(dead)
        self._change(lambda: self._restart(closing, error))

    async def shut_down(self) -> None:
        """End the engine and whatever is starting or closing."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
        engine, self.engine = self.engine, None
        if engine is not None:
            self._close(engine)
        if self._closings:
            await asyncio.wait(self._closings)

    def _change(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def change() -> None:
            try:
                await work()
            finally:
                self._changing = None
            self._on_ready()

        self._changing = asyncio.get_running_loop().create_task(change())

    async def _start(self, delay_s: float = 0.0) -> None:
        await asyncio.sleep(delay_s)
        try:
            engine = self._make_engine()
        except Exception as error:  # noqa: BLE001 - every bundle that waits raises it
            self._on_broken(error)
            return
        try:
            await self._memory.reserve(self._owner, engine.memory_share)
            await engine.start()
        except EngineDead as error:
            logger.warning("the engine of %s died while it started: %s", self._name, error)
            await self._restart(self._close(engine), str(error))
        except BaseException as error:
            await _ended(self._close(engine))
            if isinstance(error, asyncio.CancelledError):
                raise
            self._on_broken(error)
        else:
            self.engine = engine
            self._watch_stall()

    async def _restart(self, closing: asyncio.Task[None], error: str) -> None:
        self.deaths_in_a_row += 1
        self._account.restarts += 1
        await _ended(closing)
        if self.deaths_in_a_row > self._config.max_restarts:
            died = f"the engine of model {self._name} died {self.deaths_in_a_row} times"
            self._on_broken(MillError(f"{died}, the last time with nothing finished in between: {error}"))
        elif self._is_wanted():
            wait_s = self._config.backoff_s * 2.0 ** (self.deaths_in_a_row - 1)
            await self._start(min(wait_s, self._config.max_backoff_s))

    def _close(self, engine: Engine) -> asyncio.Task[None]:
        """Begin to end an engine; this goes on to its end even if who waits for it is cancelled."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        task = asyncio.get_running_loop().create_task(self._close_now(engine))
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)
        return task

    async def _close_now(self, engine: Engine) -> None:
        try:
            await engine.close()
        except Exception:
            logger.exception("the engine of %s did not end cleanly", self._name)
        finally:
            self._memory.release(self._owner)

    def _watch_stall(self) -> None:
        if self.engine is None:
            return
        if self._has_work() and time.monotonic() - self._account.progress_at > self._config.stall_s:
            self._on_stalled(self.engine, f"nothing finished in {self._config.stall_s:.0f} s")
            return
        self._stall_timer = asyncio.get_running_loop().call_later(self._config.stall_s / 4, self._watch_stall)


async def _ended(closing: asyncio.Task[None]) -> None:
    await asyncio.shield(closing)
