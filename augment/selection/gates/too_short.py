"""The gate against traces that say next to nothing, empty ones first."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.subject import Subject
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TooShortConfig:
    """The gate against traces that say next to nothing."""

    enabled: bool = Field(default=True, description="Whether the gate is applied.")
    min_bytes: int = Field(default=64, gt=0, description="Least size of letters and digits, bytes of UTF-8.")


class TooShortGate:
    """Objects to traces with too little in them.

    Measured in bytes of UTF-8 of letters and digits: that treats a script of few, rich characters like one of many.
    """

    name = "too_short"

    def __init__(self, config: TooShortConfig) -> None:
        self._min_bytes = config.min_bytes

    def objects(self, subject: Subject) -> bool:
        return len("".join(filter(str.isalnum, subject.trace.text)).encode()) < self._min_bytes
