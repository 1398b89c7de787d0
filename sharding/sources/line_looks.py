"""What lines look like by the first bytes of their file: JSON lines, or what is taken for them. Pure; see `looks`."""

from __future__ import annotations

import json
import re

from sharding.sources.looks import BYTE_ORDER_MARK, begins_utf8, kind_of

_DECODER = json.JSONDecoder(strict=False, parse_int=float)


def is_json_lines(head: bytes, *, whole: bool) -> bool:
    """Whether the first line is a JSON object of its own.

    Args:
        head: the first bytes.
        whole: whether they are all of the file.
    """
    line, end, _ = head.removeprefix(BYTE_ORDER_MARK).lstrip().partition(b"\n")
    if end or whole:
        return isinstance(_decoded(line), dict)
    return re.match(rb'\{\s*"', line) is not None  # a line longer than what is looked at


def looks_like(head: bytes) -> str | None:
    """What a file of JSON lines or of text looks like of which nothing became a document; None where nobody knows."""
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not head:
        return "an empty file"
    if not text:
        return "blank lines"
    if not text.strip(b"\0"):
        return "a file of zero bytes only"
    if kind := kind_of(head):
        return kind.what
    if is_json_array(head):
        return "one JSON array"
    if b"\r" in text.rstrip() and b"\n" not in text and begins_utf8(text):
        return "a file with CR line ends"
    line, more, _ = text.partition(b"\n")
    found, end = _first_value(line)
    if isinstance(found, dict) and end:
        return "JSON objects with something behind them on their lines"
    if isinstance(found, dict):
        return f"JSON lines with the fields {', '.join(map(repr, list(found)[:20])) or 'none'}"
    if text.startswith(b"{") and more and not end:
        return "JSON objects over several lines"
    if text.startswith(b"\x1e"):
        return "a JSON text sequence (RFC 7464)"
    if text.startswith(b"<"):
        return "markup"
    return None


def is_json_array(head: bytes) -> bool:
    """Whether a file that begins like this is one JSON array of objects, and not lines of JSON."""
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not re.match(rb"\[\s*[\{\]]", text):
        return False
    # What follows the first line tells an array over many lines from one bad line among good ones.
    second = text.partition(b"\n")[2].partition(b"\n")[0]
    return not isinstance(_decoded(second), dict)


def has_cr_line_ends(head: bytes) -> bool:
    """Whether lines end in a carriage return alone: to a reader of lines they are one."""
    return head.count(b"\r") > 1 and b"\n" not in head and begins_utf8(head)


def _decoded(line: bytes) -> object:
    found, rest = _first_value(line)
    return None if rest else found


def _first_value(line: bytes) -> tuple[object, str]:
    """The JSON value that a line begins with, as leniently as can be, and what is behind it; None where it is cut."""
    text = line.decode(errors="replace").strip()
    try:
        found, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return None, text[error.pos + 1 :]
    except (ValueError, RecursionError):
        return None, text
    return found, text[end:]
