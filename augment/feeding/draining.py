"""The end of a feeder's engine: what is in flight may finish within a time, and of the rest is asked what there is.

Under `feeding.feeder`, on the same event loop. No more requests are taken by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from augment.engines.protocol import Engine, Interruptible

logger = logging.getLogger(__name__)

_INTERRUPT_S = 5.0
"""So long an engine has to say what there is of its requests."""


async def let_finish(
    name: str, engine: Engine | None, in_flight: Collection[asyncio.Task[None]], drain_s: float
) -> None:
    """Return when all that is in flight has ended, finished or interrupted, or when there is no more time for it.

    Args:
        name: the model's name, for messages.
        in_flight: a task for each request at the engine.
        drain_s: so long they may go on, seconds.
    """
    if not in_flight:
        return
    _, left = await asyncio.wait(in_flight, timeout=drain_s)
    if not left or engine is None:
        return
    if not isinstance(engine, Interruptible):
        logger.warning(
            "%d requests of %s don't finish in time, and its engine doesn't say what there is of them: they will be "
            "made again from the start",
            *(len(left), name),
        )
        return
    try:
        await asyncio.wait_for(engine.interrupt(), _INTERRUPT_S)
    except Exception as error:  # noqa: BLE001 - one that has died meanwhile; what it had said is here
        logger.warning("the engine of %s could not be interrupted: %r", name, error)
    _, lost = await asyncio.wait(left, timeout=_INTERRUPT_S)
    if lost:
        logger.warning("what there is of %d requests of %s could not be found out", len(lost), name)
