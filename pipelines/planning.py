"""What the augment stage and `thoughtmill plan` agree on: the plan of a config, its requests, what they focus on.

Imports no Beam, so that a plan is there at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from augment.requests.planner import TierRequest, TracePlanner
from difficulty.budget.allocate import allocate
from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.surprisal import hard_spans, token_difficulty_nats
from pipelines import config as config_module
from pipelines.config import MillConfig
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


def plan_budget(config: MillConfig, scored: Manifest) -> Allocation:
    """The tier of every segment, from the histogram of the scored parts.

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
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    return allocation_of(config, histogram, scored.counts["source_tokens"])


def allocation_of(config: MillConfig, histogram: DifficultyHistogram, source_tokens: int) -> Allocation:
    """The plan for a corpus of so many training tokens, its segments counted by difficulty.

    Raises:
        RequestError: the budget can't be met.
    """
    return allocate(
        histogram,
        config.budget,
        source_tokens=source_tokens,
        prices={name: config_module.price_of(model) for name, model in config.models.items()},
    )


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
        )
        for tier in config.budget.tiers
    )
    used = {tier.model for tier in tiers if tier is not None}
    return TracePlanner(
        tiers=tiers,
        models={name: model for name, model in sorted(config.models.items()) if name in used},
        sampling=config.sampling,
        closing=config.closing,
        tokenizer=config.tokenizer,
    )


@dataclass(frozen=True)
class Focus:
    """The hardest spans of a segment, for prompts that name them: what joins difficulty and prompts."""

    tokenizer: str
    threshold_nats: float

    def __call__(self, segment: ScoredSegment, text: str) -> list[str]:
        byte_ends = load_tokenizer(self.tokenizer).byte_ends(segment.input_ids)
        nats = token_difficulty_nats(segment.surprisal_nats, segment.memory_nats)
        spans = hard_spans(text, byte_ends, nats, threshold_nats=self.threshold_nats)
        hardest_first = sorted(spans, key=lambda span: (-span.nats, span.token_start))
        return [text[span.char_start : span.char_end] for span in hardest_first]
