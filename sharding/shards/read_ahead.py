"""Doing before it is asked for what will be: a thread that fetches the next shards. Beside `sharding.shards.cache`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from sharding.errors import MillError

logger = logging.getLogger(__name__)


class ReadAhead:
    """Fetches shards one after the other while others are read; what was wanted last alone counts.

    Each process has a thread of its own, and none while nothing is wanted. A fetch that fails is none: whoever reads
    the shard meets the error.

    Args:
        fetch: fetches the shard of a number, unless it is here.
    """

    def __init__(self, fetch: Callable[[int], object]) -> None:
        self._fetch = fetch
        self._process = -1
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._at_work = False

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these next, in this order, and nothing that was wanted before."""
        if self._process != os.getpid():  # a process that was forked has the state and not the thread
            self._process, self._lock, self._at_work = os.getpid(), threading.Lock(), False
        with self._lock:
            self._wanted = list(shards)
            if self._wanted and not self._at_work:
                self._at_work = True
                threading.Thread(target=self._work, name="read-ahead", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._at_work = False
                    return
                shard = self._wanted.pop(0)
            try:
                self._fetch(shard)
            except MillError as error:
                logger.info("a shard can't be fetched ahead: %s", error)
