"""Gates: reasons to reject a trace, each a small file with a name, a config and a check.

The select stage asks every gate about every candidate; the first that objects gives the candidate's first reason. To
add one, write a module with a config section and a `Gate`, and name both here.
"""

from __future__ import annotations

from typing import Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.language import LanguageConfig, LanguageGate
from augment.selection.gates.leakage import LeakageConfig, LeakageGate
from augment.selection.gates.loop import LoopConfig, LoopGate
from augment.selection.gates.refusal import RefusalConfig, RefusalGate
from augment.selection.gates.subject import Subject
from augment.selection.gates.too_short import TooShortConfig, TooShortGate
from augment.selection.gates.unclosed import UnclosedConfig, UnclosedGate
from augment.selection.gates.verbatim import VerbatimConfig, VerbatimGate
from sharding.config import STRICT

__all__ = ["Gate", "GatesConfig", "Subject", "make_gates"]


class Gate(Protocol):
    """One reason to reject a trace.

    Attributes:
        name: the reason, as counts, the rejected parts and the card name it.
    """

    @property
    def name(self) -> str: ...

    def objects(self, subject: Subject) -> bool:
        """Whether the trace is to be rejected; depends on the subject alone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GatesConfig:
    """Which traces are rejected. Every gate has `enabled` and its own thresholds."""

    unclosed: UnclosedConfig = Field(default_factory=UnclosedConfig, description="Traces that were cut.")
    too_short: TooShortConfig = Field(default_factory=TooShortConfig, description="Traces that say nothing.")
    refusal: RefusalConfig = Field(default_factory=RefusalConfig, description="Refusals to think.")
    leakage: LeakageConfig = Field(default_factory=LeakageConfig, description="Traces that speak of the prompt.")
    loop: LoopConfig = Field(default_factory=LoopConfig, description="Traces that repeat themselves.")
    verbatim: VerbatimConfig = Field(default_factory=VerbatimConfig, description="Traces that copy the segment.")
    language: LanguageConfig = Field(
        default_factory=LanguageConfig, description="Traces in another language than the segment's."
    )


def make_gates(config: GatesConfig) -> tuple[Gate, ...]:
    """The gates that are enabled, in the order in which they give reasons: what is cut or empty first.

    Raises:
        RequestError: a gate's config names what there is not, such as an unknown language.
    """
    gates: list[Gate] = []
    if config.unclosed.enabled:
        gates.append(UnclosedGate())
    if config.too_short.enabled:
        gates.append(TooShortGate(config.too_short))
    if config.refusal.enabled:
        gates.append(RefusalGate(config.refusal))
    if config.leakage.enabled:
        gates.append(LeakageGate(config.leakage))
    if config.loop.enabled:
        gates.append(LoopGate(config.loop))
    if config.verbatim.enabled:
        gates.append(VerbatimGate(config.verbatim))
    if config.language.enabled:
        gates.append(LanguageGate(config.language))
    return tuple(gates)
