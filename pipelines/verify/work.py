"""Work in parallel, with progress. Used by every step of verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes there are."""

T = TypeVar("T")
R = TypeVar("R")


class Work:
    """A pool of threads, and how far they are.

    Args:
        pool: the threads.
        total_bytes: what there is to do.
        on_progress: told whenever something is done; from the thread that takes the results.
    """

    def __init__(self, pool: ThreadPoolExecutor, total_bytes: int, on_progress: Progress | None) -> None:
        self._pool, self._total_bytes, self._on_progress = pool, total_bytes, on_progress
        self._done_bytes = 0

    def each(self, work: Callable[[T], R], over: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Do `work` on each, in parallel: each with its result, in the order of completion."""
        futures = {self._pool.submit(work, one): one for one in over}
        try:
            for future in as_completed(list(futures)):
                yield futures.pop(future), future.result()
        finally:
            for future in futures:
                future.cancel()

    def advance(self, size_bytes: int) -> None:
        """Say that so much more is done."""
        self._done_bytes += size_bytes
        if self._on_progress:
            self._on_progress(self._done_bytes, self._total_bytes)
