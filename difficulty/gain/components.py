"""A linear model whose terms come in groups, each shrunk by as much as the data say: the arithmetic under the gain model.

Every coefficient of group g is taken to be drawn from a normal distribution of variance τ_g, and what is observed to
have noise of variance σ². The variances are those under which the observations are likeliest, all coefficients
integrated out (empirical Bayes, or type II maximum likelihood: MacKay 1992, "Bayesian interpolation"); a group that
tells nothing has variance near 0 and leaves the prediction. The coefficients' posterior is normal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNSHRUNK = 1e4
"""Prior variance of an unshrunk coefficient, in the variance of what is observed."""

_LOG_RANGE = (-18.0, 4.0)  # of a group's variance, against that of what is observed


@dataclass(frozen=True)
class Posterior:
    """The coefficients after the observations.

    Attributes:
        mean: (columns,) float64.
        covariance: (columns, columns) float64.
        variances: (groups,) float64, τ of every group; 0 for those that are unshrunk.
        noise: σ².
    """

    mean: np.ndarray
    covariance: np.ndarray
    variances: np.ndarray
    noise: float


def fit_components(
    rows: np.ndarray, observed: np.ndarray, weights: np.ndarray, groups: np.ndarray, unshrunk: int
) -> Posterior:
    """The posterior under the likeliest variances.

    Args:
        rows: (n, columns) float64.
        observed: (n,) float64.
        weights: (n,) float64, how many observations each counts as.
        groups: (columns,) int64 from 0, the group of each column.
        unshrunk: the group whose coefficients are left unshrunk.
    """
    from scipy.optimize import minimize

    scale = float(np.sqrt(np.average(observed**2, weights=weights))) or 1.0
    weighted = rows * weights[:, None]
    gram, moments = rows.T @ weighted, weighted.T @ (observed / scale)
    total, number = float(weights @ (observed / scale) ** 2), float(weights.sum())
    num_groups = int(groups.max()) + 1
    free = np.arange(num_groups) != unshrunk

    def variances_of(logs: np.ndarray) -> np.ndarray:
        variances = np.full(num_groups, UNSHRUNK)
        variances[free] = np.exp(logs[:-1])
        return variances

    def solve(logs: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Minus the log likelihood, its gradient, and mean and covariance of the coefficients."""
        noise, variances = float(np.exp(logs[-1])), variances_of(logs)
        roots = np.sqrt(variances)[groups]
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
        gradient = -0.5 * np.bincount(groups, weights=by_column, minlength=num_groups)[free]
        residual = total - 2 * float(mean @ moments) + float(mean @ gram @ mean) + float((gram * covariance).sum())
        return loss, np.append(gradient, 0.5 * (number - residual / noise)), mean, covariance

    start = np.append(np.full(int(free.sum()), -3.0), 0.0)
    bounds = [_LOG_RANGE] * int(free.sum()) + [(-12.0, 2.0)]
    found = minimize(lambda logs: solve(logs)[:2], start, jac=True, method="L-BFGS-B", bounds=bounds)
    _, _, mean, covariance = solve(found.x)
    variances = variances_of(found.x) * scale**2
    variances[unshrunk] = 0.0
    return Posterior(mean * scale, covariance * scale**2, variances, float(np.exp(found.x[-1])) * scale**2)
