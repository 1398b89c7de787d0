"""The arithmetic under the plan: a budget spread over bins of segments, in steps from tier to tier.

Pure functions over arrays; `difficulty.budget` says what the numbers mean and when a request is wrong.

A segment of difficulty d takes the tier that maximises d·v - λ·c (v: resolution, c: cost, λ: the price of a unit of the
budget). Only tiers on the upper concave hull of (c, v) can win; the step from one to the next is worth its price when
d·Δv/Δc >= λ. So one λ means one cut per step on the difficulty axis, and spend falls as λ rises (Lagrangian allocation
under a budget: arXiv 2604.14853; spending by predicted marginal gain: 2410.04707). Over bins, spend changes at finitely
many λ, one per bin and step. They are what a bisection on λ would search: sorted, the search is exact.

`solve` has this case, where one difficulty orders all steps. Where a gain is expected of each tier on its own, a
segment has its own hull, and each pair of tiers on one has bins of its own: `solve_steps` has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

STEADY_DEVIATION = 0.0025
"""Spend whose standard deviation is below this share of the target is steady: four deviations are 1% of it."""

WHOLE_BIN_MISS = 0.005
"""A bin may be taken or left whole, rather than drawn from, where that misses the target by at most this share."""

RESOLUTION_FORGONE = 0.2
"""Most of the resolved nats that steady spend may cost: a budget kept is worth more than nats that rest on a prior. It
takes a hundred segments or fewer to cost this much; a thousand of distinct difficulty cost less than 1%."""

_ROUNDING = 1e-9  # share of the target that float rounding may add or leave


@dataclass(frozen=True)
class Solution:
    """Which bins take which steps.

    Attributes:
        cuts: (steps,) the bins from index `cuts[j]` on take step j, from tier j to tier j + 1 of the hull. Not
            descending: a bin never takes a step without those below it.
        shared_step: the step that one bin, at index `cuts[shared_step] - 1`, takes in part; None if all are whole.
        share: the part of that bin's segments that takes it, in (0, 1).
        deviation: standard deviation of the spend, each of those segments drawn independently.
        marginal_nats: λ, nats resolved per unit at the last step taken.
    """

    cuts: tuple[int, ...]
    shared_step: int | None = None
    share: float = 0.0
    deviation: float = 0.0
    marginal_nats: float = 0.0

    def taken(self, amounts: np.ndarray) -> np.ndarray:
        """The sum of (bins,) amounts over the segments at each hull tier: (steps + 1,) float64."""
        at_least = np.array([amounts.sum(), *(amounts[cut:].sum() for cut in self.cuts), 0.0], dtype=np.float64)
        if self.shared_step is not None:
            at_least[self.shared_step + 1] += self.share * amounts[self.cuts[self.shared_step] - 1]
        return at_least[:-1] - at_least[1:]


def upper_hull(costs: Sequence[float], resolutions: Sequence[float]) -> list[int]:
    """Indices of the tiers that some λ chooses, from the cheapest to the dearest.

    The cheapest tier is always among them. Left out are tiers that resolve no more than a cheaper one, or no more per
    cost than a mix of two others.
    """
    hull: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -resolutions[i])):
        if hull and resolutions[i] <= resolutions[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(costs, resolutions, hull[-2], hull[-1]) < _slope(
            costs, resolutions, hull[-1], i
        ):
            hull.pop()
        hull.append(i)
    return hull


def _slope(costs: Sequence[float], resolutions: Sequence[float], low: int, high: int) -> float:
    return (resolutions[high] - resolutions[low]) / (costs[high] - costs[low])


class Step(NamedTuple):
    """A step from tier to tier.

    Attributes:
        cost: of the step, for a segment.
        counts: (bins,) segments that can take it.
        prices: (bins,) float64, what a segment gains for a unit of cost, not descending.
    """

    cost: float
    counts: np.ndarray
    prices: np.ndarray


def solve(
    counts: np.ndarray, nats: np.ndarray, costs: np.ndarray, resolutions: np.ndarray, target_spend: float
) -> Solution:
    """`solve_steps` where one difficulty orders the bins of all steps, from tier to tier of one hull.

    Args:
        counts: (bins,) int64 segments.
        nats: (bins,) float64 difficulty of a segment of the bin, not descending.
        costs: (steps + 1,) float64 cost of a segment at each tier of the hull, ascending.
        resolutions: (steps + 1,) float64, ascending and concave in cost.
        target_spend: between all segments at the first tier and all at the last.
    """
    step_costs = np.diff(costs)
    ratios = np.diff(resolutions) / step_costs
    return solve_steps(
        [Step(float(cost), counts, ratio * nats) for cost, ratio in zip(step_costs, ratios, strict=True)],
        target_spend,
        base_spend=float(counts.sum() * costs[0]),
        # A bin was refused the step below: it can't take this one.
        is_barred=lambda step, bin_, cuts, _closed: step > 0 and bin_ < cuts[step - 1],
        gain_of=lambda plan: float(plan.taken(nats * counts) @ resolutions),
    )


def solve_steps(
    steps: Sequence[Step],
    target_spend: float,
    *,
    base_spend: float,
    is_barred: Callable[[int, int, Sequence[int], set[int]], bool],
    gain_of: Callable[[Solution], float],
) -> Solution:
    """Spends the target on the bins, best value first.

    Where a bin's next step costs more than what is left, taking it in part, or whole if that is near enough, is the
    optimum. If the draw would make spend unsteady (a bin of many segments, a step of many tokens), the step is closed
    instead and what is left goes down the list to smaller ones, where it ends in the same way: a little gain is given
    up for a spend known beforehand. If no end is steady, as with a handful of segments, the steadiest is taken of those
    that give up at most RESOLUTION_FORGONE.

    Args:
        steps: all steps; of two at one price, the one that a segment has to take first comes first.
        target_spend: at most base_spend and all steps together.
        base_spend: what all segments cost before they take a step.
        is_barred: (step, bin, cuts so far, closed steps) → whether some of the bin may not have taken a step that comes
            before this one.
        gain_of: what a plan gains, to compare plans by.
    """
    optimum, least_miss, best = None, float("inf"), Solution(())
    for miss, plan in _ends(steps, target_spend, base_spend, is_barred):
        gain = gain_of(plan)
        if optimum is None:
            optimum = gain
        if miss < least_miss and gain >= optimum * (1 - RESOLUTION_FORGONE):
            least_miss, best = miss, plan
        if least_miss <= STEADY_DEVIATION * target_spend:
            break
    return best


def _ends(
    steps: Sequence[Step],
    target_spend: float,
    base_spend: float,
    is_barred: Callable[[int, int, Sequence[int], set[int]], bool],
) -> Iterator[tuple[float, Solution]]:
    """Plans that spend the target, the optimum first, each with the root mean square of its spend minus the target."""
    slack = _ROUNDING * target_spend
    left = target_spend - base_spend
    cuts = [len(step.counts) for step in steps]
    refused: list[int] = []  # steps whose next bin costs more than was left
    closed: set[int] = set()
    last_price = 0.0

    def ends_in(step: int) -> Iterator[tuple[float, Solution]]:
        """What is left goes to a part of the next bin of this step; or all of it, or none, if that is near enough."""
        bin_ = cuts[step] - 1
        count, cost = steps[step].counts[bin_], steps[step].cost
        spend = float(count * cost)
        share = left / spend
        deviation = sqrt(count * share * (1 - share)) * cost
        price = float(steps[step].prices[bin_])
        yield deviation, Solution(tuple(cuts), step, share, deviation, price)
        for cut, miss in ((bin_, spend - left), (bin_ + 1, left)):
            if miss <= WHOLE_BIN_MISS * target_spend:
                yield miss, Solution((*cuts[:step], cut, *cuts[step + 1 :]), marginal_nats=price)

    for step, bin_ in _best_first(steps):
        if left <= slack:
            break
        if step in closed:
            continue
        if is_barred(step, bin_, cuts, closed):
            closed.add(step)
            continue
        spend = float(steps[step].counts[bin_] * steps[step].cost)
        if spend <= left + slack:
            cuts[step], left = bin_, left - spend
            last_price = float(steps[step].prices[bin_])
        else:
            yield from ends_in(step)
            refused.append(step)
            closed.add(step)

    if left <= slack:
        yield 0.0, Solution(tuple(cuts), marginal_nats=last_price)
        return
    # All whole steps that fit are taken; what is left fits into a part of any step refused for its price.
    for step in refused:
        yield from ends_in(step)


def _best_first(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """(step, bin), the highest price first; among equals an earlier step and a later bin go first.

    So no bin takes a step before the bins above it, nor before its own earlier steps.
    """
    if not steps:
        return
    prices = np.concatenate([step.prices[::-1] for step in steps])
    of_step = np.repeat(np.arange(len(steps)), [len(step.prices) for step in steps])
    bins = np.concatenate([np.arange(len(step.prices))[::-1] for step in steps])
    order = np.argsort(-prices, kind="stable")
    yield from zip(of_step[order].tolist(), bins[order].tolist(), strict=True)
