"""Joints: what joins packages that don't know each other, for the stages and the plan alike.

The budget of `difficulty` meets the models of `augment`; the hard spans of a segment become what a prompt names; layout
and value say what a generator is shown; and a value asks the scorer of the first stage. Imports no Beam, so that a plan
is there at once.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from augment.feeding.worker import WorkOrder
from augment.requests.planner import TierRequest, TracePlanner
from augment.selection.values import needs_continuation
from difficulty.budget.allocate import allocate
from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.policies import policy_module
from difficulty.budget.steps import GainSteps
from difficulty.budget.tiers import ModelPrice, TierConfig
from difficulty.config import DifficultyConfig
from difficulty.gain.model import GainModel
from difficulty.surprisal import Measure, hard_spans, token_difficulty_nats
from pipelines import yaml_config
from pipelines.config import MillConfig
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

MIN_SHOWN_TOKENS = 16
"""A thought within a segment has at least so much of the segment before it, where the segment is long enough."""

MIN_HELD_BACK_TOKENS = 8
"""A shorter tail would tell nothing."""


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
    return allocate(histogram, config.budget, source_tokens=source_tokens, prices=prices(config))


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


def work_order(
    config: MillConfig, began_at: float, *, planned_generations: int | None = None, beats_url: str | None = None
) -> WorkOrder:
    """What the worker processes need to know of a run that began at a Unix time; see `WorkOrder`."""
    return WorkOrder(
        run_id=secrets.token_hex(8),
        began_ms=int(began_at * 1000),
        ledger_url=config.ledger_url,
        flush_rows=config.ledger.flush_rows,
        flush_seconds=config.ledger.flush_seconds,
        planned_generations=planned_generations,
        max_failed_fraction=config.ledger.max_failed_fraction,
        max_empty_fraction=config.ledger.max_empty_fraction,
        beats_url=beats_url,
    )


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
class Holdback:
    """How many of a segment's tokens, from its start, the prompt shows; the others are held back from the generator.

    Mostly all are shown. A thought that is to stand within the segment has seen only what stands before it; and the
    last segment of a document keeps back its tail, where a trace is valued by what it does for text that follows.

    Attributes:
        tokenizer: name of the training tokenizer.
        threshold_nats: difficulty above which a token is hard.
        measure: what a token's difficulty is.
        at_hard_span: thoughts stand before the segment's hardest span.
        hold_back_tokens: what the last segment of a document keeps back; at most a third of it.
        valued_tiers: the tiers for which it does.
    """

    tokenizer: str
    threshold_nats: float
    at_hard_span: bool
    hold_back_tokens: int
    valued_tiers: tuple[str, ...]
    measure: Measure = "surprisal"

    def token_nats(self, segment: ScoredSegment) -> np.ndarray:
        """(num_tokens,) nats: how hard each token of a segment is."""
        return token_difficulty_nats(segment.surprisal_nats, segment.entropy_nats, segment.memory_nats, self.measure)

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        """For a segment of this tier."""
        num_tokens = len(segment.input_ids)
        if self.at_hard_span:
            return self._before_hardest_span(segment)
        if tier in self.valued_tiers and segment.segment_index == segment.num_segments - 1:
            held_back = min(self.hold_back_tokens, num_tokens // 3)
            if held_back >= MIN_HELD_BACK_TOKENS:
                return self._whole_characters(segment, num_tokens - held_back)
        return num_tokens

    def _before_hardest_span(self, segment: ScoredSegment) -> int:
        tokenizer = load_tokenizer(self.tokenizer)
        nats = self.token_nats(segment).astype(np.float64)
        least = MIN_SHOWN_TOKENS if len(nats) > MIN_SHOWN_TOKENS else 1
        if len(nats) <= least:
            return 0
        text = tokenizer.decode(segment.input_ids)
        spans = hard_spans(text, tokenizer.byte_ends(segment.input_ids), nats, threshold_nats=self.threshold_nats)
        late = [span for span in spans if span.token_start >= least]
        if late:
            place = max(late, key=lambda span: (span.nats, -span.token_start)).token_start
        else:
            place = least + int(nats[least:].argmax())
        return self._whole_characters(segment, place)

    def _whole_characters(self, segment: ScoredSegment, num_tokens: int) -> int:
        """At most so many tokens, fewer where a character would be torn."""
        tokenizer = load_tokenizer(self.tokenizer)
        text_bytes = tokenizer.decode_bytes(segment.input_ids)
        byte_ends = tokenizer.byte_ends(segment.input_ids)
        while num_tokens and text_bytes[byte_ends[num_tokens - 1]] & 0xC0 == 0x80:
            num_tokens -= 1
        return num_tokens


def holdback_of(config: MillConfig) -> Holdback:
    """What the config asks for: see `Holdback`."""
    select = config.select
    values = select.values_traces(config.gain_difficulty.scorer != "none")
    valued = tuple(tier.name for tier in config.budget.tiers if tier.model is not None and values)
    return Holdback(
        tokenizer=config.tokenizer,
        threshold_nats=config.difficulty.threshold_nats,
        at_hard_span=config.layout == "at_hard_span",
        hold_back_tokens=select.gain.hold_back_tokens if needs_continuation(select.value_name) else 0,
        valued_tiers=valued,
        measure=config.difficulty.token_measure,
    )


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


def select_section(config: MillConfig) -> dict[str, Any]:
    """The parts of the `select` section that can change what is kept."""
    plain: dict[str, Any] = yaml_config.to_mapping(config.select)
    return {key: value for key, value in plain.items() if key not in ("min_kept_share", "diversity")}


def asks_scorer(config: MillConfig) -> bool:
    """Whether selection asks the scorer of the first stage; a value of one's own is taken to."""
    return bool(holdback_of(config).valued_tiers) and config.select.value_name != "length"


def contaminated_urls(output: str, selected: Manifest) -> tuple[str, ...]:
    """The parts that name the documents to leave out because they overlap with a benchmark; none where they stay in."""
    decontamination = selected.facts.get("decontamination") or {}
    return (
        tuple(manifest.file_urls(output, selected, "contaminated")) if decontamination.get("action") == "remove" else ()
    )


@dataclass(frozen=True)
class ScorerNats:
    """Asks a scorer, which is loaded with the first question: what joins values and difficulty.

    Attributes:
        difficulty: the scorer's config.
        context_tokens: `select.gain.context_tokens`.
    """

    difficulty: DifficultyConfig
    context_tokens: int | None

    @classmethod
    def of(cls, config: MillConfig) -> ScorerNats:
        """That of a run."""
        return cls(config.gain_difficulty, config.select.gain.context_tokens)

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, prefix_tokens: int) -> tuple[np.ndarray, int]:
        from difficulty.transforms import shared_scorer

        found = shared_scorer(self.difficulty).nats_after(
            prefixes, text, skipped, prefix_tokens=prefix_tokens, context_tokens=self.context_tokens
        )
        return found.nats, found.cut_tokens
