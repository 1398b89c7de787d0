"""The budget of `difficulty` meets the models of `augment`: prices, the plan of a corpus, expected gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from augment.recipes import SINGLE
from difficulty.budget.allocate import allocate
from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.policies import policy_module
from difficulty.budget.steps import GainSteps
from difficulty.budget.tiers import BudgetConfig, ModelPrice, TierConfig
from difficulty.gain.model import GainModel
from pipelines import yaml_config
from pipelines.config import MillConfig
from sharding.errors import MillError, RequestError
from sharding.records.types import ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


def plan_budget(config: MillConfig, scored: Manifest, by_gain: tuple[TierGains, GainSteps] | None = None) -> Allocation:
    """The tier of every segment, from the histogram of the scored parts, or by what each tier is expected to gain.

    Args:
        config: the run.
        scored: the manifest of the scored parts.
        by_gain: expected gains and the steps of the corpus, where the policy goes by them.

    Raises:
        RequestError: the budget can't be met.
        MillError: there is no segment.
    """
    if scored.counts["segments"] == 0:
        reasons = ", ".join(
            f"{name.removeprefix('quarantined.')} {count:,}"
            for name, count in sorted(scored.counts.items())
            if name.startswith("quarantined.")
        )
        fields = ", ".join(f"{s.key}.text_field: {s.config.text_field!r}" for s in config.all_sources)
        raise MillError(
            f"none of the {scored.counts['documents_in']:,} records of the source became a document "
            f"({reasons or 'none'} in quarantine; {fields}): correct the config and add --replace; the records are in "
            f"{manifest.stage_url(config.output, 'score')}/quarantine-*.arrow"
        )
    if by_gain is not None:
        gains, steps = by_gain
        tokens, model = scored.counts["source_tokens"], gains.model.digest
        made: Allocation = policy_module(config.budget.policy).allocate(
            steps, config.budget, source_tokens=tokens, model=model
        )
        return dataclasses.replace(made, warnings=(*made.warnings, *gains.cautions))
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    return allocation_of(config, histogram, scored.counts["source_tokens"])


def goes_by_gain(config: MillConfig) -> bool:
    """Whether the budget is spent by what a pilot leads to expect."""
    return bool(policy_module(config.budget.policy).AXIS == "gain")


def allocation_of(config: MillConfig, histogram: DifficultyHistogram, source_tokens: int) -> Allocation:
    """The plan for a corpus of so many training tokens, its segments counted by difficulty.

    Raises:
        RequestError: the budget can't be met.
    """
    made = allocate(histogram, config.budget, source_tokens=source_tokens, prices=prices(config))
    thinking = [tier for tier in config.budget.tiers if not tier.skips]
    bought = sum(plan.segments for tier, plan in zip(config.budget.tiers, made.tiers, strict=True) if not tier.skips)
    if config.budget.policy == "fixed" or not thinking or bought >= 1:
        return made
    cheapest = min(thinking, key=lambda tier: tier.tokens_per_segment)
    nothing = (
        f"{config.budget.key} buys no thought: tier {cheapest.name} takes about {cheapest.tokens_per_segment:,.0f} "
        f"tokens a segment, and the corpus has {source_tokens:,}; raise it, or let every tier skip if none is wanted"
    )
    return dataclasses.replace(made, warnings=(*made.warnings, nothing))


def plain_tiers(budget: BudgetConfig) -> list[dict[str, Any]]:
    """The tiers as JSON values. Those of one call are as they were before there were recipes, so that outputs and
    pilots of then stay what they are."""
    return [
        {key: value for key, value in plain.items() if tier.recipe != SINGLE or key not in _OF_RECIPES}
        for tier, plain in zip(budget.tiers, yaml_config.to_mapping(budget)["tiers"], strict=True)
    ]


_OF_RECIPES = ("recipe", "rounds", "drafts", "steps")


def prices(config: MillConfig) -> dict[str, ModelPrice]:
    """Name of each model → its price, as the budget counts it."""
    return {
        name: ModelPrice(
            dollars_per_million_tokens=model.dollars_per_million_tokens,
            tokens_per_gpu_second=model.tokens_per_gpu_second,
        )
        for name, model in config.models.items()
    }


@dataclass(frozen=True)
class TierGains:
    """The gain that is expected of each tier of a config.

    Attributes:
        model: what expects it.
        columns: by tier of the config its place among the model's tiers; None for the tier that skips, which gains 0.
        cautions: what the owner of a budget should know of it, in words.
    """

    model: GainModel
    columns: tuple[int | None, ...]
    cautions: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: GainModel, tiers: Sequence[TierConfig], cautions: Sequence[str] = ()) -> TierGains:
        """Those of the tiers of a config.

        Raises:
            RequestError: the model knows nothing of a tier.
        """
        for tier in tiers:
            if not tier.skips and tier.name not in model.tiers:
                raise RequestError(
                    f"budget.tiers: the pilot didn't try the tier {tier.name}, only {', '.join(model.tiers)}; "
                    "`thoughtmill plan CONFIG --pilot N --explore` tries all"
                )
        columns = tuple(None if tier.skips else model.tiers.index(tier.name) for tier in tiers)
        return cls(model, columns, tuple(cautions))

    def expected(self, segments: Sequence[ScoredSegment]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation in nats: two (segments, tiers) float64."""
        found = self.model.expected(segments)
        mean, deviation = (np.zeros((len(segments), len(self.columns))) for _ in range(2))
        for tier, column in enumerate(self.columns):
            if column is not None:
                mean[:, tier], deviation[:, tier] = found.mean[:, column], np.sqrt(found.variance[:, column])
        return mean, deviation
