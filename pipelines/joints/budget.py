"""The budget of `difficulty` meets the models of `augment`: prices, the plan of a corpus, expected gains."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from augment.recipes import SINGLE
from difficulty.budget.allocate import allocate
from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.policies import policy_module
from difficulty.budget.steps import GainSteps
from difficulty.budget.tiers import BudgetConfig, ModelPrice, TierConfig, as_config
from difficulty.gain.model import GainModel
from pipelines import yaml_config
from pipelines.config import MillConfig
from sharding.errors import MillError, RequestError, restated
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
        kept_back = _for_contractions(config, tokens, scored.counts["segments"], scored.counts["documents"])
        with _of_what_is_left(kept_back):
            made: Allocation = policy_module(config.budget.policy).allocate(
                steps, _less(config.budget, kept_back, tokens), source_tokens=tokens, model=model
            )
        return _with_contractions(
            dataclasses.replace(made, warnings=(*made.warnings, *gains.cautions)), config.budget, kept_back, tokens
        )
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    return allocation_of(config, histogram, scored.counts["source_tokens"], scored.counts["documents"])


def goes_by_gain(config: MillConfig) -> bool:
    """Whether the budget is spent by what a pilot leads to expect."""
    return bool(policy_module(config.budget.policy).AXIS == "gain")


def allocation_of(
    config: MillConfig, histogram: DifficultyHistogram, source_tokens: int, documents: float = 0.0
) -> Allocation:
    """The plan for a corpus of so many training tokens, its segments counted by difficulty.

    Args:
        documents: how many there are, for what contractions take; 0: not known, which is taken for the worst.

    Raises:
        RequestError: the budget can't be met.
    """
    kept_back = _for_contractions(config, source_tokens, histogram.num_segments, documents)
    budget = _less(config.budget, kept_back, source_tokens)
    with _of_what_is_left(kept_back):
        made = allocate(histogram, budget, source_tokens=source_tokens, prices=prices(config))
    made = _with_contractions(made, config.budget, kept_back, source_tokens)
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


def _for_contractions(config: MillConfig, source_tokens: int, segments: float, documents: float) -> float:
    """What the contractions of a corpus take at most, in the budget's unit.

    Raises:
        RequestError: that is all of the budget, or a price is missing.
    """
    budget = config.budget
    found = budget.contraction_spend(segments, documents, prices(config))
    if found and found >= budget.target_spend(source_tokens):
        said = as_config(getattr(budget, budget.key.removeprefix("budget.")))
        least = as_config(budget.number_for(found, source_tokens))
        raise RequestError(
            f"{budget.key}: {said} may go on contractions alone, which take up to {least} (budget.contraction_tokens="
            f"{budget.contraction_tokens} for all but the last segment of every document): raise it above that, lower "
            "budget.contraction_tokens, or have no tier with context: contraction"
        )
    return found


def _less(budget: BudgetConfig, kept_back: float, source_tokens: int) -> BudgetConfig:
    """The budget without so much of it, in its unit."""
    if not kept_back:
        return budget
    number = budget.number_for(budget.target_spend(source_tokens) - kept_back, source_tokens)
    name = budget.key.removeprefix("budget.")
    changed: dict[str, Any] = {name: max(1, round(number)) if name == "thinking_tokens" else number}
    return dataclasses.replace(budget, **changed)


@contextlib.contextmanager
def _of_what_is_left(kept_back: float) -> Iterator[None]:
    """Where a budget can't be met it is told that the numbers are without what is kept back for contractions."""
    try:
        yield
    except RequestError as error:
        if not kept_back:
            raise
        raise restated(
            error, f"{error} (all of this without {as_config(kept_back)} that are kept back for contractions)"
        ) from error


def _with_contractions(made: Allocation, budget: BudgetConfig, kept_back: float, source_tokens: int) -> Allocation:
    """The plan of the whole budget, from the one for what contractions leave of it."""
    if not kept_back:
        return made
    told = (
        f"up to {as_config(kept_back)} of the budget's {as_config(budget.target_spend(source_tokens))} "
        f"{made.unit.replace('_', '-')} are kept back for contractions; what they don't take stays unspent"
    )
    return dataclasses.replace(
        made,
        target_spend=budget.target_spend(source_tokens),
        planned_spend=made.planned_spend + kept_back,
        warnings=(*made.warnings, told),
    )


def plain_tiers(budget: BudgetConfig) -> list[dict[str, Any]]:
    """The tiers as JSON values. Those of one call are as they were before there were recipes, and those that show the
    document as it is as before there were other contexts, so that outputs and pilots of then stay what they are."""
    return [
        {
            key: value
            for key, value in plain.items()
            if not (tier.recipe == SINGLE and key in _OF_RECIPES)
            and not (tier.contexts == ("full",) and key == "context")
            and not ("retrieved" not in tier.contexts and key == "passages")
        }
        for tier, plain in zip(budget.tiers, yaml_config.to_mapping(budget)["tiers"], strict=True)
    ]


_OF_RECIPES = ("recipe", "rounds", "drafts", "steps")


def plain_contraction(budget: BudgetConfig) -> dict[str, Any]:
    """How documents are contracted, as JSON values; empty where no tier shows a contraction."""
    if budget.contraction_model is None:
        return {}
    return {key: value for key, value in yaml_config.to_mapping(budget).items() if key in CONTRACTION_KEYS}


CONTRACTION_KEYS = ("contraction_model", "contraction_tokens", "contraction_prompt")
"""Keys of a budget that say how documents are contracted."""


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
