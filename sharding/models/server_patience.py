"""How long servers are waited for: what each of them has said of itself, and when the run has waited long enough.

Under `sharding.models.server_pool`, which sends the requests. A wait is bounded, by the time that it has lasted or by
what the servers ask for, and one above 10 s is shown: in the log and as `sharding.waits`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from sharding import waits
from sharding.errors import MillError
from sharding.models.served import Served
from sharding.models.server import EndpointClient, EndpointFull

logger = logging.getLogger(__name__)

START_WAIT_S = 120.0
"""So long, at most, servers are waited for at the start that can't be reached at all."""

SHOWN_S = 10.0
"""A longer wait is shown."""

RECENT_S = 60.0
"""A server that was away less than this ago and has answered since is not loading: what it says is of the request."""


class Endpoint:
    """One server, its health, and what it has said of itself. All times are the loop's.

    Attributes:
        outstanding: requests it is at work on.
        failures, times_full: in a row.
        rests: since it last answered; from the second on it is tried with one request at a time.
        closed_until: when it is asked again; infinite while it rests.
        asked_until: to when it wants no requests; nobody may want to wait so long.
        loading_at, answered_at: when it last said that it isn't ready, and last answered a request; 0: never.
    """

    def __init__(self, client: EndpointClient) -> None:
        self.client = client
        self.served = Served()
        self.outstanding = self.failures = self.times_full = self.rests = 0
        self.closed_until = self.used_at = self.asked_until = self.loading_at = self.answered_at = 0.0
        self.last_error = ""

    def is_open(self, now: float) -> bool:
        """Whether it gets another request."""
        return now >= self.closed_until and (self.rests < 2 or self.outstanding == 0)

    def is_loading(self, now: float) -> bool:
        """Whether it isn't ready for anybody, when it says so: else it isn't for this request alone."""
        if self.loading_at < self.answered_at and now < self.loading_at + RECENT_S:
            return False
        self.loading_at = now
        return True

    def answered(self, now: float) -> None:
        """It has answered a request."""
        self.failures = self.times_full = 0
        self.answered_at = now
        if self.closed_until < math.inf:
            self.rests = 0

    def sent_away(self, error: EndpointFull, now: float, wait_s: float, longest_s: float) -> None:
        """It has no room: nothing for `wait_s`, or for `longest_s`, after which it is tried all the same."""
        self.last_error = str(error)
        if self.closed_until <= now:  # of many requests that it sends away at once, one is counted
            self.times_full += 1
            if wait_s > SHOWN_S:
                logger.warning("a server gets no requests for %.0f s: %s", min(wait_s, longest_s), error)
        self.asked_until = now + (error.retry_after_s or 0.0)
        self.closed_until = max(self.closed_until, now + min(wait_s, longest_s))

    def looked_at(self, error: Exception, now: float) -> None:
        """It isn't well."""
        self.last_error = str(error) or repr(error)
        self.asked_until = now
        if isinstance(error, EndpointFull):
            self.asked_until += error.retry_after_s or 0.0
            self.loading_at = now


class Patience:
    """The time during which no server of a model has taken a request.

    Args:
        model: the name that it is served by, for messages.
        max_wait_s: how long that may be, once servers were there.
    """

    def __init__(self, model: str, max_wait_s: float) -> None:
        self._model = model
        self.max_wait_s = max_wait_s
        self.started = False
        self._since: float | None = None
        self.is_shown = False

    def opened(self) -> None:
        """A server takes requests."""
        self._since, self.is_shown = None, False
        waits.end(self)

    def shut(self, endpoints: Sequence[Endpoint], now: float) -> float:
        """No server takes requests now; shows that where it takes long. Until when it may last."""
        self._since = now if self._since is None else self._since
        may_last_s = self._may_last_s(endpoints)
        if max(now, _opens_at(endpoints, now)) >= self._since + SHOWN_S:
            since = time.time() - (now - self._since)
            wait = waits.begin(self, who=self._model, reason=_reasons(endpoints), since=since, until=since + may_last_s)
            if not self.is_shown:
                logger.warning("waiting for the servers of %s", waits.told(wait, time.time()))
            self.is_shown = True
        return self._since + may_last_s

    def end_if_hopeless(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """End the run where no server has taken a request for too long, or none will before it is too long.

        Only for who waits, with nothing under way at a server.

        Raises:
            MillError: with what each of them said last.
        """
        give_up_at = self.shut(endpoints, now)
        since = give_up_at - self._may_last_s(endpoints)
        saved = "what was finished is kept, run again when they take requests"
        if now >= give_up_at:
            raise MillError(
                f"no endpoint of {self._model} took a request for {self._may_last_s(endpoints):g} s: "
                f"{_reasons(endpoints)}; {saved}"
            )
        if (opens_at := _opens_at(endpoints, now)) > give_up_at:
            raise MillError(
                f"no endpoint of {self._model} takes a request for {opens_at - since:,.0f} s, longer than "
                f"max_wait_s={self.max_wait_s:g} allows: {_reasons(endpoints)}; {saved}"
            )

    def _may_last_s(self, endpoints: Sequence[Endpoint]) -> float:
        is_there = self.started or any(endpoint.loading_at for endpoint in endpoints)
        return self.max_wait_s if is_there else min(START_WAIT_S, self.max_wait_s)


def _opens_at(endpoints: Sequence[Endpoint], now: float) -> float:
    """When the first server may take a request again, by what they have said."""
    return min(max(endpoint.asked_until, now) for endpoint in endpoints)


def _reasons(endpoints: Sequence[Endpoint]) -> str:
    return "; ".join(endpoint.last_error for endpoint in endpoints if endpoint.last_error)
