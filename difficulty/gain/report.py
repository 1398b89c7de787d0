"""What a pilot taught, in figures and words: what each tier gains, whether the gain can be foreseen, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from difficulty.gain.model import GainModel
from difficulty.gain.tried import Tried
from difficulty.gain.words import what_pays
from sharding.intervals import mean_of_segments

LEVEL = 0.9
"""Of every interval."""

FALSE_PROMISES = 0.05
"""The chance, at most, that a gain is promised where there is none: all tests of a report together (Bonferroni)."""

POWER = 0.8
"""The chance that a pilot as large as advised shows a gain that pays."""

BEST_SHARE = 0.25
"""The part of the observations with the highest predictions that is held against the rest."""


@dataclass(frozen=True)
class GroupGain:
    """Mean measured gain of some observations, with its 90% interval over documents.

    Attributes:
        name: of the tier, or of the tenth of predicted gain, "1" the highest.
        observations, documents: how many there are.
        predicted_nats: mean of what a model that had not seen their documents predicted.
        mean_nats: measured, each observation counted by 1/chance.
        low_nats, high_nats: its interval; None where there are too few documents to say.
    """

    name: str
    observations: int
    documents: int
    predicted_nats: float
    mean_nats: float
    low_nats: float | None
    high_nats: float | None


@dataclass(frozen=True)
class LearningReport:
    """What a pilot taught.

    Attributes:
        tiers: the gain of every tier.
        deciles: the gain by tenth of predicted gain, the highest first; out of fold.
        best: the gain of the quarter with the highest predictions, out of fold.
        lift_nats, lift_low_nats, lift_high_nats: by how much that quarter gains more than the others; None where there
            are too few documents to say.
        weight: how far the learned part is believed against the prior, from 0 to 1.
        promises: whether a tier shows a gain, or the best quarter does.
        paying_nats: a gain per segment that would be worth its price.
        needed_observations: how many of a tier would show that gain, four times out of five.
        words: all that in sentences.
    """

    tiers: tuple[GroupGain, ...]
    deciles: tuple[GroupGain, ...]
    best: GroupGain
    lift_nats: float
    lift_low_nats: float | None
    lift_high_nats: float | None
    weight: float
    promises: bool
    paying_nats: float
    needed_observations: int
    words: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def make_report(
    model: GainModel, tried: Tried, *, decode: Callable[[Sequence[int]], str] | None, paying_nats: float
) -> LearningReport:
    """The report on a model and the observations it was made from."""
    of_tiers = [tried.where(tried.tiers == t) for t in range(len(model.tiers))]
    order = np.argsort(-tried.predicted, kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    best = tried.where(order[: max(1, round(BEST_SHARE * len(order)))])
    tests = [*of_tiers, best]
    level = 1 - 2 * FALSE_PROMISES / len(tests)
    promises = any((low := _gain("", part, level).low_nats) is not None and low > 0 for part in tests)
    lift, lift_low, lift_high = _lift(tried, order)
    tiers = tuple(_gain(name, part) for name, part in zip(model.tiers, of_tiers, strict=True))
    deciles = tuple(_gain(str(number), tried.where(part)) for number, part in enumerate(parts, start=1))
    needed = max(_needed(part, paying_nats) for part in of_tiers)
    words = [
        *(f"tier {tier.name} gains {_interval(tier.mean_nats, tier.low_nats, tier.high_nats)}" for tier in tiers),
        f"the quarter with the highest predictions gains {_interval(lift, lift_low, lift_high)} more than the others, "
        "each predicted without having seen its document",
        f"what was learned weighs {model.weight:.0%}, the prior by difficulty {1 - model.weight:.0%}",
        *(what_pays(model, tried.rows, decode) if model.weight > 0.5 else []),
    ]
    if not promises:
        unit = "nat" if paying_nats == 1 else "nats"
        words.append(
            "don't buy: no tier shows a gain, nor do the segments of which the most is expected; a gain of "
            f"{paying_nats:g} {unit} per segment would show in {needed:,} tries of a tier, four times out of five"
        )
    return LearningReport(
        tiers=tiers,
        deciles=deciles,
        best=_gain("best quarter", best),
        lift_nats=lift,
        lift_low_nats=lift_low,
        lift_high_nats=lift_high,
        weight=model.weight,
        promises=promises,
        paying_nats=paying_nats,
        needed_observations=needed,
        words=tuple(words),
    )


def _gain(name: str, tried: Tried, level: float = LEVEL) -> GroupGain:
    sizes = np.bincount(tried.documents, weights=tried.weights)
    totals = np.bincount(tried.documents, weights=tried.weights * tried.gains)
    mean = mean_of_segments(sizes, totals, level=level)
    return GroupGain(
        name=name,
        observations=len(tried.gains),
        documents=mean.documents,
        predicted_nats=float(np.average(tried.predicted, weights=tried.weights)),
        mean_nats=mean.mean,
        low_nats=mean.low,
        high_nats=mean.high,
    )


def _lift(tried: Tried, order: np.ndarray) -> tuple[float, float | None, float | None]:
    """The gain of the best quarter beyond that of the others, with its 90% interval over documents.

    Each part's sum is held against its own mean, document by document, so that a document with segments in both parts
    counts once.
    """
    from scipy.special import stdtrit

    is_best = np.zeros(len(order), bool)
    is_best[order[: max(1, round(BEST_SHARE * len(order)))]] = True
    if is_best.all():
        return 0.0, None, None
    influence, means = np.zeros(len(order)), []
    for part, sign in ((is_best, 1.0), (~is_best, -1.0)):
        weights, gains = tried.weights[part], tried.gains[part]
        means.append(float(np.average(gains, weights=weights)))
        influence[part] = sign * weights * (gains - means[-1]) / weights.sum()
    lift = means[0] - means[1]
    documents = len(np.unique(tried.documents[is_best]))
    if documents < 8:
        return lift, None, None
    sums = np.bincount(tried.documents, weights=influence)
    half = float(stdtrit(documents - 1, (1 + LEVEL) / 2) * math.sqrt((sums**2).sum()))
    return lift, lift - half, lift + half


def _needed(tried: Tried, paying_nats: float) -> int:
    """Observations of a tier that show a mean gain of `paying_nats` above 0, POWER of the time (normal theory)."""
    from scipy.special import ndtri

    mean = np.average(tried.gains, weights=tried.weights)
    sums = np.bincount(tried.documents, weights=tried.weights * (tried.gains - mean))
    error = float((sums**2).sum()) / float(tried.weights.sum()) ** 2
    factor = float(ndtri((1 + LEVEL) / 2) + ndtri(POWER)) ** 2
    return max(1, math.ceil(factor * error * len(tried.gains) / paying_nats**2))


def _interval(mean: float, low: float | None, high: float | None) -> str:
    between = "too few documents for an interval" if low is None else f"{low:+.2f} to {high:+.2f}"
    return f"{mean:+.2f} nats a segment ({between})"
