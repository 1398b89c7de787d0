"""What a pilot taught, in figures and words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from difficulty.gain.model import GainModel


@dataclass(frozen=True)
class GroupGain:
    """Mean measured gain of some observations, with its 90% interval over documents.

    Attributes:
        name: of the tier, or of the tenth of predicted gain, "1" the highest.
        observations, documents: how many there are.
        predicted_nats: mean of what was predicted without having seen the document.
        mean_nats, low_nats, high_nats: measured.
    """

    name: str
    observations: int
    documents: int
    predicted_nats: float
    mean_nats: float
    low_nats: float
    high_nats: float


@dataclass(frozen=True)
class LearningReport:
    """What a pilot taught.

    Attributes:
        tiers: the gain of every tier.
        deciles: the gain by tenth of predicted gain, the highest first.
        weight: how far the learned part is believed against the prior, from 0 to 1.
        promises: whether any tier shows a gain.
        paying_nats: a gain per segment that would be worth its price.
        needed_observations: how many of a tier would show that gain, four times out of five.
        words: all that in sentences.
    """

    tiers: tuple[GroupGain, ...]
    deciles: tuple[GroupGain, ...]
    weight: float
    promises: bool
    paying_nats: float
    needed_observations: int
    words: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def make_report(
    model: GainModel,
    tiers: np.ndarray,
    documents: np.ndarray,
    gains: np.ndarray,
    weights: np.ndarray,
    predicted: np.ndarray,
    *,
    decode: Callable[[Sequence[int]], str] | None,
    paying_nats: float,
) -> LearningReport:
    """The report on observations and what was predicted of them out of fold; all arrays (n,)."""
    by_tier = tuple(
        _gain(name, documents[tiers == t], gains[tiers == t], weights[tiers == t], predicted[tiers == t])
        for t, name in enumerate(model.tiers)
    )
    parts = np.array_split(np.argsort(-predicted, kind="stable"), 10)
    deciles = tuple(
        _gain(str(i + 1), documents[p], gains[p], weights[p], predicted[p]) for i, p in enumerate(parts) if len(p)
    )
    promises = any(tier.low_nats > 0 for tier in by_tier)
    needed = math.ceil((1.645 + 0.842) ** 2 * float(np.var(gains)) / paying_nats**2)
    words = () if promises else ("don't buy: no tier shows a gain",)
    return LearningReport(by_tier, deciles, model.weight, promises, paying_nats, needed, words)


def _gain(name: str, documents: np.ndarray, gains: np.ndarray, weights: np.ndarray, predicted: np.ndarray) -> GroupGain:
    mean = float(np.average(gains, weights=weights))
    sums = np.bincount(documents, weights=weights * (gains - mean))
    error = float(np.sqrt((sums**2).sum())) / float(weights.sum())
    return GroupGain(
        name,
        len(gains),
        len(np.unique(documents)),
        float(np.average(predicted, weights=weights)),
        mean,
        mean - 1.645 * error,
        mean + 1.645 * error,
    )
