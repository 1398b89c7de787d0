"""How long a search server is waited for: bounded, and shown where it takes long."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from sharding import waits
from sharding.errors import MillError
from sharding.models.server_patience import SHOWN_S, START_WAIT_S

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""A request is sent again after the first pause; each further one is twice as long, up to the longest."""

MAX_ATTEMPTS = 5
"""So often a request is sent that comes to no answer, or to none that makes sense, from a server that is there."""


class SearchFailed(MillError):
    """A request had no answer this time; it may be sent again."""


class SearchAway(SearchFailed):
    """The server can't be reached, or takes no requests now.

    Attributes:
        retry_after_s: seconds for which it wants none, or None where it doesn't say.
        answered: it says so itself.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, answered: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.answered = answered


class SearchRefused(MillError):
    """The server will never take this request.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Waiting:
    """The pauses of one request.

    Args:
        who: is waited for.
        max_wait_s: how long that may take, from the first failure on.
        reached: it has answered this process before; else it is waited for two minutes at most.
    """

    def __init__(self, who: str, max_wait_s: float, *, reached: bool) -> None:
        self._who = who
        self._max_wait_s = max_wait_s if reached else min(max_wait_s, START_WAIT_S)
        self._since: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._failed = 0
        self._is_shown = False

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waits.end(self)

    def wait(self, error: SearchFailed) -> None:
        """Pause before the next try.

        Raises:
            MillError: that would take too long, or has come to nothing too often.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left_s = self._since + self._max_wait_s - now
        asked_s = 0.0
        if isinstance(error, SearchAway):
            asked_s = error.retry_after_s or 0.0
        else:
            self._failed += 1
            if self._failed >= MAX_ATTEMPTS:
                raise MillError(f"{error} ({self._failed} tries)") from error
        if left_s <= asked_s:
            raise MillError(
                f"{error}; it was waited for for {now - self._since:.0f} s and wants {asked_s:.0f} s more, of the "
                f"{self._max_wait_s:g} s that it may take (retrieval.server.max_wait_s; two minutes where it was never "
                "reached); what it has taken is kept: run again when it takes requests"
            ) from error
        pause_s = max(asked_s, min(self._pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        if now + pause_s >= self._since + SHOWN_S:
            self._show(error, now)
        time.sleep(pause_s)

    def _show(self, error: SearchFailed, now: float) -> None:
        assert self._since is not None
        since = time.time() - (now - self._since)
        wait = waits.begin(self, who=self._who, reason=str(error), since=since, until=since + self._max_wait_s)
        if not self._is_shown:
            logger.warning("waiting for the search server %s", waits.told(wait, time.time()))
        self._is_shown = True
