"""What chance makes of a plan's numbers: samples drawn anew, totals of what only a few segments have shown. Pure.

An array of numbers is (1 + DRAWS,) float64: first the estimate, then what it might as well be. benchmarks/intervals.py
measures how often an interval holds the truth.
"""

from __future__ import annotations

import math

import numpy as np

DRAWS = 200
INTERVAL = (0.05, 0.95)
"""Between these quantiles of the draws lies a 90% interval."""

MIN_MEASURED = 2
"""Segments that a tier needs in the pilot for its measurements to count."""

_EVEN = (np.arange(DRAWS) + 0.5) / DRAWS
_MANY = 2_000
_LARGEST_VARIANCE = 16.0
"""Of how often one of very few documents counts: beyond that no draw would be left with one."""


def estimate(values: np.ndarray, *, resampled: bool = False) -> dict[str, float]:
    """An array as its estimate and 90% interval.

    Splits by a threshold are off on average when they are estimated from a few documents with heavy tails, and a sample
    of the sample is off once more. Their interval reaches to where the draws are and, mirrored, to where they would be
    without being off: twice the way from their median to the estimate.

    Args:
        resampled: the draws are of `resamplings`.
    """
    value, draws = float(values[0]), values[1:]
    low, high = (float(bound) for bound in np.quantile(draws, INTERVAL))
    if resampled:
        off = 2 * (value - float(np.median(draws)))
        least = min(float(draws.min()), 0.0)  # what can't be negative stays so
        low, high = min(low, max(low + off, least)), max(high, high + off)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def resamplings(clusters: np.ndarray, chances: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """How much each thing that was drawn counts: ones, then in each draw as chance would have it.

    A bootstrap for unequal chances: each cluster counts by a gamma variate of mean 1, never quite 0 as that of whole
    numbers would be. Its variance is that of one among so many, without the share that was sure to be drawn, and in
    each draw another, by chi squared: so the spread of a mean is Student's t.

    Args:
        clusters: (n,) what was drawn together.
        chances: (n,) with which it was drawn; 1 never varies.

    Returns:
        (1 + DRAWS, n) float64.
    """
    _, first, cluster_of = np.unique(clusters, return_index=True, return_inverse=True)
    unsure = 1 - chances[first]
    varies = np.flatnonzero(unsure > 0)
    counts = np.ones((1 + DRAWS, len(first)))
    if len(varies):
        freedom = max(len(varies) - 1, 1)
        inflation = (1 + 1 / freedom) * freedom / random.chisquare(freedom, (DRAWS, 1))
        shape = 1 / np.minimum(inflation * unsure[varies], _LARGEST_VARIANCE)
        counts[1:, varies] = random.gamma(shape) / shape
    return counts[:, cluster_of]


# --- what a few measured segments say of the others -------------------------------------------------------------------


def total(
    measured: np.ndarray,
    documents: np.ndarray,
    totals: np.ndarray,
    random: np.random.Generator,
    *,
    least: float,
    most: float,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The sum over so many of what was measured on a few: those as they are, the others like them.

    The mean of the others is uncertain by the few that were measured and by what may not have been among them: Gaffke's
    bounds for numbers in a known range (2005; Learned-Miller and Thomas 2019), which for a share are those of Clopper
    and Pearson. Below the middle the draws are from the one, above from the other. The sum varies around it.

    Args:
        measured, documents: (n,) a number for each segment, and which document it is of.
        totals: an array, how many there are, those measured included.
        least, most: the range.
        weights: (n,) for how many of the others each stands, but for a factor; None: all for as many.
    """
    size = len(measured)
    shares = _shares(measured, weights)
    mean = float(shares @ measured)
    independent = effective_number(measured, documents, weights)
    parts = random.dirichlet(np.append(shares * independent, 1.0), _MANY)
    seen = parts[:, :-1] @ measured
    low, high = (np.quantile(seen + parts[:, -1] * bound, _EVEN) for bound in (least, most))
    means = random.permutation(np.where(_EVEN < 0.5, low, high))
    # All of a tier may have been measured, or more than the tier gets by now.
    others = np.maximum(totals - size, 0.0)
    # Within the range, the spread of a number shrinks with its distance from the ends, as that of a share does.
    widest = (mean - least) * (most - mean)
    relative = math.sqrt(_variance(measured, shares) / widest) if widest > 0 else 1.0
    spread = relative * np.sqrt(np.maximum((means - least) * (most - means), 0.0))
    drawn = others[1:] * means + random.standard_normal(DRAWS) * spread * np.sqrt(others[1:] * size / independent)
    drawn = np.clip(drawn, others[1:] * least, others[1:] * most)
    return np.asarray(np.minimum(totals, size) * mean + np.append(others[0] * mean, drawn))


def effective_number(measured: np.ndarray, documents: np.ndarray, weights: np.ndarray | None = None) -> float:
    """So many independent numbers say as much about the mean as these, of which some are of one document and alike.

    The variance between documents tells (Korn and Graubard 1998). Where all are equal there is none, and a document is
    taken for one number.
    """
    _, document_of = np.unique(documents, return_inverse=True)
    shares = _shares(measured, weights)
    of_each = np.bincount(document_of, shares)
    variance = _variance(measured, shares)
    if np.ptp(measured) == 0 or len(of_each) == 1:
        return float(1 / (of_each @ of_each))
    between = standard_error(measured, documents, weights) ** 2
    return float(min(variance / between, len(measured))) if between else float(len(measured))


def mean(
    measured: np.ndarray,
    documents: np.ndarray,
    random: np.random.Generator,
    weights: np.ndarray | None = None,
    *,
    of: float = math.inf,
) -> np.ndarray | None:
    """The mean of few numbers, uncertain by Student's t over documents; None of fewer than `MIN_MEASURED`.

    Nothing is added to it, so its draws needn't be independent: evenly spaced quantiles give a steadier interval.

    Args:
        weights: see `total`.
        of: of so many other numbers of the kind the mean is forecast, which vary as well; infinite: of the kind itself.
    """
    if len(measured) < MIN_MEASURED:
        return None
    freedom = max(len(np.unique(documents)) - 1, 1)
    student = np.quantile(random.standard_t(freedom, _MANY), _EVEN)
    shares = _shares(measured, weights)
    middle = float(shares @ measured)
    size = len(measured)
    alone = math.sqrt(size / (size - 1) * float(shares**2 @ (measured - middle) ** 2))
    error = max(standard_error(measured, documents, weights), alone)
    error = math.hypot(error, math.sqrt(_variance(measured, shares) / max(of, 1.0)))
    return middle + np.append(0.0, error * student)


def standard_error(measured: np.ndarray, documents: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of the mean, as documents differ; 0 for a single document."""
    _, document_of = np.unique(documents, return_inverse=True)
    shares = _shares(measured, weights)
    of_each = np.bincount(document_of, shares * (measured - shares @ measured))
    return math.sqrt(len(of_each) / max(len(of_each) - 1, 1) * float(of_each @ of_each))


def _shares(measured: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """(n,) what each number counts for in the mean."""
    counts = np.ones(len(measured)) if weights is None else weights
    return counts / counts.sum()


def _variance(measured: np.ndarray, shares: np.ndarray) -> float:
    return float(shares @ (measured - shares @ measured) ** 2) if np.ptp(measured) > 0 else 0.0
