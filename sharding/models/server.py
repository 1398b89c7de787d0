"""One OpenAI-compatible server over HTTP: requests, answers, and what its errors mean.

`sharding.models.server_pool` puts several of these together; generation and scoring go through that. Keys come from an
environment variable, named in the config, and stay out of every message.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import logging
import os
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from pydantic import SecretStr

from sharding.errors import MillError, RequestError
from sharding.models.bodies import (
    MAX_ANSWER_BYTES,
    BodyTooLong,
    BodyUnreadable,
    message_of,
    read_body,
    read_error,
    repeats_key,
    shown,
)

if TYPE_CHECKING:
    import httpx

_CONNECT_S = 10.0
_KEEP_IDLE_S = 3.0  # below the 5 s after which uvicorn closes an idle connection, maybe just as it is used again

_BAD_REQUEST = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})

_Answer = TypeVar("_Answer")


class EndpointFailed(MillError):
    """A request had no answer this time; it may be sent again."""


class EndpointUnreachable(EndpointFailed):
    """There is no connection: the request wasn't sent."""


class EndpointFull(EndpointFailed):
    """The server has no room now.

    Attributes:
        retry_after_s: seconds for which it wants no requests, or None where it doesn't say.
    """

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EndpointRefused(MillError):
    """The server will never take this request."""


class EndpointClient:
    """Requests to one server, over connections that are kept and used again.

    Args:
        url: of the server, with or without "/v1".
        model: the name it is asked for, for messages.
        api_key_env: the environment variable that holds its key; None: it needs none.

    Raises:
        RequestError: the variable is not set.
        MillError: httpx is absent.
    """

    def __init__(self, url: str, *, model: str, api_key_env: str | None = None) -> None:
        self.url = base_url(url)
        self._model = model
        self._api_key_env = api_key_env
        self._key = read_key(api_key_env)
        self._client = _connections(self.url, self._key)
        self._proven = False  # has answered: an odd answer is then a fault of the moment and not of the config

    def __repr__(self) -> str:
        return f"EndpointClient({self.url!r})"

    async def get(self, path: str, answer_type: type[_Answer], *, timeout_s: float) -> _Answer:
        """Like `post`, without a body."""
        return await self._exchange("GET", path, None, answer_type, timeout_s, MAX_ANSWER_BYTES)

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        answer_type: type[_Answer],
        *,
        timeout_s: float,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> _Answer:
        """Send a request and read its answer.

        Args:
            answer_type: a msgspec type; an answer that doesn't fit it is a failure.
            timeout_s: for the whole of it.
            max_bytes: of the answer; a longer one is refused, since it would be as long the next time.

        Raises:
            EndpointFailed: no answer this time.
            EndpointRefused: the server won't take this request, or answers it beyond measure.
            RequestError: it won't take any: the key, the model or the URL is wrong.
        """
        answer = await self._exchange("POST", path, msgspec.json.encode(body), answer_type, timeout_s, max_bytes)
        self._proven = True
        return answer

    async def close(self) -> None:
        """End the connections. Safe to call twice."""
        await self._client.aclose()

    async def _exchange(
        self,
        method: str,
        path: str,
        content: bytes | None,
        answer_type: type[_Answer],
        timeout_s: float,
        max_bytes: int,
    ) -> _Answer:
        import httpx

        where = self.url + path
        try:
            async with asyncio.timeout(timeout_s), self._client.stream(method, where, content=content) as response:
                if response.status_code != HTTPStatus.OK:
                    raise self._error_of(where, response, await read_error(response))
                body = await read_body(response, max_bytes)
        except TimeoutError as error:
            raise EndpointFailed(f"{where}: no answer within {timeout_s:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise EndpointUnreachable(f"{where}: no connection ({self.shown(_said(error))})") from error
        except (httpx.HTTPError, BodyUnreadable) as error:
            raise EndpointFailed(f"{where}: {self.shown(_said(error))}") from error
        except BodyTooLong as error:
            raise EndpointRefused(f"{where}: {error}") from error
        if repeats_key(body, self._key):
            raise EndpointFailed(f"{where}: the answer repeats the key that it was asked with")
        try:
            return msgspec.json.decode(body, type=answer_type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EndpointFailed(f"{where}: the answer makes no sense: {self.shown(str(error))}") from error

    def _error_of(self, where: str, response: httpx.Response, body: bytes) -> MillError:
        status = response.status_code
        said = f"{where} answered {status}: {self.shown(message_of(body)) or self.shown(response.reason_phrase)}"
        wait_s = retry_after_s(response.headers.get("retry-after"))
        if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and wait_s is not None):
            return EndpointFull(said, wait_s)
        if status in _BAD_REQUEST:
            return EndpointRefused(said)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            key = f"the key in ${self._api_key_env}" if self._api_key_env else "no key: api_key_env names its variable"
            return RequestError(f"{said} (it was given {key})")
        if status < 500 and status not in _PASSING and not self._proven:
            return RequestError(f"{said} (asked for model {self._model!r}: check the URL and the name it is served by)")
        return EndpointFailed(said)

    def shown(self, said: str) -> str:
        """A server's words as a message may show them; see `sharding.models.bodies`."""
        return shown(said, self._key)


def check_urls(urls: Sequence[str]) -> None:
    """Refuses what is no base URL of a server, for the validators of config sections.

    Raises:
        ValueError: names the URL and what is wrong with it, but no password.
    """
    for url in urls:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                f"urls: the one at {parts.hostname} holds a password, query or fragment; leave it out, put the key "
                "into an environment variable and name that in api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"urls: {url!r} is no URL of a server, such as http://localhost:8000")
    if len(set(map(base_url, urls))) < len(urls):
        raise ValueError("urls: one of them is there twice")


def base_url(url: str) -> str:
    """A URL without the "/v1" that paths begin with."""
    return url.rstrip("/").removesuffix("/v1")


def read_key(api_key_env: str | None) -> SecretStr | None:
    """The key in an environment variable, masked wherever it is shown.

    Raises:
        RequestError: the variable is not set, or what it holds can't be a key.
    """
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise RequestError(f"api_key_env: the environment variable {api_key_env} is not set in the process that asks")
    if not (key.isascii() and key.isprintable()):
        raise RequestError(f"api_key_env: {api_key_env} holds characters that no key can have")
    return SecretStr(key)


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None where it is neither."""
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


def _connections(url: str, key: SecretStr | None) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError as error:
        raise MillError("endpoints need httpx; install it with: pip install 'thoughtmill[endpoint]'") from error
    for name in ("httpx", "httpcore"):  # a line per request would bury the log
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    return httpx.AsyncClient(
        headers=headers,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_IDLE_S),
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        verify=url.startswith("https:"),  # certificates take long to load
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
