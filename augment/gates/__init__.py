"""Gates: reasons to reject a trace, each a small file with a name, a config and a check.

The select stage asks every gate about every candidate; the first that objects gives the candidate's first reason. To
add one, write a module with a config section and a `Gate`, and name both here.
"""

from __future__ import annotations

from typing import Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.gates.loop import LoopConfig, LoopGate
from augment.gates.too_short import TooShortConfig, TooShortGate
from augment.gates.unclosed import UnclosedConfig, UnclosedGate
from augment.thoughts import Trace
from sharding.config import STRICT

__all__ = ["Gate", "GatesConfig", "make_gates"]


class Gate(Protocol):
    """One reason to reject a trace.

    Attributes:
        name: the reason, as counts, the rejected parts and the card name it.
    """

    @property
    def name(self) -> str: ...

    def objects(self, trace: Trace) -> bool:
        """Whether the trace is to be rejected; depends on the trace alone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GatesConfig:
    """Which traces are rejected. Every gate has `enabled` and its own thresholds."""

    unclosed: UnclosedConfig = Field(default_factory=UnclosedConfig, description="Traces that were cut.")
    too_short: TooShortConfig = Field(default_factory=TooShortConfig, description="Traces that say nothing.")
    loop: LoopConfig = Field(default_factory=LoopConfig, description="Traces that repeat themselves.")


def make_gates(config: GatesConfig) -> tuple[Gate, ...]:
    """The gates that are enabled, in the order in which they give reasons."""
    gates: list[Gate] = []
    if config.unclosed.enabled:
        gates.append(UnclosedGate())
    if config.too_short.enabled:
        gates.append(TooShortGate(config.too_short))
    if config.loop.enabled:
        gates.append(LoopGate(config.loop))
    return tuple(gates)
