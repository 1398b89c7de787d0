"""Coverage of an ablation's intervals, nominally 95%: `python -m benchmarks.ablation_intervals`.

Ratios of tokens, by seeds and by how they vary (beside it the plain percentile bootstrap); the low end of a ratio whose
baseline never reaches the target; the dose beyond which more doesn't pay; and the rank correlation of the influence
check where the truth is 0.
"""

from __future__ import annotations

import json

import numpy as np

from pipelines.ablation.dose import fit
from pipelines.ablation.influence import correlation_interval
from pipelines.ablation.verdict import paired_interval, ratio_of, stretched

DRAWS = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "skewed": lambda rng, n: rng.exponential(1, n) - 1,
    "heavy tails": lambda rng, n: rng.standard_t(3, n),
}
TRIALS = {2: 2000, 3: 2000, 5: 800, 10: 200}


def ratios(rng: np.random.Generator) -> dict[str, dict[str, tuple[float, float]]]:
    """By distribution and seeds: coverage of the interval, and of the percentile bootstrap."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, draw in DRAWS.items():
        for seeds, trials in TRIALS.items():
            covered = plain = 0
            for trial in range(trials):
                logs = draw(rng, seeds)
                low, high = paired_interval(logs, f"{trial}") or (0.0, 0.0)
                mean, stretch = logs.mean(), stretched(seeds)
                covered += low <= 0 <= high
                plain += mean + (low - mean) / stretch <= 0 <= mean + (high - mean) / stretch
            found.setdefault(name, {})[str(seeds)] = (covered / trials, plain / trials)
    return found


def censored(rng: np.random.Generator) -> float:
    """How often the low end of a ratio that is a bound is below the truth; nominally 97.5% at least."""
    below = trials = 0
    while trials < 1000:
        ours, theirs = np.exp(rng.normal(6, 0.1, 3)), np.exp(rng.normal(7, 0.1, 3))
        found = ratio_of("a", "b", ours.tolist(), [t if t < 1100 else None for t in theirs.tolist()], 1100)
        if found.bound == "at least" and found.low is not None:
            trials, below = trials + 1, below + (found.low <= np.e)
    return below / trials


def doses(rng: np.random.Generator, seeds: int, noise: float, trials: int = 150) -> float:
    """Coverage of the dose beyond which more doesn't pay, 0.8 of doses from 0 to 2."""
    at, covered = np.array([0.0, 0.25, 0.5, 1.0, 2.0]), 0
    for _ in range(trials):
        found = fit("abcde", at, np.minimum(at, 0.8) + rng.normal(0, noise, (seeds, 5)))
        covered += (found.low is None or found.low <= 0.8) and (found.high is None or found.high >= 0.8)
    return covered / trials


def influence(rng: np.random.Generator, trials: int = 60) -> float:
    """Coverage of 0 for 200 traces of 100 documents, whose gains and effects each hang together within a document."""
    documents, covered = [f"d{i // 2}" for i in range(200)], 0
    for _ in range(trials):
        gains, effects = (np.repeat(rng.normal(size=100), 2) + rng.normal(size=200) for _ in range(2))
        low, high = correlation_interval(gains, effects, documents)
        covered += low is not None and high is not None and low <= 0 <= high
    return covered / trials


def main() -> None:
    rng = np.random.default_rng(0)
    found = {
        "ratios": ratios(rng),
        "censored_low_end": censored(rng),
        "dose": {f"{seeds} seeds": doses(rng, seeds, 0.08) for seeds in (3, 5, 10)},
        "influence": influence(rng),
    }
    for name, of in found.items():
        print(name, json.dumps(of, indent=1) if isinstance(of, dict) else of)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
