"""What an exploring pilot says of the segments that a plan gives a tier. Pure."""

from __future__ import annotations

import math

import numpy as np

from difficulty.budget.allocation import Allocation
from pipelines.plan import chance
from pipelines.plan.measured import MeasuredTier

FEWEST_EXPLORED = 8
"""Of fewer segments that the plan gives a tier, all that were tried say more of lengths and of what is kept; and what
they gain isn't told. Of two or three numbers with a heavy tail Student's t held 79% where it promises 90%."""


def of_tier(measured: MeasuredTier, allocation: Allocation, number: int) -> MeasuredTier:
    """Of what was measured that which speaks of the segments that the plan gives a tier; it may be nothing.

    A plain pilot measures them and no others. An exploring one tried the tier on segments of every kind.
    """
    if not measured.segment:
        return measured
    if allocation.by_gain is not None:
        # What was learned from other documents decides, as the run's model hasn't seen the segments of the run.
        thinking = [place for place, cost in enumerate(allocation.by_gain.costs) if cost > 0]
        gains = np.zeros((len(measured.segment), len(allocation.tiers)))
        gains[:, thinking] = np.array(measured.expected_nats)
        given = allocation.tiers_by_gain(measured.segment, gains)
    elif allocation.axis == "difficulty":
        given = allocation.tiers_of(measured.segment, np.array(measured.difficulty_nats))
    else:
        return measured  # the hash that decides knows nothing of a segment
    return measured.where(np.flatnonzero(given == number))


def run_gain(measured: MeasuredTier, segments: float, random: np.random.Generator) -> np.ndarray | None:
    """What the run will measure: the mean over so many segments, whose noise is another than the pilot's.

    A pilot of the plan's own tiers is a part of the run. One that explored stands for it, and the run values the same
    traces beside other controls.
    """
    valued = np.array([place for place, nats in enumerate(measured.heldout_nats) if nats is not None], np.int64)
    if len(valued) < (FEWEST_EXPLORED if measured.segment else 1):
        return None
    chosen = measured.where(valued)
    nats = np.array(chosen.heldout_nats, np.float64)
    of = segments if measured.segment else math.inf
    return chance.mean(nats, chosen.documents, random, chosen.weights, of=of)
