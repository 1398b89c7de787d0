"""What a budget learned from a noisy pilot is worth: corpora whose gain is known, through the real allocation.

    python -m benchmarks.learned_budget [runs]

Every corpus has 2,400 segments; the budget is a quarter of them at 1,024 tokens. A pilot tries every tier on
each of 400 or 1,600 segments, drawn as the product draws them, and measures each gain with a standard deviation of 5
nats where a gain is about 1. "share" is what the plan gains, in truth, of what it would gain if the
gains were known; "adaptive" goes by difficulty. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.learned_budget_corpora import TRUTHS, SimulatedCorpus, simulate
from benchmarks.machine import conclude
from difficulty.budget.allocate import allocate
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.policies import learned
from difficulty.budget.steps import GainSteps
from difficulty.budget.tiers import BudgetConfig, TierConfig
from difficulty.gain.features import fit_features
from difficulty.gain.fitting import Observations, fit, fit_model
from difficulty.gain.model import GainModel
from pipelines.plan import strata

RUNS = 12
SEGMENTS = 2_400
PILOTS = (400, 1_600)
NOISE_NATS = 5.0
BUDGET_SHARE = 0.25
TOKENS = 1_024
NULL_PILOTS = 40
NULL_SEGMENTS = 800
FIRST_SEED = 9_000
"""None of those on which the model was chosen."""


class Spent(NamedTuple):
    """What a plan came to, in truth.

    Attributes:
        gain_nats: of its segments together.
        on_noise: share of the spend on noise.
        error: of the spend, against the budget; only where all of it was to be spent.
    """

    gain_nats: float
    on_noise: float
    error: float


def pilot(corpus: SimulatedCorpus, size: int, seed: int) -> Observations:
    """Segments drawn as an exploring pilot draws them, tried with every tier; half of their noise is the segment's."""
    random = np.random.default_rng([seed, size])
    tried, chances = strata.draw(corpus.segments, size)
    names = [tier.name for tier in corpus.tiers if not tier.skips]
    own = random.normal(0.0, 1.0, (size, len(names)))
    noise = own if len(names) == 1 else np.sqrt(0.5) * (own + random.normal(0.0, 1.0, (size, 1)))
    return Observations(
        segments=[corpus.segments[i] for i in tried for _ in names],
        documents=np.repeat(corpus.documents[tried], len(names)),
        tiers=names * size,
        gain_nats=(corpus.gains[tried] + NOISE_NATS * noise).ravel(),
        chances=np.repeat(chances, len(names)),
    )


def by_gain(corpus: SimulatedCorpus, gains_nats: np.ndarray) -> Spent:
    """What policy learned does if it expects these (n, thinking tiers) gains."""
    config = _budget(corpus, "learned")
    thinking = [i for i, tier in enumerate(config.tiers) if not tier.skips]
    gains = np.zeros((len(corpus.segments), len(config.tiers)))
    gains[:, thinking] = gains_nats
    if not (gains > 0).any():
        return Spent(0.0, 0.0, 0.0)
    steps = GainSteps(learned.costs_of(config, {}))
    steps.add(gains, np.zeros_like(gains), np.array([segment.difficulty_nats for segment in corpus.segments]))
    plan = learned.allocate(steps, config, source_tokens=1, model="")
    return _spent(corpus, config, plan.tiers_by_gain(_ids(corpus), gains), plan.planned_spend, plan.target_spend)


def by_difficulty(corpus: SimulatedCorpus) -> Spent:
    """What policy adaptive does."""
    config, ids = _budget(corpus, "adaptive"), _ids(corpus)
    difficulty = np.array([segment.difficulty_nats for segment in corpus.segments])
    histogram = DifficultyHistogram()
    histogram.add_many(ids, difficulty)
    plan = allocate(histogram, config, source_tokens=1, prices={})
    return _spent(corpus, config, plan.tiers_of(ids, difficulty), plan.planned_spend, plan.target_spend)


def _budget(corpus: SimulatedCorpus, policy: str) -> BudgetConfig:
    tokens = round(BUDGET_SHARE * len(corpus.segments) * TOKENS)
    return BudgetConfig(policy=policy, thinking_tokens=tokens, tiers=corpus.tiers)


def _ids(corpus: SimulatedCorpus) -> list[str]:
    return [segment.segment_id for segment in corpus.segments]


def _spent(corpus: SimulatedCorpus, config: BudgetConfig, tiers: np.ndarray, planned: float, target: float) -> Spent:
    costs = np.array([tier.tokens_per_segment for tier in config.tiers])[tiers]
    gains = np.zeros((len(tiers), len(config.tiers)))
    gains[:, [i for i, tier in enumerate(config.tiers) if not tier.skips]] = corpus.gains
    spend = float(costs.sum())
    # A plan that found too little to gain by may leave some of the budget; more than planned it may never spend.
    error = abs(spend / min(planned, target) - 1) if planned else 0.0
    gain = float(gains[np.arange(len(tiers)), tiers].sum())
    return Spent(gain, float(costs[corpus.is_noise].sum()) / spend if spend else 0.0, error)


class Run(NamedTuple):
    """One corpus drawn, with one pilot: shares of what could be gained, and how far intervals hold the truth."""

    share: float
    adaptive: float
    on_noise: float
    error: float
    weight: float
    coverage: float


def runs_of(name: str, pilots: tuple[int, ...], runs: int, num_segments: int = SEGMENTS) -> dict[int, list[Run]]:
    """Corpora of that name, each with a pilot of every size."""
    found: dict[int, list[Run]] = {size: [] for size in pilots}
    for seed in range(FIRST_SEED, FIRST_SEED + runs):
        corpus = simulate(name, num_segments, seed)
        features = fit_features(corpus.segments)
        for size in pilots:
            model = fit_model(pilot(corpus, size, seed), features, corpus.tiers)
            found[size].append(_run(corpus, model))
    return found


def _run(corpus: SimulatedCorpus, model: GainModel) -> Run:
    gains = model.expected(corpus.segments)
    spent, best, adaptive = by_gain(corpus, gains.mean), by_gain(corpus, corpus.gains), by_difficulty(corpus)
    held = np.abs(gains.mean - corpus.gains) <= 1.645 * np.sqrt(gains.variance)
    oracle = best.gain_nats or 1.0
    return Run(
        share=spent.gain_nats / oracle,
        adaptive=adaptive.gain_nats / oracle,
        on_noise=spent.on_noise,
        error=spent.error,
        weight=model.weight,
        coverage=float(held.mean()),
    )


def false_promises(
    pilots: int, num_segments: int = NULL_SEGMENTS, tiers: tuple[TierConfig, ...] | None = None
) -> float:
    """How often a report promises a gain where there is none."""
    promised = 0
    for seed in range(2 * FIRST_SEED, 2 * FIRST_SEED + pilots):
        corpus = simulate("nothing", num_segments, seed)
        if tiers is not None:
            count = sum(not tier.skips for tier in tiers)
            corpus = corpus._replace(tiers=tiers, gains=np.zeros((num_segments, count)))
        tried = pilot(corpus, min(PILOTS[0], num_segments), seed)
        promised += fit(tried, corpus.segments, corpus.tiers).report.promises
    return promised / pilots


def main(runs: int = RUNS, num_segments: int = SEGMENTS, pilots: tuple[int, ...] = PILOTS) -> None:
    console = Console()
    figures: dict[str, float] = {}
    columns = ("gain depends on", "pilot", "share", "adaptive", "spend on noise", "spend error", "weight", "coverage")
    table = Table(*columns, title="Gain of a plan in what could be gained")
    errors, shares = [], dict.fromkeys(pilots, 1.0)
    for name in [name for name in TRUTHS if name != "nothing"]:
        for size, found in runs_of(name, pilots, runs, num_segments).items():
            mean = Run(*np.mean(found, axis=0).tolist())
            shares[size] = min(shares[size], mean.share)
            errors.append(max(run.error for run in found))
            cells = (mean.share, mean.adaptive, mean.on_noise, errors[-1], mean.weight, mean.coverage)
            table.add_row(name, f"{size:,}", *(f"{cell:.3f}" for cell in cells))
            if name == "difficulty":
                figures[f"never_below_adaptive_{size}"] = mean.share / mean.adaptive
            if name == "noise":
                figures[f"budget_on_noise_{size}"] = mean.on_noise
            figures[f"share_{name.replace(' ', '_')}_{size}"] = mean.share
            figures[f"coverage_{name.replace(' ', '_')}_{size}"] = mean.coverage
    figures |= {f"gain_share_of_oracle_{size}": share for size, share in shares.items()}
    console.print(table)
    figures["never_below_adaptive"] = min(figures[f"never_below_adaptive_{size}"] for size in pilots)
    figures["budget_on_noise"] = max(figures[f"budget_on_noise_{size}"] for size in pilots)
    figures["false_promise_rate"] = false_promises(max(2, NULL_PILOTS * runs // RUNS), min(NULL_SEGMENTS, num_segments))
    figures["spend_error"] = max(errors)
    console.print(f"A gain is promised where there is none: {figures['false_promise_rate']:.1%} of pilots")
    conclude(console, "learned_budget", figures, ("numpy", "scipy"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
