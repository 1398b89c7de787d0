"""Uniform: the mix of tiers that the adaptive policy would buy, given to segments by hash, whatever their difficulty.

A comparison of the two measures what targeting brings, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.lagrange import upper_hull
from difficulty.budget.policies import Bins
from difficulty.budget.tiers import BudgetConfig

AXIS = "hash"
SPENDS_ALL = True


def choices(config: BudgetConfig, costs: Sequence[float], resolutions: Sequence[float]) -> list[int]:
    """As adaptive."""
    return upper_hull(costs, resolutions)


def ordered(histogram: DifficultyHistogram) -> Bins:
    """By hash, each bin at the difficulty of the same rank: a random order of the same difficulties."""
    bins, counts = histogram.by_hash.bins()
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return Bins(histogram.by_hash.shift, bins, counts, histogram.quantiles(ranks))
