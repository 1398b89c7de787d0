"""A plan carried over to other documents: its cut points stay, and what it is expected to take is worked out anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.policies import policy_module
from difficulty.budget.tiers import BudgetConfig, ModelPrice
from sharding.errors import RequestError


def carry_over(
    made: Allocation, histogram: DifficultyHistogram, config: BudgetConfig, prices: Mapping[str, ModelPrice]
) -> Allocation:
    """The plan for the segments of another histogram: every segment gets the tier that `made` gives it.

    Planned spend and segments are expectations: a bin of the histogram that a cut point lies in counts to the side of
    its lower end. The budget of the carried plan is what it is expected to spend.

    Args:
        made: the plan.
        histogram: the other segments.
        config: the budget that it was made for; tiers in the same order.
        prices: price by model name.

    Raises:
        RequestError: the tiers are others, or the plan goes by expected gain, which cut points don't tell.
    """
    if made.by_gain is not None:
        raise RequestError(
            f"budget.policy: {made.policy} goes by a pilot on the documents themselves, so its plan can't be carried "
            "over to others: give them a plan of their own, with another policy"
        )
    if [tier.name for tier in made.tiers] != [tier.name for tier in config.tiers]:
        raise RequestError("budget.tiers: are others than those of the plan that is carried over")
    ordered = policy_module(made.policy).ordered(histogram)
    steps, deviation = _segments_of(made, ordered.bins << ordered.shift, ordered.counts)
    costs = np.array([tier.cost(config.unit, prices) for tier in config.tiers])
    aimed = made.axis == "difficulty"
    masses = steps @ (ordered.nats * ordered.counts) if aimed else steps @ ordered.counts
    masses = masses if aimed else masses / max(1, histogram.num_segments) * histogram.total_nats
    segments = dict(zip(made.choices, (steps @ ordered.counts).tolist(), strict=True))
    mass = dict(zip(made.choices, masses.tolist(), strict=True))
    tiers = tuple(
        dataclasses.replace(
            plan,
            segments=segments.get(place, 0.0),
            tokens=segments.get(place, 0.0) * tier.tokens_per_segment,
            spend=segments.get(place, 0.0) * float(costs[place]),
            difficulty_nats=mass.get(place, 0.0),
        )
        for place, (plan, tier) in enumerate(zip(made.tiers, config.tiers, strict=True))
    )
    spend = sum(tier.spend for tier in tiers)
    between = 0.0
    if made.shared_bin is not None:
        high, low = made.choices[made.shared_bin.step], made.choices[made.shared_bin.step - 1]
        between = float(abs(costs[high] - costs[low]))
    return dataclasses.replace(
        made,
        target_spend=spend,
        planned_spend=spend,
        spend_deviation=deviation * between,
        tiers=tiers,
        warnings=(),
    )


def _segments_of(made: Allocation, keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """By choice the share of each bin's segments that gets it, (choices, bins) float64; and the standard deviation of
    the number of segments that the shared bin gives the upper tier."""
    shares = np.zeros((len(made.choices), len(keys)))
    if made.axis == "none":
        shares[0] = 1
        return shares, 0.0
    bins = keys >> made.shift
    steps, columns = np.searchsorted(np.array(made.cuts, np.int64), bins, side="right"), np.arange(len(keys))
    shares[steps, columns] = 1
    if (shared := made.shared_bin) is None:
        return shares, 0.0
    here = np.flatnonzero(bins == shared.bin)
    shares[steps[here], here] = 1 - shared.share
    shares[steps[here] + 1, here] += shared.share
    return shares, float(np.sqrt(counts[here].sum() * shared.share * (1 - shared.share)))
