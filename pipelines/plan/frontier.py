"""The frontier: what each tier gains against what it costs, as an exploring pilot measured both. Pure.

A tier that gives less for its price than another, or than a mixture of two others (nothing at all is one), is
dominated: no budget buys it. The tiers of a config are the candidates: other models, prompts, caps and
samples are other tiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from difficulty.budget.tiers import TierConfig, Unit
from pipelines.config import MillConfig
from pipelines.plan import chance
from pipelines.plan.chance import estimate
from pipelines.plan.learned import TierCost
from pipelines.plan.measured import MeasuredTier, Pilot
from pipelines.plan.tier_prices import price_of, rate_of

NAMES: Mapping[Unit, str] = {"tokens": "thinking tokens", "dollars": "dollars", "gpu_hours": "GPU-hours"}


@dataclass(frozen=True)
class _Point:
    """A tier on the frontier: what it takes and gains per segment."""

    name: str
    cost: float
    gain: float


_NOTHING = _Point("", 0.0, 0.0)


def costs_of(config: MillConfig, pilot: Pilot) -> dict[str, TierCost]:
    """What each tier of an exploring pilot takes per segment."""
    tiers = {tier.name: tier for tier in config.budget.tiers}
    return {name: _cost(config, tiers[name], measured, pilot) for name, measured in pilot.tiers.items()}


def _cost(config: MillConfig, tier: TierConfig, measured: MeasuredTier, pilot: Pilot) -> TierCost:
    tokens = float(np.average(measured.thought_tokens, weights=measured.weights))
    rate, _ = rate_of(config, tier.models, pilot)
    price = price_of(config, tier.models)
    return TierCost(
        thought_tokens=tokens,
        gpu_seconds=tokens / rate if rate else None,
        dollars=tokens * price / 1e6 if price is not None else None,
    )


def unit_of(config: MillConfig, costs: Mapping[str, TierCost]) -> Unit:
    """What tiers are compared in: GPU-seconds where all have a rate, else dollars where all have a price, else tokens.

    A token of a large model costs more than one of a small model, so tokens are compared last; a budget in dollars or
    GPU-hours is compared in its own unit where it is known.
    """
    known: dict[Unit, bool] = {
        "gpu_hours": all(cost.gpu_seconds is not None for cost in costs.values()),
        "dollars": all(cost.dollars is not None for cost in costs.values()),
        "tokens": True,
    }
    own = config.budget.unit
    order: tuple[Unit, ...] = ("gpu_hours", "dollars", "tokens")
    if len({model for tier in config.budget.tiers for model in tier.models}) == 1:
        order = ("tokens",)  # of one model all three order tiers alike, and a measured rate is noise
    return own if own != "tokens" and known[own] else next(unit for unit in order if known[unit])


def frontier(config: MillConfig, pilot: Pilot) -> dict[str, Any]:
    """The frontier as JSON values: `unit`, and `tiers` from the cheapest to the dearest.

    A tier has name, model, segments, `gain_nats` per segment tried (a 90% interval over documents; `null_nats` the same
    with a control's traces in place of its own), `thought_tokens`, `gpu_seconds`, `dollars` per segment,
    `nats_per_1000_tokens`; and `dominated_by`, names of one or two others that give more for its price, with
    `shown`, whether the 90% interval of the difference on the same segments says so.
    """
    costs = costs_of(config, pilot)
    unit = unit_of(config, costs)
    tiers = {tier.name: tier for tier in config.budget.tiers}
    gains = {name: _mean(tier, tier.gain_nats) for name, tier in pilot.tiers.items()}
    points = [_Point(n, _in_unit(costs[n], unit), g["value"]) for n, g in gains.items() if g is not None]
    hull = hull_of(points)
    rows = []
    for name, measured in sorted(pilot.tiers.items(), key=lambda item: _in_unit(costs[item[0]], unit)):
        gain, cost = gains[name], costs[name]
        by = [] if gain is None else _over(_Point(name, _in_unit(cost, unit), gain["value"]), hull)
        rows.append(
            {
                "name": name,
                "model": tiers[name].model,
                "segments": len(measured.generations),
                "gain_nats": gain,
                "null_nats": _mean(measured, measured.null_nats),
                "thought_tokens": cost.thought_tokens,
                "gpu_seconds": cost.gpu_seconds,
                "dollars": cost.dollars,
                "nats_per_1000_tokens": None if gain is None else 1000 * gain["value"] / max(cost.thought_tokens, 1e-9),
                "dominated_by": [point.name for point, _ in by if point.name],
                "is_dominated": bool(by),
                "shown": bool(by) and _shown(pilot, name, by),
            }
        )
    return {"unit": unit, "tiers": rows}


def hull_of(points: Sequence[_Point]) -> list[_Point]:
    """The upper hull of (cost, gain) from nothing on, as far as it rises: what some budget buys."""
    hull = [_NOTHING]
    for point in sorted(points, key=lambda p: (p.cost, -p.gain, p.name)):
        if point.gain <= hull[-1].gain:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: _Point, right: _Point) -> float:
    """Nats per unit; without a limit where more costs nothing."""
    return (right.gain - left.gain) / (right.cost - left.cost) if right.cost > left.cost else float("inf")


def _over(point: _Point, hull: Sequence[_Point]) -> list[tuple[_Point, float]]:
    """What dominates a point: one or two of the hull with the share of each, at its price; nothing for the hull's."""
    if point in hull:
        return []
    after = next((i for i, other in enumerate(hull) if other.cost > point.cost), len(hull))
    left = hull[after - 1]
    if after == len(hull):
        return [(left, 1.0)]
    share = (point.cost - left.cost) / (hull[after].cost - left.cost)
    return [(left, 1 - share), (hull[after], share)]


def _shown(pilot: Pilot, name: str, by: Sequence[tuple[_Point, float]]) -> bool:
    """Whether the 90% interval of what the others gain more, on the segments tried with all of them, is above 0."""
    own = pilot.tiers[name]
    found = {n: dict(zip(t.segment, t.gain_nats, strict=True)) for n, t in pilot.tiers.items()}
    places, more = [], []
    for place, (segment, gain) in enumerate(zip(own.segment, own.gain_nats, strict=True)):
        others = [0.0 if not point.name else found[point.name].get(segment) for point, _ in by]
        if gain is not None and None not in others:
            places.append(place)
            more.append(sum(s * o for (_, s), o in zip(by, others, strict=True) if o is not None) - gain)
    chosen = own.where(np.array(places, np.int64))
    found_mean = _mean(chosen, more)
    return found_mean is not None and found_mean["low"] > 0


def _mean(tier: MeasuredTier, nats: Sequence[float | None]) -> dict[str, float] | None:
    """The mean over the corpus with its 90% interval; None of too few."""
    places = np.array([i for i, value in enumerate(nats) if value is not None], np.int64)
    if not len(places):
        return None
    chosen = tier.where(places)
    values = np.array([nats[i] for i in places], np.float64)
    found = chance.mean(values, chosen.documents, np.random.Generator(np.random.PCG64(0)), chosen.weights)
    return None if found is None else estimate(found)


def _in_unit(cost: TierCost, unit: Unit) -> float:
    if unit == "tokens":
        return cost.thought_tokens
    return (cost.dollars if unit == "dollars" else cost.gpu_seconds) or 0.0
