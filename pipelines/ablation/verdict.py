"""The verdict: tokens to a target, and how many times fewer one arm needs than another. Pure.

A student that never reaches the target is censored at the tokens it was trained on: its ratio is then a bound.
Intervals are of a paired bootstrap over seeds, since students of one seed share their first weights and the order of
their rows. A bootstrap of few is too narrow: its deviations are those of a sample, and its quantiles those of a normal.
So they are stretched to those of Student's t (arXiv 1411.5279 does the same to their level). docs/ablation.md has the
coverage that was measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

from pipelines.ablation.curves import Curve
from sharding.errors import MillError
from sharding.hashing import seed_of
from sharding.storage.json_files import Number

LEVEL = 0.95
_EXACT_SEEDS = 6
"""Up to so many seeds, all their resamples are looked at, 46,656 at most."""
_RESAMPLES = 10_000

Bound = Literal["", "at least", "at most", "unknown"]


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """How far the students of an arm came.

    Attributes:
        arm: which.
        tokens: of each seed, the training tokens to its target; None where it was not reached.
        mean_tokens: their geometric mean; None where a seed has not reached its target.
        last: of each seed, the score at the end.
    """

    arm: str
    tokens: dict[str, Number | None]
    mean_tokens: Number | None
    last: dict[str, Number]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times fewer training tokens an arm needs to the target than another does.

    Attributes:
        arm, other: tokens of `other` over tokens of `arm`; more than 1 where `arm` needs fewer.
        ratio: the geometric mean over seeds; None where it can't be told.
        bound: "" where all students reached the target; "at least" where some of `other` did not, "at most" where some
            of `arm` did not, "unknown" where neither of a seed did, or a target was reached before training.
        low, high: the ends of a 95% interval over seeds; None where there is none: of one seed, or beyond a bound.
        seeds: how many pairs it comes from.
    """

    arm: str
    other: str
    ratio: Number | None
    bound: Bound
    low: Number | None
    high: Number | None
    seeds: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an ablation came to.

    Attributes:
        metric: the score that is looked at.
        targets: of each seed, what is to be reached.
        reached: of each arm.
        ratios: of each arm with the baseline, and of each pair of the others.
    """

    metric: str
    targets: dict[str, Number]
    reached: Annotated[list[Reached], msgspec.Meta(max_length=1000)]
    ratios: Annotated[list[Ratio], msgspec.Meta(max_length=100_000)]


def tokens_to_target(values: Sequence[tuple[int, float]], target: float) -> float | None:
    """The training tokens at which a curve first reaches a score, straight lines between its points.

    Args:
        values: (training tokens, score), ascending in tokens.
        target: the score.

    Returns:
        The tokens; those of the first point where that has it already; None where no point does.
    """
    before: tuple[int, float] | None = None
    for tokens, value in values:
        if value >= target:
            if before is None:
                return float(tokens)
            share = (target - before[1]) / (value - before[1])
            return before[0] + share * (tokens - before[0])
        before = tokens, value
    return None


def judge(curves: Sequence[Curve], metric: str, value: float | None, baseline: str) -> Verdict:
    """The verdict on the curves of all arms and seeds.

    Args:
        curves: of the same seeds for every arm.
        metric: the score to look at.
        value: what is to be reached; None: what the baseline has at its end, seed by seed.
        baseline: the arm that others are compared with first.

    Raises:
        MillError: a curve lacks the score, or its baseline.
    """
    by_arm: dict[str, dict[int, Curve]] = {}
    for curve in curves:
        by_arm.setdefault(curve.arm, {})[curve.seed] = curve
    if baseline not in by_arm:
        raise MillError(f"ablation.baseline: {baseline!r} has no curve")
    seeds = sorted(by_arm[baseline])
    targets = {seed: by_arm[baseline][seed].values(metric)[-1][1] if value is None else value for seed in seeds}
    tokens = {
        arm: {seed: tokens_to_target(of_seed[seed].values(metric), targets[seed]) for seed in seeds}
        for arm, of_seed in by_arm.items()
    }
    reached = [
        Reached(
            arm=arm,
            tokens={str(seed): found for seed, found in of_seed.items()},
            mean_tokens=_geometric_mean(list(of_seed.values())),
            last={str(seed): by_arm[arm][seed].values(metric)[-1][1] for seed in seeds},
        )
        for arm, of_seed in tokens.items()
    ]
    trained = {arm: min(curve.tokens for curve in of_seed.values()) for arm, of_seed in by_arm.items()}
    first = [(arm, baseline) for arm in by_arm if arm != baseline]
    others = [pair for pair in itertools.combinations(by_arm, 2) if baseline not in pair]
    ratios = [
        ratio_of(
            arm, other, [tokens[arm][seed] for seed in seeds], [tokens[other][seed] for seed in seeds], trained[arm]
        )
        for arm, other in [*first, *((later, earlier) for earlier, later in others)]
    ]
    return Verdict(
        metric=metric,
        targets={str(seed): target for seed, target in targets.items()},
        reached=reached,
        ratios=ratios,
    )


def ratio_of(
    arm: str, other: str, of_arm: Sequence[float | None], of_other: Sequence[float | None], trained: int
) -> Ratio:
    """How many times fewer tokens an arm needs than another.

    Args:
        arm, other: their names.
        of_arm, of_other: training tokens to the target, seed by seed; None where it was not reached.
        trained: tokens that each was trained on: where a target was not reached, it takes more.
    """
    pairs = list(zip(of_arm, of_other, strict=True))
    neither = any(ours is None and theirs is None for ours, theirs in pairs)
    bounds = {"at most" for ours, _ in pairs if ours is None} | {"at least" for _, theirs in pairs if theirs is None}
    if neither or len(bounds) > 1 or any(0 in pair for pair in pairs):
        return Ratio(arm=arm, other=other, ratio=None, bound="unknown", low=None, high=None, seeds=len(pairs))
    bound: Bound = bounds.pop() if bounds else ""  # type: ignore[assignment]
    logs = np.array([math.log(theirs or trained) - math.log(ours or trained) for ours, theirs in pairs])
    interval = paired_interval(logs, f"{arm}/{other}")
    low, high = (None, None) if interval is None else map(math.exp, interval)
    return Ratio(
        arm=arm,
        other=other,
        ratio=math.exp(float(logs.mean())),
        bound=bound,
        # Of a bound, only the end on its own side says something of the truth.
        low=None if bound == "at most" else low,
        high=None if bound == "at least" else high,
        seeds=len(pairs),
    )


def paired_interval(differences: np.ndarray, key: str) -> tuple[float, float] | None:
    """A 95% interval for the mean of paired differences, by a bootstrap over pairs that is stretched for few.

    Args:
        differences: (pairs,) float64.
        key: of what is drawn, where there are too many resamples to look at all.

    Returns:
        Its ends; None of fewer than two pairs.
    """
    return bootstrap_interval(len(differences), lambda weights: weights @ differences, key)


def bootstrap_interval(
    seeds: int, statistic: Callable[[np.ndarray], np.ndarray], key: str
) -> tuple[float, float] | None:
    """A 95% interval over seeds for a number that is computed from all of them.

    Args:
        seeds: how many there are.
        statistic: (resamples, seeds) float64 weights, of sum 1 each → (resamples,) the number under those weights.
        key: of what is drawn.

    Returns:
        Its ends; None of fewer than two seeds.
    """
    if seeds < 2:
        return None
    weights = resamples(seeds, key)
    plain = float(statistic(np.full((1, seeds), 1 / seeds))[0])
    low, high = np.quantile(statistic(weights), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    stretch = stretched(seeds)
    return plain + (low - plain) * stretch, plain + (high - plain) * stretch


def resamples(seeds: int, key: str) -> np.ndarray:
    """(resamples, seeds) float64, the weight of each seed in each resample; all there are of few seeds."""
    if seeds <= _EXACT_SEEDS:
        drawn = np.array(list(itertools.product(range(seeds), repeat=seeds)))
    else:
        drawn = np.random.default_rng(seed_of(key)).integers(0, seeds, (_RESAMPLES, seeds))
    counts = (drawn[:, :, None] == np.arange(seeds)).sum(axis=1)
    return counts / seeds


def stretched(seeds: int) -> float:
    """By how much the deviations of a bootstrap over few are too small."""
    from scipy.special import ndtri, stdtrit

    of_t, of_normal = stdtrit(seeds - 1, (1 + LEVEL) / 2), ndtri((1 + LEVEL) / 2)
    return float(math.sqrt(seeds / (seeds - 1)) * of_t / of_normal)


def _geometric_mean(tokens: Sequence[float | None]) -> float | None:
    reached = [found for found in tokens if found]
    if len(reached) < len(tokens):
        return None
    return math.exp(math.fsum(map(math.log, reached)) / len(reached))


def in_words(ratio: Ratio) -> str:
    """A ratio with its interval: "2.1 (1.8 to 2.4)", "at least 3.2 (2.9 or more)", or that it can't be told."""
    if ratio.ratio is None:
        return "can't be told"
    said = f"{ratio.bound} {ratio.ratio:.2f}".strip()
    if ratio.low is not None and ratio.high is not None:
        return f"{said} ({ratio.low:.2f} to {ratio.high:.2f})"
    if ratio.low is not None:
        return f"{said} ({ratio.low:.2f} or more)"
    if ratio.high is not None:
        return f"{said} ({ratio.high:.2f} or less)"
    return f"{said} (one seed: no interval)"


def find(ratios: Sequence[Ratio], arm: str, other: str) -> Ratio | None:
    """The ratio of two arms, whichever way round it was made."""
    for one in ratios:
        if (one.arm, one.other) == (arm, other):
            return one
        if (one.arm, one.other) == (other, arm):
            turned: Mapping[Bound, Bound] = {"at least": "at most", "at most": "at least"}
            low, high, ratio = (1 / end if end else None for end in (one.high, one.low, one.ratio))
            return Ratio(
                arm=arm, other=other, ratio=ratio, bound=turned.get(one.bound, one.bound), low=low, high=high,
                seeds=one.seeds,
            )  # fmt: skip
    return None
