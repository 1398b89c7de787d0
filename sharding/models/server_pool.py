"""Several servers of one model and their health: each request goes to one that is well.

    post ──► the open endpoint with the fewest requests ──► its answer
      ▲                     │ full (429): closed for as long as it says; the caller hears when to come again
      └── none is open ◄────┤ unreachable, or failed 3 times in a row: rests, and is looked at after growing pauses
                            └ refused: the request is wrong, or the key or the model of the whole run

`augment.engines.endpoint` and `difficulty.scorers.endpoint` are the two that send requests here.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sharding.errors import MillError
from sharding.models.bodies import MAX_ANSWER_BYTES
from sharding.models.served import Served, ask_what_is_served
from sharding.models.server import (
    EndpointClient,
    EndpointFailed,
    EndpointFull,
    EndpointUnreachable,
    base_url,
)

logger = logging.getLogger(__name__)

COMPLETIONS = "/v1/completions"

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
"""A resting endpoint is looked at after the first pause; each further one is twice as long, up to the longest."""

FAILURES_TO_REST = 3
"""So many failures in a row are the endpoint's; fewer may be those of single requests."""

START_WAIT_S = 120.0
OUTAGE_S = 900.0
"""How long no endpoint may take a request while none is at work on one, at the start and later, until the run stops."""

_Answer = TypeVar("_Answer")


class _Endpoint:
    """One server and its health.

    Attributes:
        outstanding: requests it is at work on.
        failures, times_full: in a row.
        rests: since it last answered; from the second on it is tried with one request at a time.
        closed_until: on the loop's clock; infinite while it rests.
    """

    def __init__(self, client: EndpointClient) -> None:
        self.client = client
        self.served = Served()
        self.outstanding = self.failures = self.times_full = self.rests = 0
        self.closed_until = self.used_at = 0.0
        self.last_error = ""

    def is_open(self, now: float) -> bool:
        return now >= self.closed_until and (self.rests < 2 or self.outstanding == 0)


class EndpointPool:
    """Several servers of one model. Belongs to the event loop that runs `start`.

    Args:
        urls: of the servers, with or without "/v1".
        model: the name they serve it by.
        api_key_env: the environment variable with their key; None: they need none.
        timeout_s: for one whole answer.
        check: looks at what each endpoint serves when it is reached, and raises RequestError where that won't do.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str,
        api_key_env: str | None = None,
        timeout_s: float,
        check: Callable[[str, Served], None] | None = None,
    ) -> None:
        self._urls = tuple(map(base_url, urls))
        self._model = model
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._check = check
        self._endpoints: list[_Endpoint] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._shut_since: float | None = None

    def __repr__(self) -> str:
        return f"EndpointPool({self._urls!r}, model={self._model!r})"

    @property
    def software(self) -> str:
        """Of the endpoints that were reached: their distinct names and versions."""
        return ", ".join(sorted({e.served.software for e in self._endpoints if e.served.software}))

    async def start(self) -> None:
        """Look at every endpoint; return when one is open.

        Raises:
            RequestError: the key or the model is wrong, or a URL leads to something else.
            MillError: httpx is absent, or no endpoint answers.
        """
        self._endpoints = [
            _Endpoint(EndpointClient(url, model=self._model, api_key_env=self._api_key_env)) for url in self._urls
        ]
        looks = await asyncio.gather(*map(self._first_look, self._endpoints), return_exceptions=True)
        for error in looks:
            if error is not None:
                raise error
        await self._open_endpoint(START_WAIT_S)

    async def post(
        self, path: str, body: dict[str, Any], answer_type: type[_Answer], *, max_bytes: int = MAX_ANSWER_BYTES
    ) -> tuple[_Answer, Served]:
        """Send a request to the open endpoint with the fewest; waits while none is open.

        Args:
            answer_type: a msgspec type; an answer that doesn't fit it is a failure.
            max_bytes: of the answer.

        Returns:
            The answer, and who gave it.

        Raises:
            EndpointFull: the endpoint has no room; says for how long.
            EndpointFailed: no answer this time.
            EndpointRefused: the endpoint won't take this request, or answers it beyond measure.
            RequestError: it won't take any: the key, the model or the URL is wrong.
            MillError: no endpoint took a request for too long.
        """
        while True:
            endpoint = await self._open_endpoint(OUTAGE_S)
            endpoint.outstanding += 1
            endpoint.used_at = _now()
            try:
                answer = await endpoint.client.post(
                    path, body, answer_type, timeout_s=self._timeout_s, max_bytes=max_bytes
                )
            except EndpointUnreachable as error:  # it wasn't sent: another endpoint may have it, or this one later
                self._rest(endpoint, error)
            except EndpointFull as error:
                error.retry_after_s = self._full(endpoint, error)
                raise
            except EndpointFailed as error:
                self._failed(endpoint, error)
                raise
            else:
                self._succeeded(endpoint)
                return answer, endpoint.served
            finally:
                endpoint.outstanding -= 1
                self._wake()

    async def close(self) -> None:
        """End the connections. Safe to call twice."""
        looking = list(self._looking)
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.client.close()

    async def _open_endpoint(self, limit_s: float) -> _Endpoint:
        while True:
            now = _now()
            opened = [endpoint for endpoint in self._endpoints if endpoint.is_open(now)]
            if opened:
                return min(opened, key=lambda endpoint: (endpoint.outstanding, endpoint.used_at))
            shut_since = self._note_shut(now)
            wake_at = min((e.closed_until for e in self._endpoints if e.closed_until > now), default=math.inf)
            if not any(endpoint.outstanding for endpoint in self._endpoints):
                if now >= shut_since + limit_s:
                    raise self._outage(limit_s)
                wake_at = min(wake_at, shut_since + limit_s)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(wake_at if wake_at < math.inf else None):
                    await self._changed.wait()

    def _note_shut(self, now: float) -> float:
        """Since when no endpoint has been taking requests, if none is."""
        self._shut_since = now if self._shut_since is None else self._shut_since
        return self._shut_since

    def _outage(self, lasted_s: float) -> MillError:
        errors = "; ".join(endpoint.last_error for endpoint in self._endpoints)
        return MillError(f"no endpoint of {self._model} took a request for {lasted_s:g} s: {errors}")

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- health -------------------------------------------------------------------------------------------------------

    def _succeeded(self, endpoint: _Endpoint) -> None:
        endpoint.failures = endpoint.times_full = 0
        if endpoint.closed_until < math.inf:
            endpoint.rests = 0
        self._shut_since = None

    def _failed(self, endpoint: _Endpoint, error: EndpointFailed) -> None:
        endpoint.last_error = str(error)
        endpoint.failures += 1
        if endpoint.failures >= FAILURES_TO_REST or endpoint.rests:
            self._rest(endpoint, error)

    def _full(self, endpoint: _Endpoint, error: EndpointFull) -> float:
        """Close an endpoint that has no room, for as long as it says; returns for how long, in seconds.

        Raises:
            MillError: for too long now no endpoint has done anything but send requests away.
        """
        endpoint.last_error = str(error)
        now = _now()
        said_s = error.retry_after_s
        wait_s = _pause_s(endpoint.times_full) if said_s is None else max(said_s, FIRST_PAUSE_S)
        if endpoint.closed_until <= now:  # of many requests that it sends away at once, one is counted
            endpoint.times_full += 1
        endpoint.closed_until = max(endpoint.closed_until, now + wait_s)
        if not any(other.is_open(now) for other in self._endpoints):
            lasted_s = now - self._note_shut(now)
            if lasted_s >= OUTAGE_S and sum(other.outstanding for other in self._endpoints) == 1:  # this request
                raise self._outage(OUTAGE_S) from error
        return wait_s

    def _rest(self, endpoint: _Endpoint, error: EndpointFailed) -> None:
        """Give an endpoint nothing more until it shows that it is well."""
        endpoint.last_error = str(error)
        if endpoint.closed_until == math.inf:
            return
        logger.warning("an endpoint of %s rests: %s", self._model, error)
        endpoint.closed_until = math.inf
        endpoint.rests += 1
        task = asyncio.get_running_loop().create_task(self._look_after(endpoint))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_after(self, endpoint: _Endpoint) -> None:
        """Look at a resting endpoint after growing pauses until it is well, then open it."""
        pauses = endpoint.rests - 1
        while True:
            await asyncio.sleep(_pause_s(pauses))
            try:
                await self._look(endpoint)
            except Exception as error:  # noqa: BLE001 - an endpoint that nobody looks after would rest for ever
                endpoint.last_error = str(error) or repr(error)
                pauses += 1
            else:
                break
        logger.warning("an endpoint of %s answers again: %s", self._model, endpoint.client.url)
        endpoint.closed_until = 0.0
        self._shut_since = None
        self._wake()

    async def _first_look(self, endpoint: _Endpoint) -> None:
        try:
            await self._look(endpoint)
        except EndpointFailed as error:
            self._rest(endpoint, error)

    async def _look(self, endpoint: _Endpoint) -> None:
        """Ask an endpoint what it serves, and note it.

        Raises:
            RequestError: another model, or one that won't do.
        """
        endpoint.served = await ask_what_is_served(endpoint.client, self._model)
        if self._check is not None:
            self._check(endpoint.client.url, endpoint.served)


def _pause_s(earlier: int) -> float:
    return min(FIRST_PAUSE_S * 2.0 ** min(earlier, 32), MAX_PAUSE_S)


def _now() -> float:
    return asyncio.get_running_loop().time()
