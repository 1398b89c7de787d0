"""How full an engine was kept: a feeder's counts, and the warning when the bundles can't fill the engine."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)

STARVED_BUSY_S = 60.0
STARVED_SHARE = 0.5
"""Warn when an engine was busy for so many seconds and filled to less than this share on average."""


@dataclass(frozen=True)
class FeederStats:
    """What a feeder did so far.

    Attributes:
        in_flight: requests at the engine now.
        waiting: requests that wait for the engine, or for their next try, now.
        busy_s: seconds with at least one request in flight.
        mean_in_flight: requests in flight, averaged over the busy time.
        capacity: requests in flight at most.
        elsewhere: whether the engine belongs to another process, which counts the same requests.
    """

    submitted: int
    completed: int
    failed: int
    retries: int
    restarts: int
    generated_tokens: int
    in_flight: int
    waiting: int
    busy_s: float
    mean_in_flight: float
    capacity: int
    elsewhere: bool


class Meter:
    """Counts of one feeder, kept on its thread.

    Attributes:
        elsewhere: as in `FeederStats`; whether such an engine is full is not for us to tell.
        progress_at: when last something finished or the engine got its first request, on the monotonic clock.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.submitted = self.completed = self.failed = 0
        self.retries = self.restarts = self.generated_tokens = self.capacity = 0
        self.progress_at = self._since = time.monotonic()
        self.elsewhere = False
        self._in_flight = 0
        self._busy_s = self._in_flight_seconds = 0.0
        self._warned = False

    def observe(self, in_flight: int) -> None:
        """Note how many requests are in flight from now on."""
        now = time.monotonic()
        if self._in_flight:
            self._busy_s += now - self._since
            self._in_flight_seconds += self._in_flight * (now - self._since)
        elif in_flight:
            self.progress_at = now
        self._in_flight, self._since = in_flight, now
        if not (self._warned or self.elsewhere or self._busy_s < STARVED_BUSY_S):
            self._warn_if_starved()

    def finished(self, generated_tokens: int | None) -> None:
        """Note a result: its tokens, or None for a failure."""
        self.progress_at = time.monotonic()
        if generated_tokens is None:
            self.failed += 1
        else:
            self.completed += 1
            self.generated_tokens += generated_tokens

    def stats(self) -> FeederStats:
        mean = self._in_flight_seconds / self._busy_s if self._busy_s else 0.0
        return FeederStats(
            submitted=self.submitted,
            completed=self.completed,
            failed=self.failed,
            retries=self.retries,
            restarts=self.restarts,
            generated_tokens=self.generated_tokens,
            in_flight=self._in_flight,
            waiting=max(0, self.submitted - self.completed - self.failed - self._in_flight),
            busy_s=self._busy_s,
            mean_in_flight=mean,
            capacity=self.capacity,
            elsewhere=self.elsewhere,
        )

    def _warn_if_starved(self) -> None:
        stats = self.stats()
        if stats.mean_in_flight >= STARVED_SHARE * stats.capacity:
            return
        self._warned = True
        logger.warning(
            "the engine of %s had %.0f requests in flight on average and could take %d: bundles are too small or too "
            "few to fill it; give the runner larger bundles or more threads per worker",
            *(self._name, stats.mean_in_flight, stats.capacity),
        )
