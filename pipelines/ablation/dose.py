"""How much thinking pays: scores at the end against doses of thoughts, and where more no longer helps. Pure.

The fit is a linear plateau (linear response and plateau, as for fertilisers): a straight line up to a dose, level from
there on. That dose, found by least squares, is what more than doesn't pay; its interval is a bootstrap over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.ablation.config import AblationConfig
from pipelines.ablation.curves import Curve
from pipelines.ablation.result import Dose
from pipelines.ablation.verdict import LEVEL, resamples, stretched
from sharding.storage.manifest import Manifest

PREFIX = "dose_"
_GRID = 200


def dose_of(curves: Sequence[Curve], packed: Mapping[str, Manifest], section: AblationConfig) -> Dose | None:
    """The dose curve of the arms whose names begin with `dose_`, from the baseline up; None of fewer than two.

    Args:
        curves: of all arms and seeds.
        packed: the pack manifest of each arm.
        section: the `ablation` section.
    """
    names = [name for name in packed if name.startswith(PREFIX)]
    if len(names) < 2:
        return None
    names.append(section.baseline)
    doses = {name: dose_in(packed[name].counts) for name in dict.fromkeys(names)}
    ordered = sorted(doses, key=lambda name: (doses[name], name))
    last = {(curve.arm, curve.seed): curve.values(section.target.metric)[-1][1] for curve in curves}
    scores = np.array([[last[name, seed] for name in ordered] for seed in section.seeds])
    return fit(ordered, np.array([doses[name] for name in ordered]), scores)


def dose_in(counts: Mapping[str, int]) -> float:
    """Thought tokens for each source token, from the counts of a pack manifest."""
    return counts.get("tokens_thought", 0) / max(1, counts.get("tokens_source", 0))


def fit(names: Sequence[str], doses: np.ndarray, scores: np.ndarray) -> Dose:
    """The dose curve.

    Args:
        names: of the arms.
        doses: (arms,) float64, ascending.
        scores: (seeds, arms) float64, at the end; the higher, the better.
    """
    means = scores.mean(axis=0)
    enough, slope = plateau(doses, means)
    ends: list[float] = []
    if len(scores) > 1:
        drawn = [plateau(doses, weights @ scores)[0] for weights in _few(resamples(len(scores), "/".join(names)))]
        found = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = np.clip(enough + (found - enough) * stretched(len(scores)), doses[0], doses[-1]).tolist()
    beyond = float(doses[-1])
    return Dose(
        doses=dict(zip(names, doses.tolist(), strict=True)),
        scores=dict(zip(names, means.tolist(), strict=True)),
        monotone=bool((np.diff(means) >= 0).all()),
        enough=enough if enough < beyond else None,
        low=ends[0] if ends and ends[0] < beyond else None,
        high=ends[1] if ends and ends[1] < beyond else None,
        slope=slope,
    )


def plateau(doses: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """Where the line becomes level, and its slope before.

    Args:
        doses: (arms,) float64, ascending.
        means: (arms,) float64.

    Returns:
        The dose, from the second smallest to the largest: there, more may still pay. The smallest, and slope 0, where
        no line that rises fits better than a level one.
    """
    joints = np.linspace(doses[1], doses[-1], _GRID)
    lines = np.minimum(doses, joints[:, None])
    lines = lines - lines.mean(axis=1, keepdims=True)
    deviations = means - means.mean()
    slopes = lines @ deviations / (lines**2).sum(axis=1)
    errors = ((deviations - slopes[:, None] * lines) ** 2).sum(axis=1)
    errors[slopes <= 0] = np.inf
    best = int(errors.argmin())
    if errors[best] >= (deviations**2).sum() * (1 - 1e-9):
        return float(doses[0]), 0.0
    return float(joints[best]), float(slopes[best])


def _few(weights: np.ndarray) -> np.ndarray:
    """At most some hundreds of resamples: a fit takes milliseconds."""
    return weights[:: max(1, len(weights) // 400)]
