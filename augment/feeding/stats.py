"""How full an engine was kept: a feeder's counts, and the warning when the bundles can't fill the engine."""

from __future__ import annotations

import copy
import logging
import time

logger = logging.getLogger(__name__)

STARVED_BUSY_S = 60.0
STARVED_SHARE = 0.5
"""Warn when an engine was busy for so many seconds and filled to less than this share on average."""


class FeederStats:
    """What a feeder did so far; counted on its thread, and read elsewhere from a `snapshot`.

    Attributes:
        submitted, completed, failed: requests. retries: of requests. restarts: of engines.
        generated_tokens: of what was completed.
        in_flight: requests at the engine now.
        busy_s: seconds with at least one request in flight.
        capacity: requests in flight at most.
        elsewhere: whether the engine belongs to another process, which counts the same requests; whether such an engine
            is full is not for us to tell.
        progress_at: when last something finished or the engine got its first request, on the monotonic clock.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.submitted = self.completed = self.failed = self.retries = self.restarts = 0
        self.generated_tokens = self.in_flight = self.capacity = 0
        self.busy_s = self._in_flight_seconds = 0.0
        self.elsewhere = self._warned = False
        self.progress_at = self._since = time.monotonic()

    @property
    def waiting(self) -> int:
        """Requests that wait for the engine, or for their next try, now."""
        return max(0, self.submitted - self.completed - self.failed - self.in_flight)

    @property
    def mean_in_flight(self) -> float:
        """Requests in flight, averaged over the busy time."""
        return self._in_flight_seconds / self.busy_s if self.busy_s else 0.0

    def observe(self, in_flight: int) -> None:
        """Note how many requests are in flight from now on."""
        now = time.monotonic()
        if self.in_flight:
            self.busy_s += now - self._since
            self._in_flight_seconds += self.in_flight * (now - self._since)
        elif in_flight:
            self.progress_at = now
        self.in_flight, self._since = in_flight, now
        if not (self._warned or self.elsewhere or self.busy_s < STARVED_BUSY_S):
            self._warn_if_starved()

    def finished(self, generated_tokens: int | None) -> None:
        """Note a result: its tokens, or None for a failure."""
        self.progress_at = time.monotonic()
        if generated_tokens is None:
            self.failed += 1
        else:
            self.completed += 1
            self.generated_tokens += generated_tokens

    def snapshot(self) -> FeederStats:
        """As it is now."""
        return copy.copy(self)

    def _warn_if_starved(self) -> None:
        if self.mean_in_flight >= STARVED_SHARE * self.capacity:
            return
        self._warned = True
        logger.warning(
            "the engine of %s had %.0f requests in flight on average and could take %d: bundles are too small or too "
            "few to fill it; give the runner larger bundles or more threads per worker",
            *(self._name, self.mean_in_flight, self.capacity),
        )
