"""What each record adds to the counts of its stage. Pure; the stages map these over their collections.

Nats are added up as whole millionths, so that the order of addition never shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from difficulty.budget.allocation import Allocation, TierPlan
from difficulty.surprisal import Measure, token_difficulty_nats
from sharding import tally
from sharding.records.types import ContaminatedDocument, Quarantined, Request, ScoredDocument

MICRO = 1_000_000

NORMAL_90 = 1.645
"""Standard deviations on either side of the mean that hold 90% of a normal distribution."""


def document_counts(document: ScoredDocument, threshold_nats: float, measure: Measure) -> dict[str, int]:
    """What one scored document adds."""
    nats = token_difficulty_nats(document.surprisal_nats, document.entropy_nats, document.memory_nats, measure)
    tally.add(documents=1, segments=len(document.segment_starts), tokens=len(document.input_ids))
    of_source = {"documents": 1, "tokens": len(document.input_ids)} if document.source else {}
    return {
        **{f"source.{document.source}.{name}": count for name, count in of_source.items()},
        "documents": 1,
        "segments": len(document.segment_starts),
        "source_tokens": len(document.input_ids),
        "hard_tokens": int(np.count_nonzero(nats > np.float64(threshold_nats))),
        "surprisal_micronats": round(float(document.surprisal_nats.sum(dtype=np.float64)) * MICRO),
        "entropy_micronats": round(float(document.entropy_nats.sum(dtype=np.float64)) * MICRO),
        "difficulty_micronats": round(float(document.segment_difficulty_nats.sum()) * MICRO),
    }


def quarantine_counts(refused: Quarantined) -> dict[str, int]:
    """What one record adds that the score stage refused."""
    return {"quarantined": 1, f"quarantined.{refused.reason}": 1}


def request_counts(request: Request) -> dict[str, int]:
    """What one request adds."""
    return {
        "requests": 1,
        f"tier.{request.tier}.requests": 1,
        f"tier.{request.tier}.samples": request.samples,
    }


def contaminated_counts(document: ContaminatedDocument) -> dict[str, int]:
    """What one document adds that overlaps with benchmarks."""
    counts = {"documents_contaminated": 1, "source_tokens_contaminated": document.source_tokens}
    return counts | {f"contaminated.{benchmark}": 1 for benchmark in document.benchmarks}


def tier_facts(allocation: Allocation, counts: Mapping[str, int], num_segments: int) -> list[dict[str, Any]]:
    """What each tier was to get and got; the segments that made no request are those of the tier that skips."""
    facts = [
        {
            "name": tier.name,
            "segments": counts.get(f"tier.{tier.name}.requests", 0),
            "generations": counts.get(f"tier.{tier.name}.samples", 0),
            "planned_segments": tier.segments,
            "planned_tokens": tier.tokens,
            **({} if tier.gain_nats is None else {"planned_gain_nats": planned_gain(tier)}),
        }
        for tier in allocation.tiers
    ]
    for tier, fact in zip(allocation.tiers, facts, strict=True):
        if tier.tokens == 0 and tier.resolution == 0:
            fact["segments"] = num_segments - counts["requests"]
    return facts


def gain_facts(allocation: Allocation) -> dict[str, Any]:
    """What a plan by expected gain promises of all tiers and of the last unit of the budget; of other plans nothing."""
    if allocation.gain_nats is None:
        return {}
    return {
        "planned_gain_nats": planned_gain(*allocation.tiers),
        "marginal_gain_nats": allocation.marginal_nats,
    }


def planned_gain(*tiers: TierPlan) -> dict[str, float]:
    """The expected gain of tiers with a 90% interval, as wide as it is if what isn't known is the same of all."""
    value = sum(tier.gain_nats or 0.0 for tier in tiers)
    half = NORMAL_90 * sum(tier.gain_deviation_nats or 0.0 for tier in tiers)
    return {"value": value, "low": value - half, "high": value + half}
