"""Bodies of a server's answers: read and unpacked up to a limit, and told in messages so that they do no harm.

Under `sharding.models.server`. A server may be broken, or somebody else's: what it sends has no more bytes than a
limit, whatever it says of them, and what is shown of it steers no terminal and holds no key.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from pydantic import SecretStr

from sharding.errors import MillError

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 64 << 20
"""Of an answer, unpacked, where the request doesn't tell how long it may be."""

MAX_ERROR_BYTES = 64 << 10
"""Of an error that is looked at."""

_MESSAGE_CHARACTERS = 500

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_PACKED_BY = ("gzip", "x-gzip", "deflate")

_PROVEN_SECRET_CHARACTERS = 12
"""A shorter key, such as "EMPTY" or "none", is a word that an answer may hold by chance."""

_ESCAPED = re.compile(r"\\(?:u00([0-7][0-9a-fA-F])|([/\"\\]))")
"""What keys consist of as JSON may have it: some servers write every "/" or "+" so."""


class BodyTooLong(MillError):
    """The body has more bytes than it may have."""


class BodyUnreadable(MillError):
    """The body can't be unpacked."""


class Body(bytes):
    """A body that tracebacks with their variables don't show: a server may repeat the key."""

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


async def read_body(response: httpx.Response, max_bytes: int) -> Body:
    """The body of an answer whose headers have come, unpacked.

    Nothing but gzip and deflate is unpacked, and that only because proxies pack unasked: `identity` is asked for.

    Args:
        max_bytes: of the body, packed and unpacked.

    Raises:
        BodyTooLong: it is longer.
        BodyUnreadable: it is packed in another way, or wrongly.
        httpx.HTTPError: it doesn't come.
    """
    body = await _first_bytes(response, max_bytes + 1)
    if len(body) > max_bytes:
        raise BodyTooLong(f"the answer has more than {max_bytes:,} bytes")
    return body


async def read_error(response: httpx.Response) -> Body:
    """As much of an error's body as is looked at; empty where it can't be unpacked: its status says enough."""
    try:
        return await _first_bytes(response, MAX_ERROR_BYTES)
    except BodyUnreadable:
        return Body()


async def _first_bytes(response: httpx.Response, num_bytes: int) -> Body:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", *_PACKED_BY):
        raise BodyUnreadable(f"the answer is packed by {encoding!r}, which wasn't asked for")
    unpack = zlib.decompressobj(_GZIP_OR_ZLIB) if encoding in _PACKED_BY else None
    body, read = bytearray(), 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        try:
            body += chunk if unpack is None else unpack.decompress(chunk, num_bytes - len(body))
        except zlib.error as error:
            raise BodyUnreadable(f"the answer isn't packed by {encoding} as it says: {error}") from error
        if len(body) >= num_bytes or read >= num_bytes:
            break
    return Body(body[:num_bytes])


def repeats_key(body: bytes, key: SecretStr | None) -> bool:
    """Whether a body holds the key, so that it must not be kept."""
    secret = key.get_secret_value() if key is not None else ""
    return len(secret) >= _PROVEN_SECRET_CHARACTERS and secret in _unescaped(body.decode("latin-1"))


def _unescaped(text: str) -> str:
    """A text with the ASCII characters that JSON spells by escapes as they are."""
    return _ESCAPED.sub(lambda found: found[2] or chr(int(found[1], 16)), text) if "\\" in text else text


def text_of(body: bytes) -> str:
    """What is looked at of a body for its words. Its charset is never looked up: names of codecs are no charsets."""
    return body[:MAX_ERROR_BYTES].decode(errors="replace")


def without(text: str, key: SecretStr) -> str:
    """A text without the key, however JSON may spell it."""
    secret, plain = key.get_secret_value(), _unescaped(text)
    return (plain if secret in plain else text).replace(secret, "***")


def shown(text: str, key: SecretStr | None) -> str:
    """A server's words as a message may show them: on one line, short, nothing but what prints, without the key."""
    if key is not None:
        text = without(text, key)
    line = " ".join(text[: 8 * _MESSAGE_CHARACTERS].split())[:_MESSAGE_CHARACTERS]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
