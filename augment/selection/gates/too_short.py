"""The gate against traces that say next to nothing, empty ones first."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from sharding.config import STRICT

_AT_ONCE = 256
"""Characters that are looked at before the count is asked for: of a long trace the first will do."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TooShort(Gate):
    """Traces that say next to nothing.

    Measured in bytes of UTF-8 of letters and digits: that treats a script of few, rich characters like one of many.
    """

    min_bytes: int = Field(default=64, gt=0, description="Least size of letters and digits, bytes of UTF-8.")

    def objects(self, subject: Subject) -> bool:
        text, size_bytes = subject.trace.text, 0
        for begin in range(0, len(text), _AT_ONCE):
            size_bytes += len("".join(filter(str.isalnum, text[begin : begin + _AT_ONCE])).encode())
            if size_bytes >= self.min_bytes:
                return False
        return True
