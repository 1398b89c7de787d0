"""The gate against traces that were cut: a corpus of them teaches to stop mid-sentence."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.subject import Subject
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UnclosedConfig:
    """The gate against traces that were cut."""

    enabled: bool = Field(default=True, description="Whether the gate is applied.")


class UnclosedGate:
    """Objects to what neither the model ended nor a closing call."""

    name = "unclosed"

    def objects(self, subject: Subject) -> bool:
        return subject.trace.closed == "cut"
