"""Stopping a run from outside: who watches it says why, and every worker process stops before it pays for more.

In this process at once; in others, on this machine and elsewhere, through a small file beside the heartbeats, which
each of them looks for when it writes its own.
"""

from __future__ import annotations

import logging

from augment.feeding import worker
from augment.feeding.heartbeat import stop_url
from sharding import storage
from sharding.errors import MillError

logger = logging.getLogger(__name__)


def stop_everywhere(order: worker.WorkOrder, reason: str) -> None:
    """Have all worker processes of a run stop.

    Args:
        order: the run.
        reason: what they raise, as `worker.Stopped`.
    """
    worker.stop(order, reason)
    if order.beats_url is None:
        return
    try:
        storage.write_json(stop_url(order.beats_url), {"run_id": order.run_id, "reason": reason})
    except MillError as error:
        logger.warning("other processes can't be told to stop: %s", error)
