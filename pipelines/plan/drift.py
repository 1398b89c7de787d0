"""Drift: whether what a run generates is what its pilot promised. Pure.

    pilot ─► promise of a tier and kind: a mean and its interval ─┐
    what the run has generated up to now ─► a mean and its interval ┴─► apart? a `Drift`

A run is looked at again and again, so its own interval is one that holds at all looks together: a confidence sequence
(Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", arXiv 2103.06476, Theorem 2.2). Half of what may go wrong is left to it and half to the promise's interval,
and all of it is shared out evenly among tiers and kinds: a run that is as its pilot was is called another one with a
probability of at most `FALSE_ALARMS`. `benchmarks/drift.py` measures it. Documents are the units, since segments of one
resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.plan.measured import MeasuredTier
from pipelines.watch.files import KINDS, Drift, Kind
from sharding.intervals import mean_of_segments

FALSE_ALARMS = 0.05
"""At most, over all tiers, kinds and looks of a run."""

FEWEST_DOCUMENTS = 32
"""A run is not looked at before it has generated about so many documents of a tier."""

_NARROWEST_AT = 256
"""Documents at which the confidence sequence is made to be narrowest."""


@dataclass(frozen=True)
class Promise:
    """A mean that a pilot measured, of one tier and kind, and half the width of its interval."""

    tier: str
    kind: Kind
    mean: float
    half_width: float


@dataclass(frozen=True)
class Totals:
    """What some generations of one tier came to; arrays with an entry for each document.

    Attributes:
        generations: (documents,) how many. tokens, cut: (documents,) sums over them.
        judged, rejected: the same of documents that the gates were asked about: of how many generations, and how many
            a gate rejects; None where nobody asked.
    """

    generations: np.ndarray
    tokens: np.ndarray
    cut: np.ndarray
    judged: np.ndarray | None = None
    rejected: np.ndarray | None = None

    def of(self, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """Of the documents that tell of a kind: (documents,) how many generations do, and the sum of it over them."""
        if kind != "rejected":
            return self.generations, self.tokens if kind == "length" else self.cut
        if self.judged is None or self.rejected is None:
            return np.zeros(0), np.zeros(0)
        return self.judged, self.rejected

    @classmethod
    def by_document(cls, documents: Sequence[object] | np.ndarray, *columns: np.ndarray) -> Totals:
        """Of parallel lists, in the order of the attributes."""
        _, place = np.unique(np.asarray(documents), return_inverse=True)
        return cls(*(np.bincount(place, weights=values) for values in columns))


def promises_of(tiers: Mapping[str, MeasuredTier]) -> list[Promise]:
    """What a pilot promises of each tier; nothing of a tier with too few documents for an interval."""
    found = []
    level = 1 - _error(len(tiers))
    for name, tier in sorted(tiers.items()):
        totals = _promised(tier)
        for kind in KINDS:
            mean = mean_of_segments(*totals.of(kind), level=level)
            if mean.low is not None:
                half = max(mean.mean - mean.low, _unseen(kind, mean.mean, mean.documents, level))
                found.append(Promise(name, kind, mean.mean, half))
    return found


def find_drifts(promises: Iterable[Promise], seen: Mapping[str, Totals]) -> list[Drift]:
    """Where what was seen is further from what was promised than both their intervals allow.

    May be asked as often as one likes: see above.

    Args:
        promises: of all tiers of the run.
        seen: what the run has generated, by tier.
    """
    promises = list(promises)
    error = _error(len({promise.tier for promise in promises}))
    found = []
    for promise in promises:
        totals = seen.get(promise.tier)
        if totals is None:
            continue
        generations, values = totals.of(promise.kind)
        if len(generations) < FEWEST_DOCUMENTS:
            continue
        mean = float(values.sum() / generations.sum())
        half = _sequence_half_width(generations, values - mean * generations, error)
        half = max(half, _unseen(promise.kind, mean, len(generations), 1 - error))
        apart = abs(mean - promise.mean) - promise.half_width - half
        if apart > 0:
            found.append(
                Drift(
                    tier=promise.tier,
                    kind=promise.kind,
                    promised=promise.mean,
                    measured=mean,
                    off_by=apart / promise.mean if promise.kind == "length" else apart,
                    generations=int(generations.sum()),
                    documents=len(generations),
                )
            )
    return found


def _promised(tier: MeasuredTier) -> Totals:
    """What a pilot measured of a tier, by document; each segment counts as many as it stands for."""
    weights = np.ones(len(tier.generations)) if tier.weights is None else tier.weights
    made, passed = np.array(tier.generations, np.float64), np.array(tier.accepted, np.float64)
    columns = (made, np.array(tier.thought_tokens), np.array(tier.cut), made, made - passed)
    return Totals.by_document(tier.documents, *(weights * column for column in columns))


def unlike_promised(tiers: Mapping[str, MeasuredTier], account: Iterable[Mapping[str, Any]]) -> list[str]:
    """What selection found to be otherwise than the pilot did, in words: one look, when the run is over.

    The share that is kept counts as if a segment had one candidate; gains have the account's own interval over
    documents. Taken together, tiers and kinds raise a false alarm in at most `FALSE_ALARMS` of all runs.

    Args:
        tiers: what the pilot measured.
        account: the select stage's, by tier.
    """
    level = 1 - FALSE_ALARMS / (2 * max(1, len(tiers)))
    times = _normal(level) / _normal(0.95)
    said = []
    for row in account:
        tier = tiers.get(row["tier"])
        if tier is None or not row["candidates"]:
            continue
        if not tier.generations:
            continue  # the plan gives it none of what was tried
        weights = np.ones(len(tier.generations)) if tier.weights is None else tier.weights
        generations, kept = np.array(tier.generations, np.float64), np.array(tier.kept, np.float64)
        _, place = np.unique(tier.documents, return_inverse=True)
        promised = mean_of_segments(
            np.bincount(place, weights * generations), np.bincount(place, weights * kept), level=level
        )
        share = row["kept"] / row["candidates"]
        segments = row["candidates"] * len(generations) / generations.sum()
        half = _normal(level) * math.sqrt(share * (1 - share) / segments)
        if promised.low is not None:
            unseen = max(promised.mean - promised.low, _unseen("cut", promised.mean, promised.documents, level))
            if abs(share - promised.mean) > math.hypot(half, unseen):
                said.append(
                    f"tier {row['tier']}: {share:.1%} of the traces were kept, and the pilot promised "
                    f"{promised.mean:.1%}: other segments are rejected, or otherwise"
                )
        gain = (row.get("gains") or {}).get("heldout")
        valued = np.array([nats is not None for nats in tier.heldout_nats])
        if gain is None or gain.get("low") is None or not valued.any():
            continue
        nats = np.array([nats or 0.0 for nats in tier.heldout_nats])
        found = mean_of_segments(
            np.bincount(place, weights * valued), np.bincount(place, weights * nats * valued), level=level
        )
        if found.low is None:
            continue
        half = times * (gain["high"] - gain["low"]) / 2
        if abs(gain["mean"] - found.mean) > math.hypot(half, found.mean - found.low):
            said.append(
                f"tier {row['tier']}: kept traces gain {gain['mean']:+.2f} nats a segment, and the pilot promised "
                f"{found.mean:+.2f}"
            )
    return said


def _normal(level: float) -> float:
    """How many standard deviations an interval of this level reaches to each side."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def _error(num_tiers: int) -> float:
    """How often one of the two intervals of a tier and kind may fail to hold the truth."""
    return FALSE_ALARMS / (2 * len(KINDS) * max(1, num_tiers))


def _sequence_half_width(sizes: np.ndarray, residuals: np.ndarray, error: float) -> float:
    """Half the width of the confidence sequence of a ratio of sums, at this look."""
    n = len(sizes)
    # The paper's choice of rho, by which the sequence is narrowest at `_NARROWEST_AT`.
    rho2 = (-2 * math.log(error) + math.log(1 - 2 * math.log(error))) / _NARROWEST_AT
    scale = math.sqrt(float(np.mean(residuals**2))) / float(sizes.mean())
    return scale * math.sqrt(2 * (n * rho2 + 1) / (n * n * rho2) * math.log(math.sqrt(n * rho2 + 1) / error))


def _unseen(kind: Kind, mean: float, documents: int, level: float) -> float:
    """Half a width that allows for what few documents haven't shown: none of them was cut, say, or all are as long.

    The exact interval of a share (Clopper and Pearson, 1934), with documents as its cases; of a length, the share of
    documents of another kind that may all have been missed, each as far off as the mean is long.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    if kind == "length":
        return mean * (1 - tail ** (1 / documents))
    cases = mean * documents
    low = float(betaincinv(cases, documents - cases + 1, tail)) if cases > 0 else 0.0
    high = float(betaincinv(cases + 1, documents - cases, 1 - tail)) if cases < documents else 1.0
    return max(mean - low, high - mean)
