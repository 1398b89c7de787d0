"""What is published or shown loses its passwords, keys and user names: in the card, Croissant, config.yaml, the report.

Works on values, before they become text: a URL is taken apart by its own rules, so that a password may hold whatever
quotes, slashes and brackets it likes. Where a text may be read in two ways, too much is taken out rather than too
little: nobody misses an "@" in a path, everybody a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_plus

import msgspec

if TYPE_CHECKING:
    from sharding.storage.manifest import Manifest

REDACTED = "REDACTED"

T = TypeVar("T")

_SCHEME = re.compile(r"[a-zA-Z][\w+.-]*://")
_IS_URL = re.compile(r"(\w+::)*[a-zA-Z][\w+.-]*://")
_CHAIN = re.compile(r"(::)(?=[a-zA-Z][\w+.-]*://)")
_OPTION = re.compile(r"(?P<name>-{0,2}[\w.-]+)=(?P<value>.+)", re.DOTALL)
_WORD_ENDS = re.compile(r"[^a-zA-Z0-9]+|(?<=[a-z])(?=[A-Z])")

_SECRET_PARTS = ("key", "token", "secret", "sig", "passw", "pwd", "credential", "auth", "bearer", "cookie", "jwt")
"""A parameter with one of these in its name is a secret."""

_SECRET_WORDS = {"pw", "pass", "sas", "code", "user", "username", "login", "session"}
_SECRET_KEYS = {"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "pw", "pwd", "pass"} | {
    *("credential", "credentials", "auth", "authorization", "bearer", "cookie"),
}
"""A key of a mapping with one of these words in it holds a secret, unless it names the environment variable of one."""


def without_secrets(tree: T) -> T:
    """JSON values with passwords, keys and user names taken out of all their texts."""
    return _clean(tree, secret=False)


def told(text: str) -> str:
    """A message without the passwords in its URLs. What else looks like an option is one that the message is about."""
    return "".join(_word(word) if "://" in word else word for word in re.split(r"(\s+)", text))


def published(stage: Manifest) -> Manifest:
    """A manifest as it may be told of in public."""
    clean = {name: without_secrets(getattr(stage, name)) for name in ("config", "inputs", "facts", "folder")}
    return msgspec.structs.replace(stage, **clean)


def _clean(tree: Any, *, secret: bool) -> Any:
    if isinstance(tree, str):
        return REDACTED if secret and tree else _text(tree)
    if isinstance(tree, dict):
        return {
            _text(str(key)): _clean(value, secret=secret or _is_secret_key(str(key))) for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_clean(value, secret=secret) for value in tree]
    return tree


def _is_secret_key(key: str) -> bool:
    words = [word.lower() for word in _WORD_ENDS.split(key) if word]
    return bool(words) and words[-1] != "env" and not _SECRET_KEYS.isdisjoint(words)


def _text(text: str) -> str:
    """A value that is a URL is one to its end; in other texts each word is looked at."""
    if _IS_URL.match(text):
        return "".join(_url(link) if _SCHEME.match(link) else link for link in _CHAIN.split(text))
    if "=" not in text and "://" not in text:
        return text
    return "".join(map(_word, re.split(r"(\s+)", text)))


def _word(word: str) -> str:
    if found := _SCHEME.search(word):
        before, url = word[: found.start()], word[found.start() :]
        return before + _text(url)
    option = _OPTION.fullmatch(word)
    return f"{option['name']}={REDACTED}" if option and _is_secret_key(option["name"]) else word


def _url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    named = _credentials_end(rest)
    place, mark, fragment = rest[named:].partition("#")
    path, question, query = place.partition("?")
    query, fragment = _parameters(query), _parameters(fragment)
    if fragment and scheme.lower() in ("http", "https"):
        fragment = REDACTED  # the whole of it may be a key, and no server sees it
    return f"{scheme}://{f'{REDACTED}@' if named else ''}{path}{question}{query}{mark}{fragment}"


def _credentials_end(rest: str) -> int:
    """How much of a URL behind its "://" may be user name and password, with the "@" behind them."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password may hold "/", "?", "#" and "@" as they are, and then it is longer than the authority.
    return (rest if ":" in authority else authority).rfind("@") + 1


def _parameters(query: str) -> str:
    pieces, hidden = [], False
    for piece in re.split(r"([&;])", query):
        name, equals, value = piece.partition("=")
        if equals:
            hidden = _is_secret_name(name)
            linked = "://" in unquote_plus(value)
            piece = f"{name}={REDACTED if hidden else _text(unquote_plus(value)) if linked else value}"
        elif hidden and piece not in ("&", ";"):
            piece = REDACTED  # a password with an "&" in it
        pieces.append(piece)
    return "".join(pieces)


def _is_secret_name(name: str) -> bool:
    name = unquote_plus(name)
    words = {word.lower() for word in _WORD_ENDS.split(name)}
    return any(part in name.lower() for part in _SECRET_PARTS) or not _SECRET_WORDS.isdisjoint(words)
