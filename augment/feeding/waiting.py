"""Which requests go to the engine next, how many at once after a death, and when those that failed are tried again."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from augment.feeding.config import FeedingConfig
from augment.feeding.tickets import Job
from sharding.hashing import fraction_of

_SHRINK = 8
"""When a request sees its second death, at most one in so many of those that were in flight go to the next engine
together, the ones with most deaths first: what kills engines is soon alone, and the others are not blamed for it."""


class Waiting:
    """The jobs of a feeder that wait for a slot. The longest go first, so that none is left alone at the end."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Job]] = []
        self._arrivals = itertools.count()
        self._limit: int | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, job: Job) -> None:
        """A job waits, for the first time or again."""
        expected_tokens = job.request.expected_tokens or job.request.max_tokens
        heapq.heappush(self._heap, (-job.deaths, -expected_tokens, next(self._arrivals), job))

    def pop(self) -> Job:
        """The job that goes next."""
        return heapq.heappop(self._heap)[-1]

    def limit(self, capacity: int) -> int:
        """How many may be in flight at an engine of this capacity; fewer while one that kills engines is looked for."""
        return capacity if self._limit is None else min(capacity, self._limit)

    def succeeded(self) -> None:
        """A job has ended well: one more may go together with others."""
        if self._limit is not None:
            self._limit += 1

    def take_back(self, jobs: Sequence[Job], *, blamed: bool) -> Job | None:
        """The jobs that were in flight when an engine died wait again, ahead of the others.

        Args:
            blamed: whether one of them may have killed it.

        Returns:
            The one that has now killed two engines, the last of them alone; it doesn't wait again.
        """
        for job in jobs:
            job.deaths += blamed
        if blamed and max((job.deaths for job in jobs), default=0) > 1:
            if len(jobs) == 1:
                return jobs[0]
            self._limit = max(1, len(jobs) // _SHRINK)
        for job in jobs:
            self.push(job)
        return None


def pause_s(job: Job, retry_after_s: float | None, config: FeedingConfig) -> float:
    """How long a request that failed waits, in seconds: as the engine says, or twice as long with each try.

    Spread by its key, so that they don't all come back at once.
    """
    if retry_after_s is not None:
        return retry_after_s * (1 + fraction_of(job.request.key) / 4)
    longest_s = min(config.backoff_s * 2.0 ** (job.retries - 1), config.max_backoff_s)
    return longest_s * (0.5 + fraction_of(f"{job.request.key}/{job.retries - 1}") / 2)
