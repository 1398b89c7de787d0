"""What a run asks of its generators: tiers as requests, and what is decided of each segment before."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from augment.feeding.worker import WorkOrder
from augment.recipes import SINGLE, load_recipe, recipe_digest
from augment.recipes.protocol import RecipeRequest, StepRequest
from augment.requests.planner import TracePlanner
from augment.requests.tiers import ContractionRequest, TierRequest
from difficulty.budget.allocation import Allocation
from difficulty.budget.tiers import TierConfig
from difficulty.surprisal import hard_spans
from pipelines.config import MillConfig
from pipelines.joints.budget import TierGains
from pipelines.joints.shown import Holdback
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import ScoredSegment


def trace_planner(config: MillConfig) -> TracePlanner:
    """What turns segments into requests: every tier's prompt, model and caps."""
    tiers = tuple(
        None
        if tier.model is None or tier.prompt is None or tier.max_tokens is None
        else TierRequest(
            tier=tier.name,
            model=tier.model,
            prompt=tier.prompt,
            samples=tier.samples,
            max_tokens=tier.max_tokens,
            min_tokens=tier.min_tokens,
            expected_tokens=tier.expected_tokens or float(tier.max_tokens),
            recipe=recipe_request(tier),
            context=tier.contexts,
            passages=tier.passages if "retrieved" in tier.contexts else 0,
        )
        for tier in config.budget.tiers
    )
    used = config.budget.models
    budget = config.budget
    contraction = (
        None
        if budget.contraction_model is None
        else ContractionRequest(
            model=budget.contraction_model, prompt=budget.contraction_prompt, max_tokens=budget.contraction_tokens
        )
    )
    return TracePlanner(
        tiers=tiers,
        models={name: model for name, model in sorted(config.models.items()) if name in used},
        sampling=config.sampling,
        closing=config.closing,
        tokenizer=config.tokenizer,
        contraction=contraction,
    )


def recipe_request(tier: TierConfig) -> RecipeRequest | None:
    """What a tier asks of its recipe; None of one whose generations are one call, or that skips."""
    if tier.recipe == SINGLE or tier.model is None or tier.prompt is None or tier.max_tokens is None:
        return None
    load_recipe(tier.recipe)  # a wrong one is told before anything is paid
    steps = {name: StepRequest(**dataclasses.asdict(step)) for name, step in tier.steps.items()}
    return RecipeRequest(
        name=tier.recipe,
        prompt=tier.prompt,
        model=tier.model,
        max_tokens=tier.max_tokens,
        rounds=tier.rounds,
        drafts=tier.drafts,
        steps=steps,
    )


def recipe_inputs(config: MillConfig) -> dict[str, str]:
    """The code of the user's own recipes, as name → digest; empty where no tier has one in a file."""
    recipes = {tier.recipe for tier in config.budget.tiers if not tier.skips}
    return {f"recipe {name}": code for name in sorted(recipes) if (code := recipe_digest(name))}


def work_order(
    config: MillConfig,
    began_at: float,
    *,
    planned_generations: int | None = None,
    beats_url: str | None = None,
    failing_is_counted: bool = False,
) -> WorkOrder:
    """What the worker processes need to know of a run; see `WorkOrder`.

    Args:
        began_at: when it began, Unix time by the clock of the ledger's store: see `sharding.storage.clock`.
        failing_is_counted: what fails is counted, however much of it, and stops nothing.
    """
    return WorkOrder(
        run_id=secrets.token_hex(8),
        began_ms=int(began_at * 1000),
        ledger_url=config.ledger_url,
        flush_rows=config.ledger.flush_rows,
        flush_seconds=config.ledger.flush_seconds,
        planned_generations=planned_generations,
        max_failed_fraction=1.0 if failing_is_counted else config.ledger.max_failed_fraction,
        max_empty_fraction=1.0 if failing_is_counted else config.ledger.max_empty_fraction,
        beats_url=beats_url,
        drain_s=config.feeding.drain_seconds,
    )


@dataclass(frozen=True)
class Choices:
    """What is decided of segments before they are asked about: `augment.requests.planner.SegmentChoices`."""

    allocation: Allocation
    holdback: Holdback
    gains: TierGains | None = None
    """Where the plan goes by them."""

    def tiers(self, segments: Sequence[ScoredSegment]) -> list[int]:
        if self.gains is not None:
            ids = [segment.segment_id for segment in segments]
            return [int(tier) for tier in self.allocation.tiers_by_gain(ids, self.gains.expected(segments)[0])]
        return [self.allocation.tier_of(segment.segment_id, segment.difficulty_nats) for segment in segments]

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        return self.holdback.shown_tokens(segment, tier)

    def focus(self, segment: ScoredSegment, text: str) -> list[str]:
        return hardest_spans(self.holdback, segment, text)


def hardest_spans(holdback: Holdback, segment: ScoredSegment, text: str) -> list[str]:
    """The hard spans of a segment of this text, the hardest first."""
    byte_ends = load_tokenizer(holdback.tokenizer).byte_ends(segment.input_ids)
    nats = holdback.token_nats(segment)
    spans = hard_spans(text, byte_ends, nats, threshold_nats=holdback.threshold_nats)
    hardest_first = sorted(spans, key=lambda span: (-span.nats, span.token_start))
    return [text[span.char_start : span.char_end] for span in hardest_first]
