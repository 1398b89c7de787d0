"""The `retrieval` section: what passages are found in."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RetrievalConfig:
    """Where the passages come from that tiers with the context `retrieved` show."""

    corpus: str | None = Field(
        default=None,
        min_length=1,
        description="Output of another run whose scored documents are searched; null: this run's own. "
        "`difficulty.scorer: none` scores a collection without a model.",
    )
