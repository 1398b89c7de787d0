"""Policies: how segments are ordered, and which tiers they may get. One module each, named in `POLICIES`.

A policy's module has

    AXIS          what orders the segments: "difficulty", "hash" of the id, "none" where all get the same tier,
                  or "gain"
    SPENDS_ALL    whether the budget is to be spent, or no more than kept to
    choices       (config, costs, resolutions) → the tiers that can be chosen, by their place in the config, from the
                  cheapest to the dearest; costs and resolutions are those of a segment at each tier
    ordered       (histogram) → the segments in bins on that axis

but for one on the axis of gain, where each segment has an order of its own: in place of the last two it has

    allocate      (steps, config, source_tokens, model) → the plan, of what `difficulty.budget.steps` counts

The table is in `difficulty.budget.tiers`, whose config section checks the names.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from difficulty.budget.tiers import POLICIES


class Bins(NamedTuple):
    """Segments in the order in which steps are bought for them.

    Attributes:
        shift: log2 of the width of a bin, in keys.
        bins: (bins,) int64, occupied ones, ascending: `key >> shift`.
        counts: (bins,) int64 segments.
        nats: (bins,) float64 difficulty that a segment of the bin is taken to have, not descending.
    """

    shift: int
    bins: np.ndarray
    counts: np.ndarray
    nats: np.ndarray


def policy_module(name: str) -> Any:
    """The module of the policy with this name."""
    return importlib.import_module(POLICIES[name])
