"""Clients of OpenAI-compatible servers: several URLs that serve one model, their health, and what their answers mean.

Generation (`augment.engines.endpoint`) and scoring (`difficulty.scorers.endpoint`) send their requests through an
`EndpointPool`:

    post ──► the open endpoint with the fewest requests ──► its answer
      ▲                     │ full (429): closed for as long as it says; the caller hears when to come again
      └── none is open ◄────┤ unreachable, or failed 3 times in a row: rests, is looked at after growing pauses
                            └ refused: the request is wrong, or the key or the model of the whole run

Keys come from an environment variable, named in the config, and stay out of every message.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from pydantic import SecretStr

from sharding.errors import MillError, RequestError

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

COMPLETIONS = "/v1/completions"

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
"""A resting endpoint is looked at after the first pause; each further one is twice as long, up to the longest."""

FAILURES_TO_REST = 3
"""So many failures in a row are the endpoint's, fewer may be those of single requests."""

START_WAIT_S = 120.0
OUTAGE_S = 900.0
"""How long no endpoint may take a request, at the start and later, with none at work on one, before the run stops."""

_CONNECT_S = 10.0
_LOOK_S = 10.0
_KEEP_IDLE_S = 3.0  # below the 5 s after which uvicorn closes an idle connection, maybe just as it is used again
_MESSAGE_CHARACTERS = 500

_Answer = TypeVar("_Answer")


class EndpointFailed(MillError):
    """A request had no answer this time; it may be sent again.

    Attributes:
        retry_after_s: seconds for which the endpoint takes no requests, where it is full; None where it failed.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EndpointRefused(MillError):
    """The endpoint will never take this request."""


class _Unreachable(EndpointFailed):
    """No connection: the request wasn't sent."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What an endpoint says of itself.

    Attributes:
        software: name and version as far as known, such as "vllm 0.32.0".
        max_model_len: tokens of prompt and answer together, or None where it doesn't say.
    """

    software: str = ""
    max_model_len: int | None = None


class _ModelCard(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Version(msgspec.Struct):
    version: str


def check_urls(urls: Sequence[str]) -> None:
    """Refuses what is no base URL of a server, for the validators of config sections.

    Raises:
        ValueError: names the URL and what is wrong with it; never a password.
    """
    for url in urls:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                f"urls: {parts.scheme}://{parts.hostname or ''}/...: a URL holds no password, query or fragment; "
                "put the key into an environment variable and name it in api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"urls: {url!r} is no URL of a server, such as http://localhost:8000")
    if len(set(map(_base_of, urls))) < len(urls):
        raise ValueError("urls: one of them is there twice")


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date (RFC 9110, 10.2.3); None where it is neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        at = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return max(0.0, (at - datetime.datetime.now(datetime.UTC)).total_seconds())


class _Endpoint:
    """One server.

    Attributes:
        outstanding: requests it is at work on.
        failures: in a row.
        rests: since it last answered a request while open; from the second on it is tried with one request at a time.
        closed_until: on the loop's clock; infinite while it rests.
        proven: it has answered a request, so that an odd answer is a fault of the moment and not of the config.
    """

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.served = Served()
        self.outstanding = self.failures = self.rests = self.times_full = 0
        self.closed_until = self.used_at = 0.0
        self.proven = False
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
        check: looks at what each endpoint serves when it is first reached, and raises RequestError where it won't do.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str,
        api_key_env: str | None = None,
        timeout_s: float,
        check: Callable[[str, Served], None] = lambda url, served: None,
    ) -> None:
        self._urls = [_base_of(url) for url in urls]
        self._model = model
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._check = check
        self._key: SecretStr | None = None
        self._endpoints: list[_Endpoint] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._shut_since: float | None = None

    def __repr__(self) -> str:
        return f"EndpointPool({self._urls!r}, model={self._model!r})"

    @property
    def software(self) -> str:
        """Of the endpoints that were reached: their distinct names and versions."""
        return ", ".join(dict.fromkeys(e.served.software for e in self._endpoints if e.served.software))

    async def start(self) -> None:
        """Look at every endpoint; return when one is open.

        Raises:
            RequestError: the key or the model is wrong, or a URL leads to something else.
            MillError: httpx is absent, or no endpoint answers.
        """
        self._key = read_key(self._api_key_env)
        self._endpoints = _connect(self._urls, self._key)
        looks = await asyncio.gather(*map(self._first_look, self._endpoints), return_exceptions=True)
        for error in looks:
            if isinstance(error, BaseException):
                raise error
        await self._open_endpoint(START_WAIT_S)

    async def post(self, path: str, body: dict[str, Any], answer_type: type[_Answer]) -> tuple[_Answer, Served]:
        """Send a request to the open endpoint with the fewest; waits while none is open.

        Args:
            answer_type: a msgspec type; an answer that doesn't fit it is a failure.

        Returns:
            The answer, and who gave it.

        Raises:
            EndpointFailed: no answer this time.
            EndpointRefused: the endpoint won't take this request.
            RequestError: it won't take any: the key or the model is wrong.
            MillError: no endpoint took a request for too long.
        """
        while True:
            endpoint = await self._open_endpoint(OUTAGE_S)
            endpoint.outstanding += 1
            endpoint.used_at = self._now()
            try:
                answer = await self._exchange(endpoint, "POST", path, self._timeout_s, answer_type, body)
            except _Unreachable as error:  # it wasn't sent, so another endpoint may have it, or this one later
                self._rest(endpoint, error)
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
        looking, endpoints = list(self._looking), self._endpoints
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        for endpoint in endpoints:
            await endpoint.client.aclose()

    # --- one exchange -------------------------------------------------------------------------------------------------

    async def _exchange(
        self,
        endpoint: _Endpoint,
        method: str,
        path: str,
        timeout_s: float,
        answer_type: type[_Answer],
        body: dict[str, Any] | None = None,
    ) -> _Answer:
        import httpx

        where = endpoint.url + path
        content = None if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(timeout_s):
                response = await endpoint.client.request(method, where, content=content)
        except TimeoutError as error:
            raise EndpointFailed(f"{where}: no answer within {timeout_s:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Unreachable(f"{where}: no connection ({_said(error)})") from error
        except httpx.HTTPError as error:
            raise EndpointFailed(f"{where}: {_said(error)}") from error
        self._check_status(endpoint, where, response)
        try:
            return msgspec.json.decode(response.content, type=answer_type)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EndpointFailed(f"{where}: the answer makes no sense: {error}") from error

    def _check_status(self, endpoint: _Endpoint, where: str, response: httpx.Response) -> None:
        status = response.status_code
        if status == HTTPStatus.OK:
            return
        said = f"{where} answered {status}: {self._message_of(response)}"
        wait_s = retry_after_s(response.headers.get("retry-after"))
        if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and wait_s is not None):
            raise EndpointFailed(said, retry_after_s=self._full(endpoint, wait_s))
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            key = f"the key in ${self._api_key_env}" if self._api_key_env else "no key: name its variable, api_key_env"
            raise RequestError(f"{said} (it was given {key})")
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY):
            raise EndpointRefused(said)
        if status < 500 and status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY) and not endpoint.proven:
            raise RequestError(f"{said} (asked for model {self._model!r}: check the URL and the name it is served by)")
        raise EndpointFailed(said)

    def _message_of(self, response: httpx.Response) -> str:
        """What an error answer says, in any of the ways servers say it, without the key should it repeat it."""
        text = response.text
        with suppress(msgspec.MsgspecError):
            told = msgspec.json.decode(text)
            for name in ("error", "message", "detail"):
                told = told.get(name, told) if isinstance(told, dict) else told
            text = told if isinstance(told, str) else text
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        return " ".join(text.split())[:_MESSAGE_CHARACTERS] or response.reason_phrase

    # --- health -------------------------------------------------------------------------------------------------------

    async def _open_endpoint(self, limit_s: float) -> _Endpoint:
        while True:
            now = self._now()
            opened = [endpoint for endpoint in self._endpoints if endpoint.is_open(now)]
            if opened:
                return min(opened, key=lambda endpoint: (endpoint.outstanding, endpoint.used_at))
            if self._shut_since is None:
                self._shut_since = now
            wait_s = min(endpoint.closed_until for endpoint in self._endpoints) - now
            if not any(endpoint.outstanding for endpoint in self._endpoints):
                left_s = self._shut_since + limit_s - now
                if left_s <= 0:
                    errors = "; ".join(endpoint.last_error for endpoint in self._endpoints)
                    raise MillError(f"no endpoint took a request for {limit_s:g} s: {errors}")
                wait_s = min(wait_s, left_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if 0 < wait_s < float("inf") else None):
                    await self._changed.wait()

    def _succeeded(self, endpoint: _Endpoint) -> None:
        endpoint.proven = True
        endpoint.failures = endpoint.times_full = 0
        if endpoint.is_open(self._now()) or endpoint.closed_until < float("inf"):
            endpoint.rests = 0
        self._shut_since = None

    def _failed(self, endpoint: _Endpoint, error: EndpointFailed) -> None:
        endpoint.last_error = str(error)
        if error.retry_after_s is None:
            endpoint.failures += 1
            if endpoint.failures >= FAILURES_TO_REST or endpoint.rests:
                self._rest(endpoint, error)

    def _full(self, endpoint: _Endpoint, wait_s: float | None) -> float:
        """Close an endpoint that has no room, for as long as it says; returns for how long."""
        now = self._now()
        if wait_s is None:
            wait_s = _pause_s(endpoint.times_full)
        if endpoint.closed_until <= now:  # of many requests that it sends away at once, one is counted
            endpoint.times_full += 1
        endpoint.closed_until = max(endpoint.closed_until, now + wait_s)
        return wait_s

    def _rest(self, endpoint: _Endpoint, error: EndpointFailed) -> None:
        """Give an endpoint nothing more until it shows that it is well."""
        endpoint.last_error = str(error)
        if endpoint.closed_until == float("inf"):
            return
        logger.warning("an endpoint of %s rests: %s", self._model, error)
        endpoint.closed_until = float("inf")
        endpoint.rests += 1
        self._look_after(endpoint)

    def _look_after(self, endpoint: _Endpoint) -> None:
        task = asyncio.get_running_loop().create_task(self._look_again(endpoint))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_again(self, endpoint: _Endpoint) -> None:
        """Look at a resting endpoint after growing pauses until it is well, and open it."""
        for pauses in range(endpoint.rests - 1, 1 << 30):
            await asyncio.sleep(_pause_s(pauses))
            try:
                await self._look(endpoint)
            except (EndpointFailed, EndpointRefused, RequestError) as error:
                endpoint.last_error = str(error)
            else:
                break
        logger.info("an endpoint of %s answers again: %s", self._model, endpoint.url)
        endpoint.closed_until = 0.0
        self._shut_since = None
        self._wake()

    async def _first_look(self, endpoint: _Endpoint) -> None:
        try:
            await self._look(endpoint)
        except EndpointFailed as error:
            self._rest(endpoint, error)
        except EndpointRefused as error:
            raise RequestError(str(error)) from error

    async def _look(self, endpoint: _Endpoint) -> None:
        """Ask what an endpoint serves, and note it.

        Raises:
            RequestError: another model, or one that won't do.
        """
        cards = (await self._exchange(endpoint, "GET", "/v1/models", _LOOK_S, _ModelList)).data
        card = next((card for card in cards if card.id == self._model), None)
        if card is None:
            names = ", ".join(card.id for card in cards) or "nothing"
            raise RequestError(f"{endpoint.url} does not serve {self._model!r} but {names}; set served_name to one")
        version = ""
        with suppress(EndpointFailed, EndpointRefused, RequestError):  # vLLM's own; others have no such page
            version = (await self._exchange(endpoint, "GET", "/version", _LOOK_S, _Version)).version
        endpoint.served = Served(software=f"{card.owned_by} {version}".strip(), max_model_len=card.max_model_len)
        self._check(endpoint.url, endpoint.served)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def read_key(api_key_env: str | None) -> SecretStr | None:
    """The key in an environment variable, masked wherever it is shown.

    Raises:
        RequestError: the variable is not set, or holds what can't be a key.
    """
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise RequestError(f"api_key_env: the environment variable {api_key_env} is not set where the requests start")
    if not (key.isascii() and key.isprintable()):
        raise RequestError(f"api_key_env: what {api_key_env} holds is no key: it has characters no header can carry")
    return SecretStr(key)


def _connect(urls: Sequence[str], key: SecretStr | None) -> list[_Endpoint]:
    """A client for each URL: httpx searches all connections of a client for each request."""
    try:
        import httpx
    except ImportError as error:
        raise MillError("endpoints need httpx; install it with: pip install 'thoughtmill[endpoint]'") from error
    for name in ("httpx", "httpcore"):  # a line per request would bury the log
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_IDLE_S)
    timeout = httpx.Timeout(None, connect=_CONNECT_S)
    tls: Any = httpx.create_ssl_context() if any(url.startswith("https:") for url in urls) else False
    return [
        _Endpoint(url, httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, verify=tls)) for url in urls
    ]


def _base_of(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _pause_s(earlier: int) -> float:
    return min(FIRST_PAUSE_S * 2.0 ** min(earlier, 32), MAX_PAUSE_S)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
