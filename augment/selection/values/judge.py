"""The value that a judge gives: a grade from 0 to 10, thought about before; beside it the gain that it is checked by.

The grades come with the trial: `augment.selection.grading` has asked for them. A judge has not seen the text that
follows, so a gain over all of it is held out from its choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.values.gain import ContinuationGain
from augment.selection.values.protocol import Trial, Valuation
from sharding.config import STRICT

UNREADABLE = "no_verdict"
"""Why a trace has no value: the judge's answers could not be read, or failed."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JudgeConfig:
    """Who judges traces, for the values judge and gain_and_judge."""

    model: str = Field(min_length=1, description="Name of an entry of `models`.")
    prompt: str | None = Field(
        default=None, min_length=1, description="Prompt template with {thought}; null: judge, or match where pairwise."
    )
    max_tokens: int = Field(default=1024, ge=16, description="Cap on one verdict.")
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="Of a verdict; one that can't be read is asked again."
    )
    pairwise: bool = Field(
        default=False,
        description="Let the traces of a segment meet two by two, each pair in both orders, instead of grading each.",
    )
    min_grade: float = Field(default=5.0, ge=0, le=10, description="For gain_and_judge: lower grades are rejected.")

    @property
    def prompt_name(self) -> str:
        """The prompt in use."""
        return self.prompt or ("match" if self.pairwise else "judge")


class JudgedGain(ContinuationGain):
    """The judge's grade, with the gain of `ContinuationGain` beside it; no value where there is no verdict."""

    chooses_by_gain = False

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        grades = trial.grades or (None,) * len(trial.traces)
        return [
            self._graded(valuation, grade) for valuation, grade in zip(super().valuations(trial), grades, strict=True)
        ]

    def _graded(self, valuation: Valuation, grade: float | None) -> Valuation:
        net = None
        if valuation.gain_nats is not None:
            net = round(valuation.gain_nats - (valuation.control_nats or 0.0), 3)
        return replace(valuation, value=grade, heldout_nats=net, unvalued="" if grade is not None else UNREADABLE)
