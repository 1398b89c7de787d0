"""From a pilot that tried tiers at random to a model of gain, and to a report of how far it can be believed. Pure.

Every prediction that the report or the weight rests on is made for documents that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from difficulty.budget.tiers import TierConfig
from difficulty.gain.components import fit_components
from difficulty.gain.features import GROUPS, FeatureMap, fit_features
from difficulty.gain.model import GainModel
from difficulty.gain.report import LearningReport, make_report
from difficulty.gain.tried import Tried
from sharding.errors import MillError, RequestError
from sharding.records.types import ScoredSegment

FOLDS = 5
"""Parts of the documents; each is predicted from the others."""

PRIOR = ("difficulty",)
"""Terms of the gain where nothing decides but difficulty."""

_LEARNED = ("entropy", "numbers", "kind", "source")


def _and_difficulty(*names: str) -> tuple[str, ...]:
    return tuple(f"{name} and difficulty" for name in names)


HYPOTHESES: tuple[tuple[tuple[str, ...], float], ...] = (
    *((("level", name), 1 / 3) for name in _LEARNED),
    *((("difficulty", *_and_difficulty(name)), 1 / 3) for name in _LEARNED),
    *((("level", "difficulty", name, *_and_difficulty(name)), 1 / 3) for name in _LEARNED),
    (("level", "difficulty", *_LEARNED, *_and_difficulty(*_LEARNED)), 1.0),
)
"""The terms that the gain may have, and how likely that is beforehand, in that of the prior alone: it hangs on one of
what can be learned, or on all of it; whatever the difficulty, in proportion to it, or something of both. They are
weighed by how likely each makes the observations. The prior could be taken for likelier, but the mistakes cost
differently: learning where difficulty is right loses a hundredth of the gain, staying with difficulty where it is wrong
up to half."""

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
    # On one thread: the matrices are small, and the result is then the same whatever the number of cores.
    with threadpool_limits(limits=1):
        thinking = [tier for tier in tiers if not tier.skips]
        features = fit_features(corpus)
        sample = _sample(observations, features, [tier.name for tier in thinking])
        model = _model(sample, features, thinking)
        tried = replace(sample, predicted=_out_of_fold(sample, features, thinking, seed))
        report = make_report(model, tried, decode=decode, paying_nats=paying_nats)
        return Fitted(model, report)


def fit_model(observations: Observations, features: FeatureMap, tiers: Sequence[TierConfig]) -> GainModel:
    """The model of `fit` alone, for who needs no report.

    Args:
        observations: as in `fit`.
        features: of the corpus.
        tiers: as in `fit`.

    Raises: as `fit`.
    """
    with threadpool_limits(limits=1):
        thinking = [tier for tier in tiers if not tier.skips]
        return _model(_sample(observations, features, [tier.name for tier in thinking]), features, thinking)


def _sample(observations: Observations, features: FeatureMap, names: Sequence[str]) -> Tried:
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
    tiers = np.array([names.index(tier) for tier in observations.tiers])
    documents = np.unique(observations.documents, return_inverse=True)[1]
    return Tried(
        features.rows(observations.segments), tiers, documents, gains, weights, predicted=np.full(number, np.nan)
    )


def _repeats(gains: np.ndarray, tiers: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(n,) how many observations of its document say what one alone would (design effect: Kish 1965).

    Tiers that are tried on one segment are measured on the same continuation, and the segments of a document resemble
    each other. 1 + (m - 1) rho for a document of m observations; rho, their correlation, is estimated over all pairs.
    """
    apart = gains - (np.bincount(tiers, gains) / np.maximum(np.bincount(tiers), 1))[tiers]
    numbers, sums = np.bincount(documents), np.bincount(documents, apart)
    pairs = float((numbers * (numbers - 1)).sum())
    power = float((apart**2).mean())
    if pairs == 0 or power == 0:
        return np.ones(len(gains))
    rho = float((sums**2 - np.bincount(documents, apart**2)).sum()) / pairs / power
    return 1 + (numbers[documents] - 1) * min(max(rho, 0.0), 1.0)


def _model(sample: Tried, features: FeatureMap, tiers: Sequence[TierConfig]) -> GainModel:
    """The model from these observations alone.

    Its terms come in parts: one that all tiers share, in proportion to what they are expected to resolve, and one of
    each tier's own. Every try counts the same, whatever its chance: what decides the chance is among what the model
    looks at, so it needs no weights to be right, and without them it is surer.
    """
    resolutions = np.array([tier.resolution for tier in tiers])
    ratios = resolutions / resolutions.mean() if resolutions.any() else np.ones(len(tiers))
    own = np.eye(len(tiers)) if len(tiers) > 1 else np.zeros((1, 0))
    parts = np.column_stack([ratios[:, None], own])  # (tiers, parts): what each part counts for a tier
    rows = (parts[sample.tiers][:, :, None] * sample.rows[:, None, :]).reshape(len(sample.rows), -1)
    groups = np.concatenate([features.groups + part * len(GROUPS) for part in (0, *[1] * own.shape[1])])
    shape = (parts.shape[1], sample.rows.shape[1])
    weights = 1 / _repeats(sample.gains, sample.tiers, sample.documents)
    found, evidence = [], []
    for names, _ in HYPOTHESES:
        columns = _columns(groups, names)
        posterior = fit_components(rows[:, columns], sample.gains, weights, groups[columns])
        coefficients, covariance = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        coefficients[columns], covariance[np.ix_(columns, columns)] = posterior.mean, posterior.covariance
        found.append(
            (
                parts @ coefficients.reshape(shape),
                np.einsum("ta,acbd,tb->tcd", parts, covariance.reshape(shape * 2), parts),
            )
        )
        evidence.append(posterior.evidence)
    prior = _columns(groups, PRIOR)
    alone = fit_components(rows[:, prior], sample.gains, weights, groups[prior]).evidence
    most = max(*evidence, alone)
    odds = np.array([beforehand for _, beforehand in HYPOTHESES]) * np.exp(np.array(evidence) - most)
    learned = float(odds.sum())
    shares = odds / learned
    coefficients = sum(share * own for share, (own, _) in zip(shares, found, strict=True))
    covariance = np.zeros((len(tiers), shape[1], shape[1]))
    for share, (own_coefficients, own_covariance) in zip(shares, found, strict=True):
        apart = own_coefficients - coefficients  # hypotheses that disagree are not known to be right
        covariance += share * (own_covariance + apart[:, :, None] * apart[:, None, :])
    scale, scale_variance = _prior(sample, resolutions)
    enough = len(np.unique(sample.documents)) >= FEWEST_DOCUMENTS
    return GainModel(
        tiers=tuple(tier.name for tier in tiers),
        features=features,
        coefficients=np.asarray(coefficients),
        covariance=covariance.astype(np.float32),
        prior=scale * resolutions,
        prior_variance=scale_variance * resolutions**2,
        weight=learned / (learned + float(np.exp(alone - most))) if enough else 0.0,
    )


def _columns(groups: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Places of the columns of some groups, whatever the part."""
    return np.flatnonzero(np.isin(groups % len(GROUPS), [GROUPS.index(name) for name in names]))


def _prior(sample: Tried, resolutions: np.ndarray) -> tuple[float, float]:
    """Nats gained per resolved mean difficulty, and the variance of that.

    The scale is fitted, unshrunk; as thinking is taken to help or to do nothing, it is what is left of the estimate's
    normal distribution above 0. So the prior orders segments as the adaptive policy does, however small it is.
    """
    from scipy.special import log_ndtr

    mass = sample.rows[:, 0] * resolutions[sample.tiers]
    power = float(mass @ mass)
    if power == 0:  # nothing is expected to resolve anything
        return 0.0, 0.0
    estimate = float(mass @ sample.gains) / power
    sums = np.bincount(sample.documents, weights=mass * (sample.gains - estimate * mass))
    error = max(float(np.sqrt((sums**2).sum())) / power, 1e-12)
    z = estimate / error
    hazard = float(np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(z)))
    return error * (z + hazard), error**2 * max(1 - hazard * (z + hazard), 0.0)


def _out_of_fold(sample: Tried, features: FeatureMap, tiers: Sequence[TierConfig], seed: int) -> np.ndarray:
    """(n,) what a model from the documents of the other folds says of each observation."""
    documents = int(sample.documents.max()) + 1
    folds = np.random.default_rng([seed, documents]).permutation(documents) % FOLDS
    fold_of = folds[sample.documents]
    predicted = np.zeros(len(sample.gains))
    for fold in range(FOLDS):
        held, rest = fold_of == fold, fold_of != fold
        if held.any() and rest.any():
            model = _model(sample.where(rest), features, tiers)
            predicted[held] = model.of_rows(sample.rows[held]).mean[np.arange(held.sum()), sample.tiers[held]]
    return predicted
