"""Adaptive: the budget goes where it is expected to resolve the most difficulty for its price."""

from __future__ import annotations

from collections.abc import Sequence

from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.lagrange import upper_hull
from difficulty.budget.policies import Bins
from difficulty.budget.tiers import BudgetConfig

AXIS = "difficulty"
SPENDS_ALL = True


def choices(config: BudgetConfig, costs: Sequence[float], resolutions: Sequence[float]) -> list[int]:
    """Every tier that is worth its price to some segment."""
    return upper_hull(costs, resolutions)


def ordered(histogram: DifficultyHistogram) -> Bins:
    """By difficulty."""
    bins, counts = histogram.by_difficulty.bins()
    return Bins(histogram.by_difficulty.shift, bins, counts, histogram.bins()[0])
