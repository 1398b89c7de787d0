"""The `select` section of the config: which candidates are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from augment.selection.alike.diversity import DiversityConfig
from augment.selection.alike.repeats import RepeatsConfig
from augment.selection.benchmarks.index import DecontaminationConfig
from augment.selection.gates import GatesConfig
from augment.selection.trimming import TrimConfig
from augment.selection.values import BUILT_IN, JUDGED
from augment.selection.values.judge import JudgeConfig
from augment.selection.values.protocol import GainConfig
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectConfig:
    """Which candidates are kept."""

    value: str | None = Field(
        default=None,
        min_length=1,
        description=f"What candidates are chosen by: none, {', '.join(BUILT_IN)}, or your own as file.py:Class; null: "
        "continuation_gain where there is a scorer to ask, also of tiers with one sample, whose worth it tells.",
    )
    keep: Literal["first", "best", "best_above", "sample", "all"] = Field(
        default="best",
        description="Of the candidates that pass the gates: the first; the best (without a value the first); the best "
        "if it has a value of at least min_value; one drawn in proportion to exp(value / sample_temperature) (without "
        "a value the first); or all.",
    )
    min_value: float = Field(
        default=0.0,
        description="For keep best_above, in the value's unit (nats for gains), beyond chance; with no other keep.",
    )
    sample_temperature: float = Field(default=1.0, gt=0, description="For keep sample, in the value's unit.")
    seed: int = Field(default=0, ge=0, description="Of keep sample.")
    shuffle: bool = Field(
        default=False,
        description="Put each kept trace in the place of one of another document, of the same tier and about as long: "
        "a control arm, not for training.",
    )
    gain: GainConfig = Field(default_factory=GainConfig, description="How values that are gains are measured.")
    judge: JudgeConfig | None = Field(
        default=None, description="Who judges traces, for the values judge and gain_and_judge."
    )
    trim: TrimConfig | None = Field(
        default=None, description="End kept traces where they stop to gain; null: they stay as they are."
    )
    min_kept_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of the segments thought about that should keep a thought: below it run and pilot end with a "
        "warning, and where none does, with an error; 0: neither.",
    )
    gates: GatesConfig = Field(default_factory=GatesConfig, description="Reasons to reject a candidate.")
    repeats: RepeatsConfig | None = Field(
        default=None,
        description="How many traces of one shape, and near-copies, the corpus may have; null: any number.",
    )
    diversity: DiversityConfig = Field(
        default_factory=DiversityConfig, description="When kept thoughts are so much alike that a run says so."
    )
    decontaminate: DecontaminationConfig | None = Field(
        default=None, description="Benchmarks that documents and traces must not overlap with; null: not looked at."
    )

    @property
    def value_name(self) -> str:
        """The value in use where there is one."""
        return self.value or "continuation_gain"

    def values_traces(self, has_scorer: bool) -> bool:
        """Whether traces are valued: unless told otherwise, wherever there is a scorer to ask."""
        return self.value != "none" and (has_scorer or self.value is not None or self.keep == "best_above")

    @model_validator(mode="after")
    def _value_is_there(self) -> SelectConfig:
        if self.value not in (None, "none", *BUILT_IN) and ":" not in str(self.value):
            raise ValueError(
                f"value: {self.value!r} is none of none, {', '.join(sorted(BUILT_IN))}; one of your own is named as "
                '"file.py:Class" or "module:Class"'
            )
        if (self.value in JUDGED) != (self.judge is not None):
            raise ValueError(f"judge: goes with value {' or '.join(JUDGED)}, and value is {self.value}")
        if self.judge is not None and self.judge.pairwise and self.value != "judge":
            raise ValueError("judge.pairwise: gives no grade to reject by; it goes with value: judge")
        if self.trim is not None and self.value not in (None, "continuation_gain", *JUDGED):
            raise ValueError(f"trim: goes by the gain on what follows, and value is {self.value}")
        if self.min_value and self.keep != "best_above":
            raise ValueError(
                f"min_value: {self.min_value:g} is looked at by keep: best_above alone, and keep is {self.keep}"
            )
        if self.value == "none" and self.keep in ("best_above", "sample"):
            raise ValueError(f"keep {self.keep} needs a value; value is none")
        return self
