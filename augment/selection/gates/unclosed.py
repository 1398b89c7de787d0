"""The gate against traces that were cut: a corpus of them teaches to stop mid-sentence."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Unclosed(Gate):
    """Traces that were cut: neither the model ended them nor a closing call."""

    def objects(self, subject: Subject) -> bool:
        return subject.trace.closed == "cut"
