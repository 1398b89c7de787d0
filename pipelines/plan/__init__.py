"""What a run will take, before it runs: `thoughtmill plan`. Read `make_plan` from top to bottom.

scored parts or a sample ─► evidence ─► forecast ─► a plan for people (show) or as JSON
                               └─► pilot ─► pilot.json ─┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from augment.selection.verdict import SEGMENTS_KEPT, shortfall
from difficulty.budget.steps import GainSteps
from pipelines.config import MillConfig
from pipelines.counts import planned_gain
from pipelines.joints import Choices, TierGains, goes_by_gain, holdback_of
from pipelines.plan import measured
from pipelines.plan.allocations import allocation_for
from pipelines.plan.cautions import cautions
from pipelines.plan.chance import estimate
from pipelines.plan.corpus import Evidence
from pipelines.plan.costs import contraction_costs, tier_costs, total
from pipelines.plan.evidence import gather
from pipelines.plan.forecast import Forecast, forecast, shard_bytes
from pipelines.plan.measured import Pilot
from pipelines.plan.prospect import look_ahead, not_scored
from sharding.errors import RequestError

__all__ = ["make_plan"]

SAMPLE_DOCUMENTS = 64
"""Documents looked at, unless the user says otherwise."""


def make_plan(
    config: MillConfig,
    *,
    sample_documents: int = SAMPLE_DOCUMENTS,
    accelerators: int = 1,
    pilot: int = 0,
    explore: bool = False,
    tries: int | None = None,
    beam_args: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The plan as JSON values; every estimate is {"value", "low", "high"} with a 90% interval, or None if not known.

    Args:
        config: the run.
        sample_documents: how many documents stand for the corpus where the whole isn't scored.
        accelerators: how many generate at the same time.
        pilot: how many segments to generate really and measure; 0: none.
        explore: the pilot tries every tier on segments of every kind, and learns what each gains where.
        tries: tiers that an exploring pilot tries on each segment, drawn at random; None: all.
        beam_args: Beam options for the pilot.
        say: is told what an exploring pilot will cost, before it is spent.

    Raises:
        RequestError: the budget can't be met, a pilot is asked for before the corpus is scored, or an exploring one
            can't measure what its tiers gain.
        MillError: the source can't be read, the scorer can't be loaded, or the pilot failed.
    """
    if explore and not pilot:
        raise RequestError("plan --explore: tell how many segments to try, as in --pilot 400 --explore")
    if tries is not None and not explore:
        raise RequestError("plan --tries: is for a pilot that tries tiers at random; add --explore")
    lacking = look_ahead(config, beam_args, is_pilot=pilot > 0)
    evidence = gather(config, max(sample_documents, pilot))
    if pilot and evidence.scored is None:
        raise not_scored()
    asked = config
    found: Pilot | None = None
    notes: list[str] = []
    if explore:
        found, notes = _explore(config, evidence, pilot, tries, beam_args, say)
    config, by_gain = _by_gain(config, evidence, beam_args)
    if pilot and not explore:
        from pipelines.plan.pilot import measure

        gains = by_gain[0] if by_gain is not None else None
        choices = Choices(allocation_for(config, evidence, by_gain), holdback_of(config), gains)
        found = measure(config, evidence, choices, pilot, beam_args)
    elif not pilot:
        found, notes = measured.read_pilot(asked, evidence.scored)
    made = forecast(config, evidence, found, by_gain)
    if pilot and found is not None and evidence.scored is not None:
        thinking = estimate(np.sum([tier.tokens_out for tier in made.tiers], axis=0))
        measured.write_pilot(asked, evidence.scored, found, {"thought_tokens": thinking})
    return _to_json(config, evidence, made, found, accelerators, [*notes, *lacking])


def _explore(
    config: MillConfig,
    evidence: Evidence,
    count: int,
    tries: int | None,
    beam_args: Sequence[str],
    say: Callable[[str], None],
) -> tuple[Pilot, list[str]]:
    """The measurements of an exploring pilot, stored at once: a budget that can't be met loses nothing of it."""
    from pipelines.plan import learning

    assert evidence.scored is not None
    _, found, notes = learning.explore(config, evidence.scored, count, tries=tries, beam_args=beam_args, say=say)
    measured.write_pilot(config, evidence.scored, found, {})
    return found, notes


def _by_gain(
    config: MillConfig, evidence: Evidence, beam_args: Sequence[str]
) -> tuple[MillConfig, tuple[TierGains, GainSteps] | None]:
    """What the policy learned goes by, and the config with its tiers as long as measured; otherwise it as it is.

    Raises:
        RequestError: the policy is learned, and the corpus isn't scored or wasn't explored.
    """
    if evidence.scored is None or not goes_by_gain(config):
        return config, None
    from pipelines.beam_options import beam_options
    from pipelines.plan.corpus_steps import corpus_steps
    from pipelines.plan.expected_gain import expected_gain

    expected = expected_gain(config, evidence.scored)
    assert expected is not None
    scored_in = config.scored or config.output
    steps = corpus_steps(expected, evidence.scored, beam_options(beam_args), scored_in)
    return expected.config, (expected.gains, steps)


def _to_json(
    config: MillConfig,
    evidence: Evidence,
    made: Forecast,
    pilot: Pilot | None,
    accelerators: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    allocation = made.allocation
    interval = partial(estimate, resampled=evidence.scored is None)
    tiers = [tier_costs(config, tier, pilot, resampled=evidence.scored is None) for tier in made.tiers]
    for tier, planned in zip(tiers, allocation.tiers, strict=True):
        tier["expected_gain_nats"] = None if planned.gain_nats is None else planned_gain(planned)
    costs = [cost for cost in tiers if cost["model"] is not None]
    contraction = contraction_costs(config, made, pilot, resampled=evidence.scored is None)
    contracting = [contraction] if contraction is not None else []
    gpu_hours = total([cost["_gpu_hours"] for cost in [*costs, *contracting]])
    dollars = total([cost["_dollars"] for cost in [*costs, *contracting]])
    for cost in [*tiers, *contracting]:
        del cost["_gpu_hours"], cost["_dollars"]
    kept_tokens = np.sum([tier.kept_tokens for tier in made.tiers], axis=0) * (1 - config.pack.raw_fraction)
    training_tokens = (made.source_tokens + kept_tokens) * made.copies
    size_bytes = shard_bytes(config, training_tokens)
    rate = evidence.scoring_tokens_per_second
    return {
        "output": config.output,
        "basis": {
            "scored": evidence.scored is not None,
            "documents": len(evidence.sample),
            "complete": evidence.scored is not None or evidence.complete,
            "pilot_segments": pilot.segments if pilot else 0,
            "rehearsal": _is_rehearsal(config),
        },
        "budget": {
            "policy": allocation.policy,
            "unit": allocation.unit,
            "target": allocation.target_spend,
            "planned": allocation.planned_spend,
            "expected_gain_nats": None if allocation.gain_nats is None else planned_gain(*allocation.tiers),
            "marginal_nats": allocation.marginal_nats,
        },
        "score": {
            "documents": interval(made.documents),
            "segments": interval(made.segments),
            "tokens_in": interval(made.source_tokens),
            "seconds_here": None if rate is None else interval(evidence.scoring_start_s + made.source_tokens / rate),
        },
        "augment": {
            "tiers": tiers,
            "contraction": contraction,
            "tokens_in": interval(
                np.sum([*(tier.tokens_in for tier in made.tiers), made.contraction_prompt_tokens], axis=0)
            ),
            "tokens_out": interval(np.sum([tier.tokens_out for tier in made.tiers], axis=0)),
            "gpu_hours": None if gpu_hours is None else interval(gpu_hours),
            "dollars": None if dollars is None else interval(dollars),
            "accelerators": accelerators,
            "hours": None if gpu_hours is None else interval(gpu_hours / accelerators),
        },
        "select": {
            "candidates": interval(np.sum([tier.generations for tier in made.tiers], axis=0)),
            "kept": interval(np.sum([tier.kept for tier in made.tiers], axis=0)),
        },
        "pack": {
            "training_tokens": interval(training_tokens),
            "sequences": interval(training_tokens / config.pack.sequence_length),
            "shards": config.pack.num_shards,
            "bytes": interval(size_bytes),
        },
        **_explored(config, evidence, pilot),
        "nothing_kept": pilot is not None and _keeps_nothing(config, pilot),
        "warnings": [
            *notes,
            *evidence.notes,
            *allocation.warnings,
            *cautions(config, made, pilot),
        ],
    }


def _explored(config: MillConfig, evidence: Evidence, pilot: Pilot | None) -> dict[str, Any]:
    """What an exploring pilot says beyond a plain one: the frontier of the tiers, and what was learned."""
    if pilot is None or not pilot.explored:
        return {}
    from pipelines.plan.frontier import frontier
    from pipelines.plan.learned import read_learned

    assert evidence.scored is not None  # a pilot belongs to scores
    learned = read_learned(config, evidence.scored)
    return {
        "frontier": frontier(config, pilot),
        "learned": {"made_from": dict(learned.made_from), "report": dict(learned.report)},
    }


def _keeps_nothing(config: MillConfig, pilot: Pilot) -> bool:
    """Whether selection keeps nothing of more than a handful of segments, and was not told that it may."""
    return shortfall(pilot.counts, config.select.min_kept_share) is not None and not pilot.counts[SEGMENTS_KEPT]


def _is_rehearsal(config: MillConfig) -> bool:
    return config.difficulty.scorer == "rehearsal" or any(m.engine == "rehearsal" for m in config.models.values())
