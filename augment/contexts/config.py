"""The `retrieval` section: what passages are found in."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.search.config import SearchServerConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RetrievalConfig:
    """Where the passages come from that tiers with the context `retrieved` show."""

    corpus: str | None = Field(
        default=None,
        min_length=1,
        description="Output of another run whose scored documents are searched; null: this run's own. "
        "`difficulty.scorer: none` scores a collection without a model.",
    )
    server: SearchServerConfig | None = Field(
        default=None,
        description="An OpenSearch or Elasticsearch server that keeps the index, for corpora beyond one machine; null: "
        "it lies in the output, and is unpacked on every machine that asks it.",
    )
