"""What an exploring pilot says of the segments that a plan gives a tier. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from difficulty.budget.allocation import Allocation
from pipelines.plan import chance
from pipelines.plan.measured import MeasuredTier, Pilot

FEWEST_EXPLORED = 8
"""Of fewer segments that the plan gives a tier, all that were tried say more of lengths and of what is kept; and what
they gain isn't told. Of two or three numbers with a heavy tail Student's t held 79% where it promises 90%."""


def of_tier(measured: MeasuredTier, allocation: Allocation, number: int) -> MeasuredTier:
    """Of what was measured that which speaks of the segments that the plan gives a tier; it may be nothing.

    A plain pilot measures them and no others. An exploring one tried the tier on segments of every kind.
    """
    if not measured.segment or allocation.axis not in ("difficulty", "gain"):
        return measured  # the hash that decides knows nothing of a segment
    # What was learned from other documents decides, as the run's model hasn't seen the segments of the run.
    return measured.where(np.flatnonzero(_given(measured, allocation, measured.expected_nats) == number))


def of_plan(pilot: Pilot, allocation: Allocation | None) -> dict[str, MeasuredTier]:
    """What a pilot measured of the segments that a plan gives each tier, by its name; all of it without a plan.

    A run is held against that: what an exploring pilot tried is of every kind, and a run thinks about some kinds alone.
    """
    if allocation is None:
        return dict(pilot.tiers)
    tiers = [(number, tier.name) for number, tier in enumerate(allocation.tiers) if tier.name in pilot.tiers]
    return {name: of_tier(pilot.tiers[name], allocation, number) for number, name in tiers}


def bought_beside(pilot: Pilot, allocation: Allocation) -> list[str]:
    """Keys of the requests that an exploring pilot made and the run of this plan doesn't make."""
    tried: set[str] = set()
    asked: set[str] = set()
    for number, tier in enumerate(allocation.tiers):
        measured = pilot.tiers.get(tier.name)
        if measured is None or not measured.request_key:
            continue
        given = _given(measured, allocation, measured.learned_nats)
        tried.update(measured.request_key)
        asked.update(measured.request_key[place] for place in np.flatnonzero(given == number).tolist())
    return sorted(tried - asked)


def _given(measured: MeasuredTier, allocation: Allocation, nats: Sequence[Sequence[float]]) -> np.ndarray:
    """(segments,) int64, the tier that a plan gives each.

    Args:
        nats: (segments, thinking tiers), what a plan by gain expects of them.
    """
    if allocation.by_gain is None:
        return np.asarray(allocation.tiers_of(measured.segment, np.array(measured.difficulty_nats)))
    thinking = [place for place, cost in enumerate(allocation.by_gain.costs) if cost > 0]
    gains = np.zeros((len(measured.segment), len(allocation.tiers)))
    gains[:, thinking] = np.array(nats)
    return np.asarray(allocation.tiers_by_gain(measured.segment, gains))


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
