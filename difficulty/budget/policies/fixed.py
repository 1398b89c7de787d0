"""Fixed: `budget.fixed_tier` for every segment, as in TPT (arXiv 2509.20186), within the budget."""

from __future__ import annotations

from collections.abc import Sequence

from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.policies import Bins
from difficulty.budget.tiers import BudgetConfig

AXIS = "none"
SPENDS_ALL = False


def choices(config: BudgetConfig, costs: Sequence[float], resolutions: Sequence[float]) -> list[int]:
    """The one tier."""
    return [next(i for i, tier in enumerate(config.tiers) if tier.name == config.fixed_tier)]


def ordered(histogram: DifficultyHistogram) -> Bins:
    """In any order: there is no step to buy."""
    bins, counts = histogram.by_difficulty.bins()
    return Bins(histogram.by_difficulty.shift, bins, counts, histogram.bins()[0])
