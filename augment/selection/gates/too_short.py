"""The gate against traces that say next to nothing, empty ones first."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TooShort(Gate):
    """Traces that say next to nothing.

    Measured in bytes of UTF-8 of letters and digits: that treats a script of few, rich characters like one of many.
    """

    min_bytes: int = Field(default=64, gt=0, description="Least size of letters and digits, bytes of UTF-8.")

    def objects(self, subject: Subject) -> bool:
        return len("".join(filter(str.isalnum, subject.trace.text)).encode()) < self.min_bytes
