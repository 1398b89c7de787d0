"""Fixed: `budget.fixed_tier` for every segment, as in TPT (arXiv 2509.20186), within the budget."""

from __future__ import annotations

from collections.abc import Sequence

from difficulty.budget.policies.adaptive import ordered as ordered  # any order would do: there is no step to buy
from difficulty.budget.tiers import BudgetConfig

AXIS = "none"
SPENDS_ALL = False


def choices(config: BudgetConfig, costs: Sequence[float], resolutions: Sequence[float]) -> list[int]:
    """The one tier."""
    return [next(i for i, tier in enumerate(config.tiers) if tier.name == config.fixed_tier)]
