"""Turns one budget and the histogram of difficulty into a plan: which tier each segment gets.

Stands between score and augment; `thoughtmill plan` shows its result before anything is generated. What can be bought
is in `tiers`, who may get it in `policies`, the arithmetic in `lagrange`, the plan itself in `allocation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from difficulty.budget.allocation import KEY_LIMIT, Allocation, SharedBin, TierPlan
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.lagrange import Solution, solve
from difficulty.budget.policies import Bins, policy_module
from difficulty.budget.tiers import BudgetConfig, ModelPrice, as_config
from sharding.errors import MillError, RequestError

SPEND_TOLERANCE = 0.01
"""Planned spend is within this share of the budget, or the request is refused."""


def allocate(
    histogram: DifficultyHistogram,
    config: BudgetConfig,
    *,
    source_tokens: int,
    prices: Mapping[str, ModelPrice],
) -> Allocation:
    """The plan that spends the budget on the segments of the histogram.

    A policy that spends all of the budget takes bins of segments whole, but for at most one, of which the hash of the
    ids draws the share that meets the budget. Planned spend, the expectation over that draw, is within 0.5% of the
    budget. Up to `MAX_BINS` segments of distinct difficulty a bin holds a single one, so the plan is exact as soon as
    one segment's step is below 1% of the budget. A larger corpus has a few thousandths of its segments in the bin that
    is drawn from. With a handful of segments no assignment of whole ones need be near the budget, and the draw decides
    a large part of it. `spend_deviation` says how far a run may be off in each case, a warning where it is more than
    1%.

    Args:
        histogram: every segment of the corpus.
        config: policy, budget and tiers.
        source_tokens: training tokens of the corpus, for a budget per source token.
        prices: price by model name, for a budget in dollars or GPU-hours.

    Raises:
        RequestError: the segments can't take the budget, or can't keep to it; a price is missing; or the policy goes by
            expected gain, which no histogram of difficulty tells.
        MillError: the histogram is empty.
    """
    if policy_module(config.policy).AXIS == "gain":
        raise RequestError(
            f"budget.policy: {config.policy} goes by what a pilot of the scored corpus has measured, and there is none "
            "here: run `thoughtmill score CONFIG`, then `thoughtmill plan CONFIG --pilot N --explore`"
        )
    num_segments = histogram.num_segments
    if num_segments == 0:
        raise MillError("budget: no segments were scored, so there is nothing to spend on")
    target = config.target_spend(source_tokens)
    policy = policy_module(config.policy)
    costs = np.array([tier.cost(config.unit, prices) for tier in config.tiers])
    resolutions = np.array([tier.resolution for tier in config.tiers])
    choices: list[int] = policy.choices(config, costs.tolist(), resolutions.tolist())
    lowest, highest = (num_segments * float(costs[i]) for i in (choices[0], choices[-1]))
    reached = not policy.SPENDS_ALL or target * (1 - SPEND_TOLERANCE) <= highest
    if target * (1 + SPEND_TOLERANCE) < lowest or not reached:
        _refuse(config, choices, lowest, highest, num_segments, source_tokens)

    ordered: Bins = policy.ordered(histogram)
    counts, nats = ordered.counts, ordered.nats
    plan = solve(counts, nats, costs[choices], resolutions[choices], min(max(target, lowest), highest))
    aimed = policy.AXIS == "difficulty"
    segments = plan.taken(counts)
    masses = plan.taken(nats * counts) if aimed else segments / num_segments * histogram.total_nats
    tiers = tuple(
        TierPlan(
            name=tier.name,
            segments=float(segments[choices.index(i)]) if i in choices else 0.0,
            tokens=float(segments[choices.index(i)]) * tier.tokens_per_segment if i in choices else 0.0,
            spend=float(segments[choices.index(i)] * costs[i]) if i in choices else 0.0,
            difficulty_nats=float(masses[choices.index(i)]) if i in choices else 0.0,
            resolution=tier.resolution,
        )
        for i, tier in enumerate(config.tiers)
    )
    shared_bin = None
    if plan.shared_step is not None:
        bin_ = int(ordered.bins[plan.cuts[plan.shared_step] - 1])
        shared_bin = SharedBin(bin=bin_, step=plan.shared_step + 1, share=plan.share)
    planned = sum(tier.spend for tier in tiers)
    return Allocation(
        policy=config.policy,
        axis=policy.AXIS,
        shift=ordered.shift,
        choices=tuple(choices),
        cuts=tuple(int(ordered.bins[cut]) if cut < len(ordered.bins) else KEY_LIMIT for cut in plan.cuts),
        shared_bin=shared_bin,
        unit=config.unit,
        target_spend=target,
        planned_spend=planned,
        spend_deviation=plan.deviation,
        marginal_nats=plan.marginal_nats if aimed else 0.0,
        tiers=tiers,
        warnings=(
            *(_tier_warnings(config, choices) if policy.SPENDS_ALL else ()),
            *_spend_warnings(config, plan, planned, target),
            *(_easy_warnings(config, plan, ordered) if aimed else ()),
        ),
    )


def _refuse(
    config: BudgetConfig, choices: Sequence[int], lowest: float, highest: float, num_segments: int, source_tokens: int
) -> NoReturn:
    low, high = (as_config(config.number_for(spend, source_tokens)) for spend in (lowest, highest))
    cheapest, dearest = config.tiers[choices[0]].name, config.tiers[choices[-1]].name
    asked = f"{config.key}: {as_config(getattr(config, config.key.removeprefix('budget.')))}"
    if not policy_module(config.policy).SPENDS_ALL:
        raise RequestError(
            f"{asked} is exceeded by policy {config.policy}: tier {cheapest} for all {num_segments:,} segments takes "
            f"{low}; allowed: from {low}, or a cheaper tier"
        )
    raise RequestError(
        f"{asked} can't be spent on these {num_segments:,} segments: all at tier {cheapest} take {low}, "
        f"all at tier {dearest} take {high}; allowed: from {low} to {high}, or other budget.tiers"
    )


def _tier_warnings(config: BudgetConfig, choices: Sequence[int]) -> list[str]:
    return [
        f"tier {tier.name} gets nothing: expected to resolve {tier.resolution:.3g} of the difficulty, it is no better "
        f"for its price than {' and '.join(config.tiers[i].name for i in choices)}; set "
        f"budget.tiers.{index}.expected_resolution if a pilot has measured it higher"
        for index, tier in enumerate(config.tiers)
        if index not in choices
    ]


def _spend_warnings(config: BudgetConfig, plan: Solution, planned: float, target: float) -> list[str]:
    warnings = []
    if 0 < planned < target * (1 - SPEND_TOLERANCE):
        warnings.append(f"policy {config.policy} spends {planned / target:.1%} of {config.key}: its tier takes no more")
    if plan.deviation > SPEND_TOLERANCE * target:
        warnings.append(
            f"a few segments tip the budget: {config.key} is met on average, but this plan may come to "
            f"{plan.deviation / target:.1%} more or less (one standard deviation); use cheaper tiers or more text"
        )
    return warnings


def _easy_warnings(config: BudgetConfig, plan: Solution, ordered: Bins) -> list[str]:
    easy = float(plan.taken(np.where(ordered.nats == 0, ordered.counts, 0))[1:].sum())
    if not easy:
        return []
    return [
        f"{easy:,.0f} segments without a hard token get more than the cheapest tier, to spend all of {config.key}; "
        f"lower it, or difficulty.threshold_nats"
    ]
