"""The gate against traces with characters that nobody writes and nobody sees, or that show a text as another.

Control characters, which steer terminals; the overrides and isolates of writing direction, behind which a text reads
otherwise than it is stored (arXiv 2111.00169); tags, which hide words in plain sight; and U+FFFD, which stands for
bytes that were lost. What the segment has too is no sign: documents quote terminals, and have losses of their own.
"""

from __future__ import annotations

import re

from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from sharding.config import STRICT

_UNPRINTABLE = re.compile(
    "["
    "\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f"  # all but tab, line ends and next line
    "\\u202a-\\u202e\\u2066-\\u2069\\u206a-\\u206f"
    "\\ufff9-\\uffff\\U000e0000-\\U000e007f"
    "]"
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Unprintable(Gate):
    """Traces with control characters, overrides of writing direction or lost bytes that the segment doesn't have."""

    def objects(self, subject: Subject) -> bool:
        found = set(_UNPRINTABLE.findall(subject.trace.text))
        return bool(found) and not found <= set(subject.source_text)
