"""The `budget.stop_if` section: how far what is generated may be from what a pilot promised before a run stops."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StopConfig:
    """Stop a run before more is spent, where a tier's traces are off from what the pilot promised, beyond chance."""

    length_off_by: float | None = Field(
        default=None,
        ge=0,
        description="Stop where traces are longer or shorter by more than this share of the promised tokens; null: "
        "never.",
    )
    cut_off_by: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Stop where the share of traces that are cut at their cap is off by more than this; null: never.",
    )
    rejected_off_by: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Stop where the share of traces that a gate rejects is off by more than this; null: never.",
    )

    @model_validator(mode="after")
    def _stops_for_something(self) -> StopConfig:
        if self.length_off_by is None and self.cut_off_by is None and self.rejected_off_by is None:
            raise ValueError(
                "stop_if names nothing to stop for: set length_off_by, cut_off_by or rejected_off_by, or leave it out"
            )
        return self
