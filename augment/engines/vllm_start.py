"""How vLLM's processes start: one engine at a time on a machine, in an environment of their own. Imports no vLLM."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from augment.engines import reaper
from sharding.errors import MillError
from sharding.storage.private import private_folder

_START_TURN_S = 3600.0
"""So long an engine waits for others to start. A process that ends gives its turn back, however it ends."""

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    # A fork of a process with threads can deadlock.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Pinned threads of two engines on one machine would share cores while others idle.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Set unless the user has set them."""

ON_CPU = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For the engine's own processes, unless the user has set it: threads that spin while they wait starve each other as
soon as anything else runs on the machine (twice the tokens per second on two busy cores)."""


def set_environment() -> None:
    """What vLLM reads when it is imported and when it starts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def engine_environment(mark: str, defaults: dict[str, str], placing: dict[str, str]) -> Iterator[None]:
    """What the engine's processes inherit: their mark, where to work, and defaults where nothing is set."""
    ours = {name: os.environ.get(name, value) for name, value in defaults.items()} | placing
    ours |= {reaper.MARK_VARIABLE: mark, "VLLM_PROCESS_NAME_PREFIX": f"VLLM-{mark}"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def start_turn() -> AsyncIterator[None]:
    """Engines start one at a time on a machine: each measures free memory and picks free ports while it starts.

    Raises:
        MillError: another one has been starting for longer than any takes.
    """
    from filelock import FileLock, Timeout

    lock, until = FileLock(private_folder() / "engine-start.turn"), time.monotonic() + _START_TURN_S
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if time.monotonic() > until:
                raise MillError(
                    f"another engine of this user has been starting for {_START_TURN_S / 60:.0f} min and holds "
                    f"{lock.lock_file}: end its process"
                ) from None
            await asyncio.sleep(min(0.5, _START_TURN_S))
    try:
        yield
    finally:
        lock.release()
