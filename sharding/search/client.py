"""One search server over HTTP: requests, what its errors mean, and waiting while it is full or away.

OpenSearch and Elasticsearch speak one API as far as it is used here. How a server is reached is in
`sharding.models.connections`, how its bodies are read in `sharding.models.bodies`: the same as for servers of models.
Keys come from an environment variable, named in the config, and stay out of every message.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from pydantic import SecretStr

from sharding.errors import MillError, RequestError
from sharding.models import refusals
from sharding.models.bodies import (
    BodyTooLong,
    BodyUnreadable,
    read_body,
    read_error,
    repeats_key,
    shown,
    text_of,
    without,
)
from sharding.models.connections import new_client, read_key
from sharding.models.server import retry_after_s, told
from sharding.search.config import SearchServerConfig
from sharding.search.waiting import SearchAway, SearchFailed, SearchRefused, Waiting

if TYPE_CHECKING:
    import httpx

OLDEST = {"opensearch": 1, "elasticsearch": 7}
"""The first major versions whose API this is."""

SMALL_BYTES = 1 << 20
"""Of an answer that doesn't grow with what is asked."""

LOOK_S = 10.0

_AWAY = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
_OF_THE_KEY = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})

_LINES = {"Content-Type": "application/x-ndjson"}

_Answer = TypeVar("_Answer")


class _Info(msgspec.Struct):
    """What `GET /` says; what is odd in it says nothing."""

    version: Any = None


class SearchClient:
    """Requests to one search server, over connections that are kept. Threads may share one.

    Args:
        config: where it is, and its key.
        waits: whether a server that is full or away is waited for; else that is an error at once.
        known: it has answered another process of the run, so that it is waited for as one that was there.

    Raises:
        RequestError: the key's variable is not set, or the environment names a proxy or certificates that can't be
            used.
        MillError: httpx is absent.
    """

    def __init__(self, config: SearchServerConfig, *, waits: bool = True, known: bool = False) -> None:
        self.url = config.url.rstrip("/")
        self._config, self._waits = config, waits
        self._secrets, scheme = _secrets_of(config)
        self._client, self._proxy = new_client(self.url, self._secrets[0] if self._secrets else None, scheme=scheme)
        self._reached = known
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="search-server", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"SearchClient({self.url!r})"

    def __enter__(self) -> SearchClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. Safe to call twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def software(self) -> str:
        """What the server is, such as "opensearch 2.19.1".

        Raises:
            RequestError: it is something else, or too old.
            MillError: as `ask`.
        """
        try:
            version = self.ask("GET", "/", _Info).version
        except SearchRefused as error:
            raise RequestError(f"{error} (asked what it is: check retrieval.server.url)") from error
        told = version if isinstance(version, dict) else {}
        name, number = told.get("distribution", "elasticsearch"), told.get("number")
        said = f"{name} {number}" if isinstance(name, str) and isinstance(number, str) else "no search server"
        major = number.partition(".")[0] if isinstance(number, str) else ""
        if not (isinstance(name, str) and major.isdecimal() and len(major) < 4 and int(major) >= OLDEST.get(name, 999)):
            oldest = " or ".join(f"{known} from {first} on" for known, first in OLDEST.items())
            raise RequestError(f"{self.url} says that it is {self.shown(said)}; an index of passages takes {oldest}")
        return self.shown(said)[:80]

    def ask(
        self,
        method: str,
        path: str,
        answer_type: type[_Answer],
        *,
        body: Any = None,
        lines: bytes | None = None,
        max_bytes: int = SMALL_BYTES,
    ) -> _Answer:
        """Send a request, again while the server is full or away, and read its answer.

        What is sent must have the same effect however often it comes.

        Args:
            path: with its query.
            answer_type: a msgspec type.
            body: sent as JSON.
            lines: sent as they are, lines of JSON.
            max_bytes: of the answer, packed and unpacked.

        Raises:
            SearchRefused: it won't take this request, such as one about an index that isn't there.
            RequestError: it won't take any: the key or the URL is wrong.
            MillError: it took none for too long, or its answers make no sense.
        """
        content = lines if lines is not None else None if body is None else msgspec.json.encode(body)
        headers = _LINES if lines is not None else None
        if not self._waits:
            return self._exchanged(method, path, content, headers, answer_type, max_bytes)
        with self.waiting() as waiting:
            while True:
                try:
                    answer = self._exchanged(method, path, content, headers, answer_type, max_bytes)
                except SearchFailed as error:
                    waiting.wait(error)
                else:
                    self._reached = True
                    return answer

    def waiting(self) -> Waiting:
        """For a request, or what the server didn't take of one."""
        return Waiting(self.url, self._config.max_wait_s, reached=self._reached)

    def shown(self, said: str) -> str:
        """The server's words as a message may show them; see `sharding.models.bodies`."""
        for secret in self._secrets:
            said = without(said, secret)
        return shown(said, None)

    def _exchanged(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str] | None,
        answer_type: type[_Answer],
        max_bytes: int,
    ) -> _Answer:
        exchange = self._exchange(method, path, content, headers, max_bytes)
        body = asyncio.run_coroutine_threadsafe(exchange, self._loop).result()
        where = self._where(path)
        if any(repeats_key(body, secret) for secret in self._secrets):
            raise SearchFailed(f"{where}: the answer repeats the key that it was asked with")
        try:
            return msgspec.json.decode(body, type=answer_type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            text = text_of(body)
            said = self.shown(refusals.words_of(text))
            if refusals.is_page(text):
                raise RequestError(f"{where} answered with a page ('{said}'): check retrieval.server.url") from error
            raise SearchFailed(f"{where}: the answer makes no sense ({self.shown(str(error))}): {said}") from error

    async def _exchange(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str] | None, max_bytes: int
    ) -> bytes:
        import httpx

        where = self._where(path)
        through = f" through the proxy {self._proxy}" if self._proxy else ""
        timeout_s = self._config.timeout_s if self._waits else min(self._config.timeout_s, LOOK_S)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                if response.status_code not in (HTTPStatus.OK, HTTPStatus.CREATED):
                    raise self._error_of(where + through, response, text_of(await read_error(response)))
                return await read_body(response, max_bytes)
        except TimeoutError as error:
            raise SearchFailed(f"{where}: no answer within {timeout_s:g} s{through}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise SearchAway(f"{where}: no connection{through} ({self.shown(told(error))})") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, BodyUnreadable) as error:
            raise SearchFailed(f"{where}: {self.shown(told(error))}{through}") from error
        except BodyTooLong as error:
            raise MillError(f"{where}: {error}") from error

    def _error_of(self, where: str, response: httpx.Response, text: str) -> MillError:
        status = response.status_code
        words = self.shown(refusals.words_of(text)) or self.shown(response.reason_phrase)
        said = f"{where} answered {status}: {words}"
        if response.has_redirect_location:
            target = self.shown(refusals.target_of(response.headers["location"]))
            return RequestError(f"{said} (it leads to {target}: name that in retrieval.server.url)")
        if status in _OF_THE_KEY:
            return RequestError(f"{said} (it was given {self._given()})")
        if status in _AWAY:
            wait_s = retry_after_s(response.headers.get("retry-after"), response.headers.get("date"))
            return SearchAway(said, wait_s, answered=True)
        if status >= 500 or status in _PASSING:
            return SearchFailed(said)
        return SearchRefused(said, status)

    def _given(self) -> str:
        if self._config.api_key_env is not None:
            return f"the key in ${self._config.api_key_env}"
        if self._config.login_env is not None:
            return f"the login in ${self._config.login_env}"
        return "no key: retrieval.server.api_key_env or login_env names its variable"

    def _where(self, path: str) -> str:
        return self.url + path.partition("?")[0]


def look(config: SearchServerConfig) -> list[MillError]:
    """What keeps this process from asking a server: one that can't be reached, that is another or wants a key.

    One that answers that it is full, or not ready, is none: it is waited for.
    """
    try:
        with SearchClient(config, waits=False) as client:
            client.software()
    except SearchAway as error:
        return [] if error.answered else [error]
    except MillError as error:
        return [error]
    return []


def _secrets_of(config: SearchServerConfig) -> tuple[list[SecretStr], str]:
    """What no message may hold, first of all what is sent, and the scheme that it is sent by (RFC 9110, 11.6.2).

    Raises:
        RequestError: the variable isn't set, or holds no login.
    """
    if config.login_env is None:
        key = read_key(config.api_key_env)
        return ([key] if key is not None else []), "ApiKey"
    login = read_key(config.login_env, "login_env")
    assert login is not None
    name, colon, password = login.get_secret_value().partition(":")
    if not (name and colon and password):
        raise RequestError(f"login_env: {config.login_env} does not hold `user:password`")
    sent = base64.b64encode(login.get_secret_value().encode()).decode()
    return [SecretStr(sent), login, SecretStr(password)], "Basic"
