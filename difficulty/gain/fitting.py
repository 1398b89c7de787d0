"""From a pilot that tried tiers at random to a model of gain, and to a report of how far it can be believed. Pure.

Every prediction that the report or the weight rests on is made for documents that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from difficulty.budget.tiers import TierConfig
from difficulty.gain.components import fit_components
from difficulty.gain.features import GROUPS, FeatureMap, fit_features
from difficulty.gain.model import GainModel
from difficulty.gain.report import LearningReport, make_report
from sharding.errors import MillError, RequestError
from sharding.records.types import ScoredSegment

FOLDS = 5
"""Parts of the documents; each is predicted from the others."""

FEWEST_DOCUMENTS = 20
"""With fewer there is nothing to learn from, and the prior stays alone."""


@dataclass(frozen=True, eq=False)
class Observations:
    """What a pilot measured: one entry for every tier that was tried on a segment.

    Attributes:
        segments: (n,) the segment; one that was tried with several tiers comes several times.
        documents: (n,) int64, a number for each document.
        tiers: (n,) name of the tier.
        gain_nats: (n,) float64, measured net gain: noisy, but right on average.
        chances: (n,) float64, with which this tier was tried on this segment, in (0, 1].
    """

    segments: Sequence[ScoredSegment]
    documents: np.ndarray
    tiers: Sequence[str]
    gain_nats: np.ndarray
    chances: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """What a pilot taught.

    Attributes:
        model: for workers.
        report: for people.
    """

    model: GainModel
    report: LearningReport


@dataclass(frozen=True, eq=False)
class _Sample:
    """Observations as arrays: features, tier by number, documents from 0, gains, and how many each counts as."""

    rows: np.ndarray
    tiers: np.ndarray
    documents: np.ndarray
    gains: np.ndarray
    weights: np.ndarray

    def where(self, chosen: np.ndarray) -> _Sample:
        return _Sample(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class _Learned:
    """(tiers, columns) coefficients and their (tiers, columns, columns) covariance."""

    coefficients: np.ndarray
    covariance: np.ndarray

    def of(self, sample: _Sample) -> np.ndarray:
        return np.einsum("nc,nc->n", sample.rows, self.coefficients[sample.tiers])


def fit(
    observations: Observations,
    corpus: Sequence[ScoredSegment],
    tiers: Sequence[TierConfig],
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    paying_nats: float = 1.0,
    seed: int = 0,
) -> Fitted:
    """Learns the gain of each thinking tier, and reports how far that goes.

    Args:
        observations: of the pilot, at least one for every thinking tier.
        corpus: segments drawn at random from the whole corpus, whether tried or not; a few thousand.
        tiers: the config's; those that skip are left out.
        decode: from token ids to their text, for the report.
        paying_nats: a gain per segment that would be worth its price, to say how large a pilot would show it.
        seed: of the division into folds.

    Raises:
        RequestError: a tier was never tried, or one was tried that the config doesn't have.
        MillError: there is nothing to learn from, or a number is none.
    """
    thinking = [tier for tier in tiers if not tier.skips]
    features = fit_features(corpus)
    sample = _sample(observations, features, [tier.name for tier in thinking])
    resolutions = np.array([tier.resolution for tier in thinking])
    ratios = resolutions / resolutions.mean() if resolutions.any() else np.ones(len(thinking))

    learned = _learn(sample, features, ratios)
    scale, scale_variance = _prior(sample, resolutions)
    predicted, prior_predicted = _out_of_fold(sample, features, ratios, resolutions, seed)
    weight = _weight(sample, predicted, prior_predicted)
    model = GainModel(
        tiers=tuple(tier.name for tier in thinking),
        features=features,
        coefficients=learned.coefficients,
        covariance=learned.covariance.astype(np.float32),
        prior=scale * resolutions,
        prior_variance=scale_variance * resolutions**2,
        weight=weight,
    )
    blended = weight * predicted + (1 - weight) * prior_predicted
    report = make_report(
        model,
        sample.tiers,
        sample.documents,
        sample.gains,
        sample.weights,
        blended,
        decode=decode,
        paying_nats=paying_nats,
    )
    return Fitted(model, report)


def _sample(observations: Observations, features: FeatureMap, names: Sequence[str]) -> _Sample:
    number = len(observations.segments)
    if number == 0:
        raise MillError("the pilot measured no gain, so there is nothing to learn from")
    gains = np.asarray(observations.gain_nats, np.float64)
    chances = np.asarray(observations.chances, np.float64)
    for what, values in {"gain": gains, "chance": chances}.items():
        if len(values) != number or not np.isfinite(values).all():
            raise MillError(
                f"the pilot's {what} of {number} observations: {len(values)} values, or some are no numbers"
            )
    if (chances <= 0).any() or (chances > 1).any():
        raise MillError(f"a tier was tried with chance {chances[(chances <= 0) | (chances > 1)][0]}; allowed: (0, 1]")
    unknown, missing = set(observations.tiers) - set(names), set(names) - set(observations.tiers)
    if unknown or missing:
        which = (
            f"tried tier {sorted(unknown)[0]}, which" if unknown else f"never tried tier {sorted(missing)[0]}, which"
        )
        has = "doesn't have" if unknown else "has"
        raise RequestError(f"the pilot {which} budget.tiers {has}: run `thoughtmill plan --pilot N --explore` anew")
    weights = 1 / chances
    # As many observations as unequal weights are worth (Kish 1965).
    weights *= weights.sum() / (weights**2).sum()
    return _Sample(
        features.rows(observations.segments),
        np.array([names.index(tier) for tier in observations.tiers]),
        np.unique(observations.documents, return_inverse=True)[1],
        gains,
        weights,
    )


def _learn(sample: _Sample, features: FeatureMap, ratios: np.ndarray) -> _Learned:
    """One part that all tiers share, in proportion to what they are expected to resolve, and one of each tier's own."""
    tiers, columns = len(ratios), sample.rows.shape[1]
    own = np.eye(tiers) if tiers > 1 else np.zeros((1, 0))
    parts = np.column_stack([ratios[:, None], own])  # (tiers, 1 + tiers): what each part counts for a tier
    rows = (parts[sample.tiers][:, :, None] * sample.rows[:, None, :]).reshape(len(sample.rows), -1)
    groups = np.concatenate([features.groups, *[features.groups + len(GROUPS)] * own.shape[1]])
    used, groups = np.unique(groups, return_inverse=True)
    found = fit_components(rows, sample.gains, sample.weights, groups, unshrunk=int(np.flatnonzero(used == 0)[0]))
    coefficients = parts @ found.mean.reshape(-1, columns)
    covariance = found.covariance.reshape(parts.shape[1], columns, parts.shape[1], columns)
    return _Learned(coefficients, np.einsum("ta,acbd,tb->tcd", parts, covariance, parts))


def _prior(sample: _Sample, resolutions: np.ndarray) -> tuple[float, float]:
    """Nats gained per resolved mean difficulty, and the variance of that.

    The scale is fitted, unshrunk; as thinking is taken to help or to do nothing, it is what is left of the estimate's
    normal distribution above 0. So the prior orders segments as the adaptive policy does, however small it is.
    """
    from scipy.special import log_ndtr

    mass = sample.rows[:, 0] * resolutions[sample.tiers]
    power = float(sample.weights @ mass**2)
    if power == 0:
        return 0.0, 0.0
    estimate = float(sample.weights @ (mass * sample.gains)) / power
    sums = np.bincount(sample.documents, weights=sample.weights * mass * (sample.gains - estimate * mass))
    error = max(float(np.sqrt((sums**2).sum())) / power, 1e-12)
    z = estimate / error
    hazard = float(np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(z)))
    return error * (z + hazard), error**2 * max(1 - hazard * (z + hazard), 0.0)


def _out_of_fold(
    sample: _Sample, features: FeatureMap, ratios: np.ndarray, resolutions: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the learned part and the prior say of each observation, from the documents of other folds: both (n,)."""
    documents = int(sample.documents.max()) + 1
    folds = np.random.default_rng([seed, documents]).permutation(documents) % min(FOLDS, max(documents, 2))
    fold_of = folds[sample.documents]
    predicted, prior = np.zeros(len(sample.gains)), np.zeros(len(sample.gains))
    for fold in range(int(folds.max()) + 1):
        held, rest = sample.where(fold_of == fold), sample.where(fold_of != fold)
        if len(rest.gains) and len(held.gains):
            scale, _ = _prior(rest, resolutions)
            prior[fold_of == fold] = scale * resolutions[held.tiers] * held.rows[:, 0]
            predicted[fold_of == fold] = _learn(rest, features, ratios).of(held)
    return predicted, prior


def _weight(sample: _Sample, predicted: np.ndarray, prior: np.ndarray) -> float:
    """How far what was learned is believed beyond the prior: the share that predicts best, times how sure that is."""
    if sample.documents.max() + 1 < FEWEST_DOCUMENTS:
        return 0.0
    beyond, left = predicted - prior, sample.gains - prior
    power = float(sample.weights @ beyond**2)
    if power <= 1e-12:
        return 0.0
    share = float(sample.weights @ (beyond * left)) / power
    sums = np.bincount(sample.documents, weights=sample.weights * beyond * (left - share * beyond))
    z = share * power / max(float(np.sqrt((sums**2).sum())), 1e-12)
    return min(share, 1.0) * z**2 / (1 + z**2) if share > 0 else 0.0
