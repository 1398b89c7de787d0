"""What a trace says itself: its text without what it quotes. The gates that look for sentences ask for it.

Linear in the text: a quotation ends at its mark, at the end of the line, after 300 characters or where another begins.
"""

from __future__ import annotations

import re

_QUOTED = re.compile(
    r'"[^"\n]{1,300}"|“[^“”\n]{1,300}”|„[^„“”\n]{1,300}[“”]|«[^«»\n]{1,300}»|「[^「」\n]{1,300}」|『[^『』\n]{1,300}』'
    r"|'(?<!\w')(?:[^'\n]|(?<=\w)'(?=\w)){1,300}'(?!\w)|>(?<=^>).*$",
    re.MULTILINE,
)
"""Each form begins with a character of its own, which `re` looks for: what stands before it is looked at behind it."""

_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,300}`", re.DOTALL)


def without_quotations(text: str) -> str:
    """The text with every quotation, and all code, as empty quotation marks; quoted lines too."""
    return _QUOTED.sub('""', without_code(text).replace("‘", "'").replace("’", "'"))


def without_code(text: str) -> str:
    """The text with code, fenced or between backticks, as empty quotation marks."""
    return _CODE.sub('""', text)


def plain(text: str) -> str:
    """Lower case, one apostrophe, and no more than one white space at a time, which is a line's end where one was."""
    lines = (" ".join(line.split()) for line in text.lower().replace("’", "'").splitlines())
    return "\n".join(filter(None, lines))
