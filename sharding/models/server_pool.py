"""Several servers of one model and their health: each request goes to one that is well.

    post ──► the open endpoint with the fewest requests ──► its answer
      ▲                     │ full (429), loading (503): closed for as long as it says; the caller hears when to come
      └── none is open ◄────┤ unreachable, or failed 3 times in a row: rests, and is looked at after growing pauses
                            └ refused: the request is wrong, or the key or the model of the whole run

How long that may take, and what is shown of it, is in `server_patience`. `augment.engines.endpoint` and
`difficulty.scorers.endpoint` are the two that send requests here.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sharding.errors import RequestError
from sharding.models.bodies import MAX_ANSWER_BYTES
from sharding.models.connections import base_url
from sharding.models.served import Served, ask_what_is_served
from sharding.models.server import EndpointClient, EndpointFailed, EndpointFull, EndpointLoading, EndpointUnreachable
from sharding.models.server_patience import SHOWN_S, Endpoint, Patience

logger = logging.getLogger(__name__)

COMPLETIONS = "/v1/completions"

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
"""A resting endpoint is looked at after the first pause; each further one is twice as long, up to the longest."""

FAILURES_TO_REST = 3
"""So many failures in a row are the endpoint's; fewer may be those of single requests."""

NEARLY_EVEN = 1.25
"""An endpoint gets the next request of a group while it has no more than so many times the fewest, and one."""

MAX_HOMES = 1 << 12
"""So many groups a pool remembers."""

_Answer = TypeVar("_Answer")


class EndpointPool:
    """Several servers of one model. Belongs to the event loop that runs `start`.

    Args:
        urls: of the servers, with or without "/v1".
        model: the name they serve it by.
        api_key_env: the environment variable with their key; None: they need none.
        timeout_s: for one whole answer.
        max_wait_s: how long no endpoint may take a request, while none is at work on one, until the run stops.
        check: looks at what each endpoint serves when it is reached, and raises RequestError where that won't do.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str,
        api_key_env: str | None = None,
        timeout_s: float,
        max_wait_s: float,
        check: Callable[[str, Served], None] | None = None,
    ) -> None:
        self._urls = tuple(map(base_url, urls))
        self._model = model
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._check = check
        self._patience = Patience(model, max_wait_s)
        self._endpoints: list[Endpoint] = []
        self._homes: dict[str, Endpoint] = {}  # where each group went last, those that went last of all
        self._looking: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._wrong: RequestError | None = None  # what one was found to be that was not there at first

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
            Endpoint(EndpointClient(url, model=self._model, api_key_env=self._api_key_env)) for url in self._urls
        ]
        looks = await asyncio.gather(*map(self._first_look, self._endpoints), return_exceptions=True)
        for error in looks:
            if error is not None:
                raise error
        await self._open_endpoint()
        self._patience.started = True

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        answer_type: type[_Answer],
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
        group: str = "",
    ) -> tuple[_Answer, Served]:
        """Send a request to the open endpoint with the fewest; waits while none is open.

        Args:
            answer_type: a msgspec type; an answer that doesn't fit it is a failure.
            max_bytes: of the answer.
            group: requests of one group begin alike; they go to one endpoint, whose cache has read them, unless it has
                many more than another. "": of no group.

        Returns:
            The answer, and who gave it.

        Raises:
            EndpointFull: the endpoint has no room; says for how long.
            EndpointFailed: no answer this time.
            EndpointRefused: the endpoint won't take this request, or answers it beyond measure.
            RequestError: it won't take any: the key, the model or the URL is wrong.
            MillError: no endpoint took a request for too long, or the wait that they ask for is too long.
        """
        while True:
            endpoint = await self._open_endpoint(group)
            endpoint.outstanding += 1
            endpoint.used_at = _now()
            try:
                answer = await endpoint.client.post(
                    path, body, answer_type, timeout_s=self._timeout_s, max_bytes=max_bytes
                )
            except EndpointUnreachable as error:  # it wasn't sent: another endpoint may have it, or this one later
                self._rest(endpoint, error)
            except EndpointFull as error:
                if isinstance(error, EndpointLoading) and not endpoint.is_loading(_now()):
                    failed = EndpointFailed(str(error))
                    self._failed(endpoint, failed)
                    raise failed from error
                error.retry_after_s = self._full(endpoint, error)
                raise
            except EndpointFailed as error:
                self._failed(endpoint, error)
                raise
            else:
                endpoint.answered(_now())
                self._patience.opened()
                return answer, endpoint.served
            finally:
                endpoint.outstanding -= 1
                self._wake()

    async def close(self) -> None:
        """End the connections. Safe to call twice."""
        looking = list(self._looking)
        for task in looking:
            task.cancel()
        self._patience.opened()  # nobody waits any more
        await asyncio.gather(*looking, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.client.close()

    async def _open_endpoint(self, group: str = "") -> Endpoint:
        """The endpoint that gets the next request; waits while none is open."""
        while True:
            now = _now()
            opened = [endpoint for endpoint in self._endpoints if endpoint.is_open(now)]
            if opened:
                return self._home(group, opened)
            give_up_at = self._patience.shut(self._endpoints, now)
            wake_at = min((e.closed_until for e in self._endpoints if e.closed_until > now), default=math.inf)
            if not any(endpoint.outstanding for endpoint in self._endpoints):
                if self._wrong is not None:
                    raise self._wrong
                self._patience.end_if_hopeless(self._endpoints, now)
                wake_at = min(wake_at, give_up_at)
            if not self._patience.is_shown:
                wake_at = min(wake_at, now + SHOWN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(wake_at if wake_at < math.inf else None):
                    await self._changed.wait()

    def _home(self, group: str, opened: Sequence[Endpoint]) -> Endpoint:
        """Of several open endpoints the one with the fewest requests, or where the group went last, if that is near."""
        found = min(opened, key=lambda endpoint: (endpoint.outstanding, endpoint.used_at))
        if group:
            home = self._homes.pop(group, found)
            if home in opened and home.outstanding <= NEARLY_EVEN * found.outstanding + 1:
                found = home
            self._homes[group] = found
            if len(self._homes) > MAX_HOMES:
                del self._homes[next(iter(self._homes))]
        return found

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- health -------------------------------------------------------------------------------------------------------

    def _failed(self, endpoint: Endpoint, error: EndpointFailed) -> None:
        endpoint.last_error = str(error)
        endpoint.failures += 1
        if endpoint.failures >= FAILURES_TO_REST or endpoint.rests:
            self._rest(endpoint, error)

    def _full(self, endpoint: Endpoint, error: EndpointFull) -> float:
        """Close an endpoint that has no room; returns in how many seconds to come again, maybe to another one.

        Raises:
            MillError: for too long now no endpoint has done anything but send requests away, or all want that.
        """
        now, said_s = _now(), error.retry_after_s
        wait_s = _pause_s(endpoint.times_full) if said_s is None else max(said_s, FIRST_PAUSE_S)
        endpoint.sent_away(error, now, wait_s, self._patience.max_wait_s)
        if not any(other.is_open(now) for other in self._endpoints):
            self._patience.shut(self._endpoints, now)
            if sum(other.outstanding for other in self._endpoints) == 1:  # this request
                self._patience.end_if_hopeless(self._endpoints, now)
        opens_s = min(other.closed_until for other in self._endpoints) - now
        return min(max(opens_s, FIRST_PAUSE_S), MAX_PAUSE_S)

    def _rest(self, endpoint: Endpoint, error: EndpointFailed) -> None:
        """Give an endpoint nothing more until it shows that it is well."""
        endpoint.looked_at(error, _now())
        if endpoint.closed_until == math.inf:
            return
        logger.warning("an endpoint of %s rests: %s", self._model, error)
        endpoint.closed_until = math.inf
        endpoint.rests += 1
        task = asyncio.get_running_loop().create_task(self._look_after(endpoint))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_after(self, endpoint: Endpoint) -> None:
        """Look at a resting endpoint after growing pauses until it is well, then open it."""
        pauses = endpoint.rests - 1
        while True:
            await asyncio.sleep(_pause_s(pauses))
            try:
                await self._look(endpoint)
            except Exception as error:  # noqa: BLE001 - an endpoint that nobody looks after would rest for ever
                endpoint.looked_at(error, _now())
                if isinstance(error, RequestError) and not endpoint.answered_at:
                    self._wrong = error  # as at the first look
                self._wake()
                pauses += 1
            else:
                break
        logger.warning("an endpoint of %s answers again: %s", self._model, endpoint.client.url)
        endpoint.closed_until = endpoint.asked_until = 0.0
        self._patience.opened()
        self._wake()

    async def _first_look(self, endpoint: Endpoint) -> None:
        try:
            await self._look(endpoint)
        except EndpointFailed as error:
            self._rest(endpoint, error)

    async def _look(self, endpoint: Endpoint) -> None:
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
