"""Learned: the budget goes where a pilot leads to expect the most gain for its price, and nowhere else.

The other policies order segments on one axis. Here every segment has its own gains and so its own order of tiers;
`allocate` takes their steps (`GainSteps`) in place of a histogram. Only steps that are expected to gain are bought:
where they don't take the budget, less is spent, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from difficulty.budget.allocation import KEY_LIMIT, Allocation, ByGain, SharedBin, TierPlan
from difficulty.budget.histogram import KEY_BITS, difficulty_of_key
from difficulty.budget.lagrange import Solution, Step, solve_steps
from difficulty.budget.steps import GainSteps, StepTable
from difficulty.budget.tiers import Axis, BudgetConfig, ModelPrice, as_config
from sharding.errors import MillError, RequestError

AXIS: Axis = "gain"
SPENDS_ALL = False

SPEND_TOLERANCE = 0.01
"""As for the other policies: planned spend is within this share of the budget, or of what is expected to gain."""


def costs_of(config: BudgetConfig, prices: Mapping[str, ModelPrice]) -> tuple[float, ...]:
    """Cost of a segment at each tier, in the budget's unit.

    Raises:
        RequestError: a price is missing.
    """
    return tuple(tier.cost(config.unit, prices) for tier in config.tiers)


def allocate(steps: GainSteps, config: BudgetConfig, *, source_tokens: int, model: str) -> Allocation:
    """The plan that buys the steps with the most expected gain for their cost, as many as the budget takes.

    Planned spend is within 0.5% of the budget, or of all that is expected to gain where that is less. Bins of steps are
    bought whole but for at most one, of which the hash of the ids draws a share, as in `difficulty.budget.allocate`.

    Args:
        steps: of every segment of the corpus, at the costs of this config.
        config: budget and tiers.
        source_tokens: training tokens of the corpus, for a budget per source token.
        model: digest of the model of gain that `steps` were made with.

    Raises:
        RequestError: the segments can't take the budget whatever their gains, or no thinking is expected to gain.
        MillError: there is no segment.
    """
    table, costs = steps.table(), np.array(steps.costs)
    is_base = table.low == table.high
    num_segments = int(table.steps[is_base].sum())
    if num_segments == 0:
        raise MillError("budget: no segments were scored, so there is nothing to spend on")
    target = config.target_spend(source_tokens)
    base_spend = float(table.steps[is_base] @ costs[table.low[is_base]])
    highest = num_segments * float(costs.max())
    if target * (1 + SPEND_TOLERANCE) < base_spend or target * (1 - SPEND_TOLERANCE) > highest:
        _refuse(config, costs, num_segments, source_tokens)
    pairs = _pairs(table, costs)
    if not pairs and base_spend == 0:
        raise RequestError(_no_gain(config))

    found = [table.bin[_of(table, pair)] for pair in pairs]
    offered = [
        Step(float(costs[high] - costs[low]), table.steps[_of(table, (low, high))], bins.astype(np.float64))
        for (low, high), bins in zip(pairs, found, strict=True)
    ]
    gaining = base_spend + sum(float(step.counts.sum() * step.cost) for step in offered)
    nats = [(table.gain_high - table.gain_low)[_of(table, pair)] for pair in pairs]
    plan = Solution(tuple(0 for _ in pairs))
    if target < gaining:
        plan = solve_steps(
            offered,
            max(target, base_spend),
            base_spend=base_spend,
            # Which segments were refused the step to its lower tier can't be told from its bins.
            is_barred=lambda step, _bin, _cuts, closed: any(pairs[other][1] == pairs[step][0] for other in closed),
            gain_of=lambda made: sum(float(_taken(made, i, len(n)) @ n) for i, n in enumerate(nats)),
        )
    taken = np.where(is_base, 1.0, 0.0)
    for number, pair in enumerate(pairs):
        taken[_of(table, pair)] = _taken(plan, number, len(found[number]))
    tiers = _tier_plans(config, table, costs, taken)
    cuts = tuple(int(bins[cut]) if cut < len(bins) else KEY_LIMIT for bins, cut in zip(found, plan.cuts, strict=True))
    shared_bin, last = None, [int(bins[cut]) for bins, cut in zip(found, plan.cuts, strict=True) if cut < len(bins)]
    if plan.shared_step is not None:
        bin_ = int(found[plan.shared_step][plan.cuts[plan.shared_step] - 1])
        shared_bin = SharedBin(bin=bin_, step=plan.shared_step, share=plan.share)
        last.append(bin_)
    planned = sum(tier.spend for tier in tiers)
    order = np.argsort(costs, kind="stable").tolist()
    reached = {tier for pair in pairs for tier in pair} | set(table.low[is_base].tolist())
    return Allocation(
        policy=config.policy,
        axis=AXIS,
        shift=steps.shift,
        choices=tuple(tier for tier in order if tier in reached),
        cuts=cuts,
        shared_bin=shared_bin,
        unit=config.unit,
        target_spend=target,
        planned_spend=planned,
        spend_deviation=plan.deviation,
        marginal_nats=_slope_of(min(last), steps.shift) if last else 0.0,
        tiers=tiers,
        warnings=tuple(_warnings(config, plan, tiers, target, planned, base_spend)),
        by_gain=ByGain(model=model, costs=steps.costs, steps=tuple(pairs)),
    )


def _pairs(table: StepTable, costs: np.ndarray) -> list[tuple[int, int]]:
    """(lower, higher) tier of every step that some segment could take, a segment's first steps first."""
    pairs = {(int(low), int(high)) for low, high in zip(table.low, table.high, strict=True) if low != high}
    return sorted(pairs, key=lambda pair: (costs[pair[0]], costs[pair[1]], pair))


def _of(table: StepTable, pair: tuple[int, int]) -> np.ndarray:
    return (table.low == pair[0]) & (table.high == pair[1])


def _taken(plan: Solution, step: int, num_bins: int) -> np.ndarray:
    """(bins,) the share of each bin of a step that the plan buys."""
    taken = (np.arange(num_bins) >= plan.cuts[step]).astype(np.float64)
    if plan.shared_step == step:
        taken[plan.cuts[step] - 1] = plan.share
    return taken


def _tier_plans(config: BudgetConfig, table: StepTable, costs: np.ndarray, taken: np.ndarray) -> tuple[TierPlan, ...]:
    """What each tier gets: the segments that climb to it, less those that climb on."""
    is_base = table.low == table.high
    plans = []
    for i, tier in enumerate(config.tiers):
        into, out = np.where(table.high == i, taken, 0.0), np.where((table.low == i) & ~is_base, taken, 0.0)
        segments = max(0.0, float((into - out) @ table.steps))
        plans.append(
            TierPlan(
                name=tier.name,
                segments=segments,
                tokens=segments * tier.tokens_per_segment,
                spend=segments * float(costs[i]),
                difficulty_nats=max(0.0, float((into - out) @ table.difficulty)),
                resolution=tier.resolution,
                gain_nats=float(into @ table.gain_high - out @ table.gain_low),
                gain_deviation_nats=max(0.0, float(into @ table.deviation_high - out @ table.deviation_low)),
            )
        )
    return tuple(plans)


def _slope_of(bin_: int, shift: int) -> float:
    """Gain per unit of cost in the middle of a bin."""
    return difficulty_of_key((bin_ << shift) + (1 << shift >> 1)) if shift < KEY_BITS else 0.0


def _refuse(config: BudgetConfig, costs: np.ndarray, num_segments: int, source_tokens: int) -> NoReturn:
    cheapest, dearest = int(costs.argmin()), int(costs.argmax())
    low, high = (
        as_config(config.number_for(num_segments * float(costs[i]), source_tokens)) for i in (cheapest, dearest)
    )
    raise RequestError(
        f"{config.key}: {as_config(getattr(config, config.key.removeprefix('budget.')))} can't be spent on these "
        f"{num_segments:,} segments: all at tier {config.tiers[cheapest].name} take {low}, all at tier "
        f"{config.tiers[dearest].name} take {high}; allowed: from {low} to {high}, or other budget.tiers"
    )


def _no_gain(config: BudgetConfig) -> str:
    tiers = ", ".join(tier.name for tier in config.tiers if not tier.skips)
    return (
        f"budget.policy: {config.policy} buys nothing: by the pilot no tier ({tiers}) is expected to gain on any "
        "segment. Don't buy; or try other models and prompts in budget.tiers, a larger pilot (`thoughtmill plan "
        "--pilot N --explore`, which says how large), or spend it on an assumption all the same with policy adaptive"
    )


def _warnings(
    config: BudgetConfig, plan: Solution, tiers: Sequence[TierPlan], target: float, planned: float, base_spend: float
) -> list[str]:
    warnings = []
    losing = [tier for tier in tiers if tier.spend and (tier.gain_nats or 0.0) <= 0]
    if base_spend and losing:
        names = " and ".join(tier.name for tier in losing)
        warnings.append(
            f"tier {names} is paid for without an expected gain, since no tier skips: add a tier with a name alone"
        )
    if planned < target * (1 - SPEND_TOLERANCE):
        warnings.append(
            f"the pilot expects no gain from more: {1 - planned / target:.1%} of {config.key} stays unspent; policy "
            "adaptive would spend it"
        )
    if plan.deviation > SPEND_TOLERANCE * target:
        warnings.append(
            f"a few segments tip the budget: {config.key} is met on average, but this plan may come to "
            f"{plan.deviation / target:.1%} more or less (one standard deviation); use cheaper tiers or more text"
        )
    idle = [tier.name for tier, plan_ in zip(config.tiers, tiers, strict=True) if not tier.skips and not plan_.segments]
    if idle:
        warnings.append(
            f"tier {' and '.join(idle)} gets nothing: for its price the pilot expects more of the others everywhere"
        )
    return warnings
