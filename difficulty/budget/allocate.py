"""Turns one budget and the histogram of difficulty into a plan: which tier each segment gets.

Stands between score and augment; `thoughtmill plan` shows its result before anything is generated. What can be bought
is in `tiers`, the arithmetic in `spread`, the plan itself in `allocation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn

import numpy as np

from difficulty.budget.allocation import KEY_LIMIT, Allocation, Split, TierPlan
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.lagrange import Spread, spread, upper_hull
from difficulty.budget.tiers import BudgetConfig, ModelPrice
from sharding.errors import MillError, RequestError

SPEND_TOLERANCE = 0.01
"""Planned spend is within this share of the budget, or the request is refused."""

_AXES: dict[str, Literal["difficulty", "hash", "none"]] = {"adaptive": "difficulty", "uniform": "hash", "fixed": "none"}


def allocate(
    histogram: DifficultyHistogram,
    config: BudgetConfig,
    *,
    source_tokens: int,
    prices: Mapping[str, ModelPrice],
) -> Allocation:
    """The plan that spends the budget on the segments of the histogram.

    Policies adaptive and uniform take bins of segments whole, but for at most one, of which the hash of the ids draws
    the share that meets the budget. Planned spend, the expectation over that draw, is within 0.5% of the budget. Up to
    `MAX_BINS` segments of distinct difficulty a bin holds a single one, so the plan is exact as soon as one segment's
    step is below 1% of the budget. A larger corpus has a few thousandths of its segments in the bin that is drawn from.
    With a handful of segments no assignment of whole ones need be near the budget, and the draw decides a large part of
    it. `spend_deviation` says how far a run may be off in each case, a warning where it is more than 1%.

    Policy uniform deals the tier mix of the adaptive plan by hash instead of by difficulty: a comparison of the two
    measures the targeting alone. Policy fixed spends what its tier takes, at most the budget.

    Args:
        histogram: every segment of the corpus.
        config: policy, budget and tiers.
        source_tokens: training tokens of the corpus, for a budget per source token.
        prices: price by model name, for a budget in dollars or GPU-hours.

    Raises:
        RequestError: the segments can't take the budget, or can't keep to it; or a price is missing.
        MillError: the histogram is empty.
    """
    num_segments = histogram.num_segments
    if num_segments == 0:
        raise MillError("budget: no segments were scored, so there is nothing to spend on")
    target = config.target_spend(source_tokens)
    costs = np.array([tier.cost(config.unit, prices) for tier in config.tiers])
    resolutions = np.array([tier.resolution for tier in config.tiers])
    if config.policy == "fixed":
        ladder = [next(i for i, tier in enumerate(config.tiers) if tier.name == config.fixed_tier)]
    else:
        ladder = upper_hull(costs.tolist(), resolutions.tolist())
    lowest, highest = (num_segments * float(costs[i]) for i in (ladder[0], ladder[-1]))
    if not _is_reachable(config.policy, target, lowest, highest):
        _refuse(config, ladder, lowest, highest, num_segments, source_tokens)

    shift, bins, counts, nats = _axis(histogram, config.policy)
    plan = spread(counts, nats, costs[ladder], resolutions[ladder], min(max(target, lowest), highest))
    segments = plan.taken(counts)
    masses = (
        plan.taken(nats * counts) if config.policy == "adaptive" else segments / num_segments * histogram.total_nats
    )
    tiers = tuple(
        TierPlan(
            name=tier.name,
            segments=float(segments[ladder.index(i)]) if i in ladder else 0.0,
            tokens=float(segments[ladder.index(i)]) * tier.tokens_per_segment if i in ladder else 0.0,
            spend=float(segments[ladder.index(i)] * costs[i]) if i in ladder else 0.0,
            difficulty_nats=float(masses[ladder.index(i)]) if i in ladder else 0.0,
            resolution=tier.resolution,
        )
        for i, tier in enumerate(config.tiers)
    )
    split = None
    if plan.split_step is not None:
        split = Split(bin=int(bins[plan.cuts[plan.split_step] - 1]), step=plan.split_step + 1, share=plan.share)
    planned = sum(tier.spend for tier in tiers)
    return Allocation(
        policy=config.policy,
        axis=_AXES[config.policy],
        shift=shift,
        ladder=tuple(ladder),
        cuts=tuple(int(bins[cut]) if cut < len(bins) else KEY_LIMIT for cut in plan.cuts),
        split=split,
        unit=config.unit,
        target_spend=target,
        planned_spend=planned,
        spend_deviation=plan.deviation,
        marginal_nats=plan.marginal_nats if config.policy == "adaptive" else 0.0,
        tiers=tiers,
        warnings=(
            *_tier_warnings(config, ladder),
            *_spend_warnings(config, plan, counts, nats, planned, target),
        ),
    )


def _axis(histogram: DifficultyHistogram, policy: str) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """The bins that segments are ordered by: log2 of their width, and (bins,) bins, counts and nats.

    For uniform these are bins of the hash, each standing at the difficulty of the same rank: a random order of the same
    difficulties, of which the arithmetic makes the same tier mix.
    """
    if policy != "uniform":
        bins, counts = histogram.by_difficulty.bins()
        return histogram.by_difficulty.shift, bins, counts, histogram.bins()[0]
    bins, counts = histogram.by_hash.bins()
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return histogram.by_hash.shift, bins, counts, histogram.quantiles(ranks)


def _is_reachable(policy: str, target: float, lowest: float, highest: float) -> bool:
    at_least_lowest = target * (1 + SPEND_TOLERANCE) >= lowest
    return at_least_lowest and (policy == "fixed" or target * (1 - SPEND_TOLERANCE) <= highest)


def _refuse(
    config: BudgetConfig, ladder: Sequence[int], lowest: float, highest: float, num_segments: int, source_tokens: int
) -> NoReturn:
    low, high = (f"{config.number_for(spend, source_tokens):.6g}" for spend in (lowest, highest))
    cheapest, dearest = config.tiers[ladder[0]].name, config.tiers[ladder[-1]].name
    asked = f"{config.key}: {getattr(config, config.key.removeprefix('budget.')):.6g}"
    if config.policy == "fixed":
        raise RequestError(
            f"{asked} is exceeded by policy fixed: tier {cheapest} for all {num_segments:,} segments takes {low}; "
            f"allowed: from {low}, or a cheaper budget.fixed_tier"
        )
    raise RequestError(
        f"{asked} can't be spent on these {num_segments:,} segments: all at tier {cheapest} take {low}, "
        f"all at tier {dearest} take {high}; allowed: from {low} to {high}, or other budget.tiers"
    )


def _tier_warnings(config: BudgetConfig, ladder: Sequence[int]) -> list[str]:
    if config.policy == "fixed":
        return []
    return [
        f"tier {tier.name} gets nothing: expected to resolve {tier.resolution:.3g} of the difficulty, it is no better "
        f"for its price than {' and '.join(config.tiers[i].name for i in ladder)}; set "
        f"budget.tiers.{index}.expected_resolution if a pilot has measured it higher"
        for index, tier in enumerate(config.tiers)
        if index not in ladder
    ]


def _spend_warnings(
    config: BudgetConfig, plan: Spread, counts: np.ndarray, nats: np.ndarray, planned: float, target: float
) -> list[str]:
    warnings = []
    if 0 < planned < target * (1 - SPEND_TOLERANCE):
        warnings.append(f"policy {config.policy} spends {planned / target:.1%} of {config.key}: its tier takes no more")
    if plan.deviation > SPEND_TOLERANCE * target:
        warnings.append(
            f"a few segments tip the budget: {config.key} is met on average, but this plan may come to "
            f"{plan.deviation / target:.1%} more or less (one standard deviation); use cheaper tiers or more text"
        )
    easy = float(plan.taken(np.where(nats == 0, counts, 0))[1:].sum())
    if config.policy == "adaptive" and easy > 0:
        warnings.append(
            f"{easy:,.0f} segments without a hard token get more than the cheapest tier, to spend all of {config.key}; "
            f"lower it, or difficulty.threshold_nats"
        )
    return warnings
