"""One OpenAI-compatible server over HTTP: requests, answers, and what its errors mean.

`sharding.models.server_pool` puts several of these together; generation and scoring go through that. How a server is
reached is in `connections`, how its bodies are read in `bodies`, what its refusals mean in `refusals`. Keys come from
an environment variable, named in the config, and stay out of every message.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
from collections.abc import Collection
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sharding.errors import MillError, RequestError
from sharding.models import refusals
from sharding.models.bodies import (
    MAX_ANSWER_BYTES,
    BodyTooLong,
    BodyUnreadable,
    read_body,
    read_error,
    repeats_key,
    shown,
    text_of,
)
from sharding.models.connections import base_url, new_client, read_key

if TYPE_CHECKING:
    import httpx

BELIEVABLE_S = 30 * 86400.0
"""A server that wants no requests for longer doesn't mean it: its Retry-After says nothing."""

_BAD_REQUEST = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})
_OF_THE_KEY = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PAYMENT_REQUIRED})

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


class EndpointLoading(EndpointFull):
    """The server, or what is behind it, says that it is not ready: it loads its model, or is started again."""


class EndpointRefused(MillError):
    """The server will never take this request.

    Attributes:
        unknown_fields: those that it names as unknown to it; none where it has taken requests before.
    """

    def __init__(self, message: str, unknown_fields: Collection[str] = ()) -> None:
        super().__init__(message)
        self.unknown_fields = tuple(unknown_fields)


class EndpointClient:
    """Requests to one server, over connections that are kept and used again.

    Args:
        url: of the server, with or without "/v1".
        model: the name it is asked for, for messages.
        api_key_env: the environment variable that holds its key; None: it needs none.

    Raises:
        RequestError: the variable is not set, or the environment names a proxy or certificates that can't be used.
        MillError: httpx is absent.
    """

    def __init__(self, url: str, *, model: str, api_key_env: str | None = None) -> None:
        self.url = base_url(url)
        self._model = model
        self._api_key_env = api_key_env
        self._key = read_key(api_key_env)
        self._client, self._proxy = new_client(self.url, self._key)
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
        content, sent = msgspec.json.encode(body), tuple(body)
        answer = await self._exchange("POST", path, content, answer_type, timeout_s, max_bytes, sent)
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
        sent: Collection[str] = (),
    ) -> _Answer:
        import httpx

        where = self.url + path
        through = f" through the proxy {self._proxy}" if self._proxy else ""
        try:
            async with asyncio.timeout(timeout_s), self._client.stream(method, where, content=content) as response:
                if response.status_code != HTTPStatus.OK:
                    raise self._error_of(where, response, text_of(await read_error(response)), sent)
                body = await read_body(response, max_bytes)
        except TimeoutError as error:
            raise EndpointFailed(f"{where}: no answer within {timeout_s:g} s{through}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise EndpointUnreachable(f"{where}: no connection{through} ({self.shown(told(error))})") from error
        except httpx.ProxyError as error:
            if str(error)[:1] == "4" and not self._proven:
                raise self._refused_by_proxy(f"{where}: {self.shown(str(error))}") from error
            raise EndpointUnreachable(f"{where}: no connection{through} ({self.shown(told(error))})") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, BodyUnreadable) as error:  # also of a redirection
            raise EndpointFailed(f"{where}: {self.shown(told(error))}{through}") from error
        except BodyTooLong as error:
            raise EndpointRefused(f"{where}: {error}") from error
        wait_s = _wait_s(response)
        try:
            answer = msgspec.json.decode(body, type=answer_type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            own = _own_fields(answer_type) if method == "POST" else ()
            raise self._no_answer(where, text_of(body), own, wait_s, error) from error
        if body.count(b'"error"') and (failed := self._error_inside(where, body.decode(), wait_s)):
            raise failed  # an answer beside it is a part of one
        if repeats_key(body, self._key):
            raise EndpointFailed(f"{where}: the answer repeats the key that it was asked with")
        return answer

    def _no_answer(
        self, where: str, text: str, own: Collection[str], wait_s: float | None, error: Exception
    ) -> MillError:
        """What an answer is that has the status of a good one and isn't."""
        if failed := self._error_inside(where, text, wait_s):
            return failed
        wrong = refusals.what_it_is(text, own)
        if self._proven or wrong is None:
            said = self.shown(refusals.words_of(text))
            return EndpointFailed(f"{where}: the answer makes no sense ({self.shown(str(error))}): {said}")
        return RequestError(
            f"{where} answered {self.shown(wrong)}, and no server of OpenAI's API does: check the URL, and whether "
            "something that wants a login is in between"
        )

    def _error_inside(self, where: str, text: str, wait_s: float | None) -> MillError | None:
        """The error that an answer with the status of a good one holds, if any."""
        inside = refusals.error_inside(text)
        if inside is None:
            return None
        status, words = inside
        said = f"{where} answered 200 with an error: {self.shown(words)}"
        return EndpointFailed(said) if status is None else self._by_status(status, said, text, wait_s)

    def _error_of(self, where: str, response: httpx.Response, text: str, sent: Collection[str]) -> MillError:
        status = response.status_code
        through = f", through the proxy {self._proxy}," if self._proxy else ""
        words = self.shown(refusals.words_of(text)) or self.shown(response.reason_phrase)
        said = f"{where}{through} answered {status}: {words}"
        if response.has_redirect_location:
            said += f" (it leads to {self.shown(refusals.target_of(response.headers['location']))}: name that in urls)"
        if status == HTTPStatus.BAD_GATEWAY and not sent:  # a look at a gateway, and nothing is behind it yet
            return EndpointLoading(said, None)
        return self._by_status(status, said, text, _wait_s(response), sent)

    def _by_status(
        self, status: int, said: str, text: str, wait_s: float | None, sent: Collection[str] = ()
    ) -> MillError:
        """What a status means, of an answer that says `text` and wants no requests for `wait_s`."""
        if status == HTTPStatus.SERVICE_UNAVAILABLE and wait_s is None:
            return EndpointLoading(said, None)
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            return EndpointFull(said, wait_s)
        if status in _BAD_REQUEST:
            return EndpointRefused(said, () if self._proven else refusals.unknown_fields(text, sent))
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return self._refused_by_proxy(said)
        if status in _OF_THE_KEY:
            if refusals.is_page(text) or (self._proxy and not refusals.is_json(text)):
                return self._refused_by_proxy(said)
            key = f"the key in ${self._api_key_env}" if self._api_key_env else "no key: api_key_env names its variable"
            return RequestError(f"{said} (it was given {key})")
        if status < 500 and status not in _PASSING and not self._proven:
            return RequestError(f"{said} (asked for model {self._model!r}: check the URL and the name it is served by)")
        return EndpointFailed(said)

    def _refused_by_proxy(self, said: str) -> RequestError:
        who = f"the proxy {self._proxy}" if self._proxy else "a proxy or login page before the server"
        way_out = (
            "name the server's host in NO_PROXY, or have the proxy let it through"
            if self._proxy
            else "ask where that is kept, or name an address behind it"
        )
        return RequestError(f"{said} (by the look of it from {who}, not about the key: {way_out})")

    def shown(self, said: str) -> str:
        """A server's words as a message may show them; see `sharding.models.bodies`."""
        return shown(said, self._key)


def _wait_s(response: httpx.Response) -> float | None:
    return retry_after_s(response.headers.get("retry-after"), response.headers.get("date"))


def retry_after_s(header: str | None, date: str | None = None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None where nobody can mean it.

    Args:
        date: the Date header of the same answer: a date is one by the server's clock, which may be wrong.
    """
    text = (header or "").strip()
    try:
        if text.isdecimal():
            seconds = float(text)
        else:
            seconds = max(0.0, (_date(text) - _said_at(date)).total_seconds())
    except (ValueError, OverflowError, TypeError):
        return None
    return seconds if seconds <= BELIEVABLE_S else None


def _date(text: str) -> datetime.datetime:
    at = email.utils.parsedate_to_datetime(text)
    return at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)


def _said_at(date: str | None) -> datetime.datetime:
    """When an answer was made, by the clock of who made it; now, where it doesn't say so."""
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        return _date(date or "")
    return datetime.datetime.now(datetime.UTC)


def _own_fields(answer_type: type) -> list[str]:
    """Those that an answer is known by: an odd generation fails alone, and what has none of them isn't one."""
    fields = msgspec.structs.fields(answer_type) if issubclass(answer_type, msgspec.Struct) else ()
    return [field.encode_name for field in fields if field.required]


def told(error: Exception) -> str:
    """An error by its kind, and by its words where it has any."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
