"""Words: how gates, values and decontamination see a text.

In scripts that put no space between words, every character is one. Punctuation and markup are none.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17d3"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese characters
    "\uac00-\ud7af"  # Korean, which has spaces, but between phrases
)
"""Characters that are words by themselves, as ranges of a character class."""

_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0951-\u0963\u0980-\u0dff"
"""Vowel signs and accents, which Python's \\w leaves out, of Latin, Hebrew, Arabic and Indic scripts."""

WORD = re.compile(rf"[^\W{UNSPACED}]++(?:[{_MARKS}]++[^\W{UNSPACED}]*+)*+|[{UNSPACED}]")
"""A word, in a text as it is; for its positions. Possessive, so that a word of a megabyte leaves no way back."""

UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")

MAX_MARKS = 30
"""Of the marks on one letter so many count, as in Unicode's stream-safe text: to order n of them takes n² steps."""


def _ranges(codes: Iterable[int]) -> str:
    """Characters as ranges of a character class: beyond U+FFFF a class is gone through item by item."""
    found = []
    for _, group in itertools.groupby(enumerate(codes), lambda place: place[1] - place[0]):
        of_range = [code for _, code in group]
        found.append(f"{re.escape(chr(of_range[0]))}-{re.escape(chr(of_range[-1]))}")
    return "".join(found)


_ORDERED_CODES = [code for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code))]
_ORDERED = _ranges(_ORDERED_CODES)
_MAY_BE_ORDERED = re.compile(f"[{_ranges(code for code in _ORDERED_CODES if code < 0x10000)}\U00010000-\U0001efff]")
_TOO_MANY_MARKS = re.compile(rf"([{_ORDERED}]{{{MAX_MARKS}}})[{_ORDERED}]++")
_ASCII_WORD = re.compile("[a-z0-9]+")
_ASCII_WORDS, _WORDS = re.compile(r"\w+", re.ASCII), re.compile(r"\w+")
_UNSPACED_OR_MARK = re.compile(f"[{UNSPACED}{_MARKS}]")


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: case, width and composition of characters make no difference.

    Underscores, which may be emphasis, are no part of them either.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.casefold())
    marked = _TOO_MANY_MARKS.sub(r"\1", text) if _MAY_BE_ORDERED.search(text) else text
    return _words_in(unicodedata.normalize("NFKC", marked).casefold().replace("_", " "))


def words_as_they_are(text: str) -> list[str]:
    """The words of a text as it has them, underscores and all."""
    return _words_in(text)


def _words_in(text: str) -> list[str]:
    """All of `WORD` in a text; where it has none of the characters that make a difference, faster."""
    if text.isascii():
        return _ASCII_WORDS.findall(text)
    return (WORD if _UNSPACED_OR_MARK.search(text) else _WORDS).findall(text)
