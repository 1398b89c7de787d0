"""What a server that doesn't do as asked means by it: words and pages read for a person, and the way out.

Beside `sharding.models.server`, which decides by them whether a request fails, waits, or ends the run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec

_LOOKED_AT = 4000
"""Characters of an answer that are looked at for its words: they are read by patterns, and a page may be long."""

_PAGE = re.compile(r"\s*(<!doctype html|<html|<head|<body|<\?xml|<!--)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
_UNSEEN = re.compile(r"<(script|style)\b.*?(</\1|$)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>?")

_NOT_KNOWN = re.compile(
    r"extra_forbidden|extra (inputs|fields)|(un|not )(recognized|recognised|known|expected|supported|permitted|allowed)"
    r"|(does not|doesn't|do not) (support|recognize|know|accept)|additional propert|invalid (field|argument|parameter)",
    re.IGNORECASE,
)
"""How servers say that they don't take a field: pydantic's, OpenAI's, JSON schema's, and whoever writes his own."""


def is_page(text: str) -> bool:
    """Whether an answer is a page for people."""
    return _PAGE.match(text[:_LOOKED_AT]) is not None


def words_of_page(text: str) -> str:
    """What a page says: its title, or else the words that it shows."""
    text = text[:_LOOKED_AT]
    title = _TITLE.search(text)
    return title[1] if title and title[1].strip() else _TAG.sub(" ", _UNSEEN.sub(" ", text))


def unknown_fields(said: str, sent: Collection[str]) -> list[str]:
    """The fields of a request that its refusal names as ones that the server doesn't know; none where it says less.

    Args:
        said: the whole answer.
        sent: the names of the fields that were sent.
    """
    said = said[:_LOOKED_AT]
    if not _NOT_KNOWN.search(said):
        return []
    return [name for name in sent if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", said)]


def words_of(text: str) -> str:
    """What an answer that is an error says, in whichever way."""
    return words_of_page(text) if is_page(text) else _words_in(_decoded(text), text)


def error_inside(text: str) -> tuple[int | None, str] | None:
    """The error that an answer without an error's status holds: its status, if it names one, and its words."""
    told = _decoded(text)
    if not isinstance(told, dict):
        return None
    choices = told.get("choices")
    in_choice = choices[0].get("error") if isinstance(choices, list) and choices and _is_map(choices[0]) else None
    error = told.get("error") or in_choice or (told if told.get("object") == "error" else None)
    if not error:
        return None
    code = error.get("code", error.get("status")) if _is_map(error) else None
    code = int(code) if isinstance(code, str) and code.isdecimal() and len(code) == 3 else code
    return (code if isinstance(code, int) and 400 <= code < 600 else None), _words_in(error, text)


def what_it_is(text: str, own: Collection[str]) -> str | None:
    """What an answer is that isn't one of OpenAI's API, in words; None where it may be one, cut short or odd.

    Args:
        own: fields by which a generation is known as one; none: what is served, which is the same at every look.
    """
    if is_page(text):
        return f"with a page ('{' '.join(words_of_page(text).split())}')"
    told = _decoded(text)
    if _is_map(told):
        names = ", ".join(f"'{name}'" for name in sorted(told)[:8])
        return None if any(name in told for name in own) else f"with the fields {names or 'of nothing'}"
    if own:
        return None
    if told is None:
        return None if not text.strip() or text.lstrip()[0] in "{[" else f"with the text '{text.strip()}'"
    return f"with '{text.strip()}'"


def target_of(location: str) -> str:
    """Where a redirection leads, without what a query may hold."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return "an address that is none"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def is_json(text: str) -> bool:
    """Whether an answer is one of a program."""
    return _decoded(text) is not None


def _decoded(text: str) -> Any:
    with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
        return msgspec.json.decode(text)
    return None


def _words_in(told: Any, text: str) -> str:
    """The words of what was decoded of a text, or the whole text."""
    for name in ("error", "message", "detail", "reason"):
        told = (told.get(name) or told) if _is_map(told) else told
    return told if isinstance(told, str) else text


def _is_map(told: Any) -> bool:
    return isinstance(told, Mapping)
