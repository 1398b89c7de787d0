"""Text of a corpus made harmless to look at: it may hold what steers a terminal or turns a page's direction."""

from __future__ import annotations

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "\u2421"}
_DIRECTIONS = (*range(0x80, 0xA0), 0x061C, *range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = _CONTROLS | {code: f"\u27e8U+{code:04X}\u27e9" for code in (*_DIRECTIONS, 0xFEFF)}


def visible(text: str) -> str:
    """The text with control and direction characters spelled out; ends of lines and tabs stay."""
    return text.translate(_VISIBLE).encode("utf-8", "backslashreplace").decode()
