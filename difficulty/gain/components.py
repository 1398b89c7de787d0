"""A linear model whose terms come in groups, each shrunk by as much as the data say: what the gain model is fitted by.

Every coefficient of group g is taken to be drawn from a normal distribution of variance τ_g, and what is observed to
have noise of variance σ². The variances are the most probable ones, all coefficients integrated out (empirical Bayes:
MacKay 1992, "Bayesian interpolation"). Beforehand ln τ_g is taken to be normal around a tenth of the spread of what is
observed: by likelihood alone, variances of a small pilot end at 0 though there is something to find. The coefficients'
posterior is normal. How likely the observations are, to be held against other groups of terms, is `evidence`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

TYPICAL_SHARE = 0.1
"""Standard deviation that a group's part is expected to have, in that of what is observed."""

_LOG_SPREAD = 2.0  # of ln τ around that: a factor of e in standard deviation is nothing unusual
_LOG_RANGE = (-18.0, 4.0)  # of ln τ, against the variance of what is observed
_LOG_NOISE = (-12.0, 2.0)


@dataclass(frozen=True)
class Posterior:
    """The coefficients after the observations.

    Attributes:
        mean: (columns,) float64.
        covariance: (columns, columns) float64.
        variances: (groups,) float64, τ of every group that has columns, ascending.
        noise: σ².
        evidence: ln of how likely the observations are under these groups, at the likeliest variances; but for a
            constant that is the same for other groups and the same observations.
    """

    mean: np.ndarray
    covariance: np.ndarray
    variances: np.ndarray
    noise: float
    evidence: float


def fit_components(rows: np.ndarray, observed: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> Posterior:
    """The posterior under the likeliest variances.

    Args:
        rows: (n, columns) float64.
        observed: (n,) float64.
        weights: (n,) float64, how many observations each counts as.
        groups: (columns,) int64, the group of each column; numbers may be left out.
    """
    scale = float(np.sqrt(np.average(observed**2, weights=weights))) or 1.0
    weighted = rows * weights[:, None]
    gram, moments = rows.T @ weighted, weighted.T @ (observed / scale)
    total, number = float(weights @ (observed / scale) ** 2), float(weights.sum())
    groups = np.unique(groups, return_inverse=True)[1]
    num_groups = int(groups.max()) + 1

    def solve(logs: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Minus the log likelihood, its gradient, and mean and covariance of the coefficients."""
        noise, roots = float(np.exp(logs[-1])), np.exp(logs[:-1] / 2)[groups]
        inner = gram * roots[:, None] * roots[None, :] / noise
        inner[np.diag_indices_from(inner)] += 1.0
        factor = np.linalg.cholesky(inner)
        inverse_factor = np.linalg.solve(factor, np.eye(len(factor)))
        inverse = inverse_factor.T @ inverse_factor
        standard = inverse @ (roots * moments) / noise
        mean, covariance = roots * standard, inverse * roots[:, None] * roots[None, :]
        explained = float(standard @ (roots * moments)) / noise
        loss = 0.5 * (number * logs[-1] + 2 * np.log(np.diag(factor)).sum() + total / noise - explained)
        by_column = standard**2 + np.diag(inverse) - 1.0
        gradient = -0.5 * np.bincount(groups, weights=by_column, minlength=num_groups)
        residual = total - 2 * float(mean @ moments) + float(mean @ gram @ mean) + float((gram * covariance).sum())
        return loss, np.append(gradient, 0.5 * (number - residual / noise)), mean, covariance

    typical = 2 * np.log(TYPICAL_SHARE)

    def penalised(logs: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient, _, _ = solve(logs)
        far = (logs[:-1] - typical) / _LOG_SPREAD
        return loss + 0.5 * float(far @ far), gradient + np.append(far / _LOG_SPREAD, 0.0)

    start = np.append(np.full(num_groups, typical), 0.0)
    bounds = [_LOG_RANGE] * num_groups + [_LOG_NOISE]
    found = minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=bounds)
    _, _, mean, covariance = solve(found.x)
    return Posterior(
        mean * scale,
        covariance * scale**2,
        np.exp(found.x[:-1]) * scale**2,
        float(np.exp(found.x[-1])) * scale**2,
        -float(found.fun),
    )
