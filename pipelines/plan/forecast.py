"""The arithmetic of a plan: from evidence and measurements to what each stage and tier will take, with intervals.

Every number is an array of `chance`: first the estimate, then what it would have been in each of `DRAWS` resamplings of
the evidence and of the pilot's measurements. Sums and products keep draws together, so that the interval of a total
accounts for what its parts share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difficulty.budget.allocation import Allocation
from difficulty.budget.steps import GainSteps
from difficulty.budget.tiers import TierConfig
from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.joints import TierGains
from pipelines.plan import chance
from pipelines.plan.allocations import plans_of
from pipelines.plan.chance import DRAWS, MIN_MEASURED
from pipelines.plan.corpus import Evidence
from pipelines.plan.explored import FEWEST_EXPLORED, of_tier, run_gain
from pipelines.plan.measured import MeasuredTier, Pilot
from pipelines.plan.prompts import contraction_prompts, prompt_requests
from sharding.hashing import content_id, text_number
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request

BYTES_PER_TOKEN = {2: 0.84, 4: 0.99}
"""What a training token takes in a shard, types and lengths included, by the bytes of an id: measured with zstd at
level 3 on technical text."""


@dataclass(frozen=True, kw_only=True)
class TierForecast:
    """One tier; all arrays (1 + DRAWS,) float64.

    Attributes:
        basis: where the length of its traces comes from: "pilot", "expected_tokens", or "max_tokens", a ceiling.
        cut, accepted: generations that reach the cap, that pass the gates; None without a pilot.
        gain_nats: mean over segments of what a kept trace gains beyond controls; None without, or with no such value.
    """

    name: str
    model: str | None
    segments: np.ndarray
    generations: np.ndarray
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    kept: np.ndarray
    kept_tokens: np.ndarray
    basis: str = ""
    cut: np.ndarray | None = None
    accepted: np.ndarray | None = None
    gain_nats: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will come to.

    Attributes:
        allocation: the plan as the run would make it now.
        documents, segments, source_tokens, copies: (1 + DRAWS,) of the corpus; `copies` is how often a source token
            is in the shards, for the weights of the sources.
        infeasible_share: of the draws, those whose corpus couldn't take the budget.
        contractions, contraction_tokens, contraction_prompt_tokens: (1 + DRAWS,) that documents take at most; 0 where
            no tier shows any.
    """

    allocation: Allocation
    documents: np.ndarray
    segments: np.ndarray
    source_tokens: np.ndarray
    copies: np.ndarray
    tiers: tuple[TierForecast, ...]
    infeasible_share: float
    contractions: np.ndarray
    contraction_tokens: np.ndarray
    contraction_prompt_tokens: np.ndarray


def forecast(
    config: MillConfig, evidence: Evidence, pilot: Pilot | None, by_gain: tuple[TierGains, GainSteps] | None = None
) -> Forecast:
    """The forecast.

    Args:
        config: the run.
        evidence: of its corpus.
        pilot: what was measured.
        by_gain: expected gains and the steps of the corpus, where the policy goes by them.

    Raises:
        RequestError: the budget can't be met; says what can.
    """
    random = np.random.Generator(np.random.PCG64(_seed(config)))
    draws = evidence.resamplings(random)
    corpora, plans, infeasible = plans_of(config, evidence, draws, by_gain)
    prompts = prompt_requests(config, evidence, plans[0], by_gain[0] if by_gain is not None else None)
    weights = draws * np.array([document.weight for document in evidence.sample])
    tiers = tuple(
        _tier(
            tier,
            number,
            plans,
            weights,
            prompts,
            pilot.tiers.get(tier.name) if pilot else None,
            random,
            keep_all=config.select.keep == "all",
        )
        for number, tier in enumerate(config.budget.tiers)
    )
    documents, segments = (np.array([getattr(one, name) for one in corpora]) for name in ("documents", "segments"))
    contractions = np.maximum(segments - documents, 0.0) * (config.budget.contraction_model is not None)
    source_tokens = np.array([corpus.source_tokens for corpus in corpora])
    return Forecast(
        allocation=plans[0],
        documents=documents,
        segments=segments,
        source_tokens=source_tokens,
        copies=_copies(config, evidence, weights),
        tiers=tiers,
        infeasible_share=infeasible / DRAWS,
        contractions=contractions,
        contraction_tokens=contractions * config.budget.contraction_tokens,
        contraction_prompt_tokens=contraction_prompts(config, contractions, source_tokens),
    )


def _tier(
    tier: TierConfig,
    number: int,
    plans: Sequence[Allocation],
    weights: np.ndarray,
    prompts: Sequence[tuple[int, int, Request]],
    measured: MeasuredTier | None,
    random: np.random.Generator,
    *,
    keep_all: bool,
) -> TierForecast:
    segments = np.array([plan.tiers[number].segments for plan in plans])
    if tier.skips:
        nothing = np.zeros_like(segments)
        return TierForecast(
            name=tier.name,
            model=None,
            segments=segments,
            generations=nothing,
            tokens_in=nothing,
            tokens_out=nothing,
            kept=nothing,
            kept_tokens=nothing,
        )
    if measured is not None and len(measured.thought_tokens) < MIN_MEASURED:
        measured = None
    own = [(document, request) for document, of, request in prompts if of == number] or [
        (document, request) for document, _, request in prompts
    ]
    if own:
        documents = np.array([document for document, _ in own])
        lengths = np.array([request.prompt_tokens for _, request in own], np.float64)
        own_weights = weights[:, documents]
        prompt_tokens = own_weights @ lengths / own_weights.sum(axis=1)
    else:
        prompt_tokens = np.zeros_like(segments)
    generations = segments * tier.samples
    if measured is None:
        tokens_out = segments * tier.tokens_per_segment
        return TierForecast(
            name=tier.name,
            model=tier.model,
            segments=segments,
            generations=generations,
            tokens_in=generations * prompt_tokens,
            tokens_out=tokens_out,
            kept=generations if keep_all else segments,
            kept_tokens=tokens_out if keep_all else tokens_out / tier.samples,
            basis="max_tokens" if tier.expected_tokens is None else "expected_tokens",
        )
    aimed = of_tier(measured, plans[0], number)
    # Lengths of other segments' traces are better than none; what others gain is another matter.
    measured = aimed if len(aimed.generations) >= min(FEWEST_EXPLORED, len(measured.generations)) else measured
    documents, samples, stand_for = measured.documents, tier.samples, measured.weights
    kept = _of_all(measured.kept, documents, segments, random, stand_for, most=samples if keep_all else 1)
    return TierForecast(
        name=tier.name,
        model=tier.model,
        segments=segments,
        generations=generations,
        tokens_in=samples
        * _of_all(measured.prompt_tokens, documents, segments, random, stand_for, least=min(measured.prompt_tokens)),
        tokens_out=_of_all(
            measured.thought_tokens, documents, segments, random, stand_for, most=samples * (tier.max_tokens or 0)
        ),
        kept=kept,
        kept_tokens=_kept_tokens(tier, measured, kept, random),
        basis="pilot",
        cut=_of_all(measured.cut, documents, segments, random, stand_for, most=samples),
        accepted=_of_all(measured.accepted, documents, segments, random, stand_for, most=samples),
        gain_nats=run_gain(aimed, segments[0], random),
    )


def _of_all(
    values: Sequence[float] | np.ndarray,
    documents: np.ndarray,
    totals: np.ndarray,
    random: np.random.Generator,
    weights: np.ndarray | None,
    *,
    least: float = 0.0,
    most: float = 0.0,
) -> np.ndarray:
    """`chance.total` in a range that holds at least what was measured."""
    measured = np.array(values, np.float64)
    most = max(most, float(measured.max()))
    return chance.total(measured, documents, totals, random, least=least, most=most, weights=weights)


def _kept_tokens(tier: TierConfig, measured: MeasuredTier, kept: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """So many kept traces are about as long as those of the pilot; where it has too few, as all that it generated."""
    counts, cap = np.array(measured.kept), tier.max_tokens or 0
    if counts.sum() >= MIN_MEASURED:
        lengths = np.repeat(np.array(measured.kept_tokens) / np.maximum(counts, 1), counts)
        stand_for = None if measured.weights is None else np.repeat(measured.weights, counts)
        return _of_all(lengths, np.repeat(measured.documents, counts), kept, random, stand_for, most=cap)
    lengths = np.array(measured.thought_tokens) / np.array(measured.generations)
    many = np.full_like(kept, 1e6)
    return kept * _of_all(lengths, measured.documents, many, random, measured.weights, most=cap) / many


def _copies(config: MillConfig, evidence: Evidence, weights: np.ndarray) -> np.ndarray:
    tokens = np.array([sum(len(s.input_ids) for s in document.segments) for document in evidence.sample], np.float64)
    copies = np.array([config.pack.source_weights.get(d.segments[0].source, 1.0) for d in evidence.sample])
    return weights @ (tokens * copies) / np.maximum(weights @ tokens, 1.0)


def shard_bytes(config: MillConfig, training_tokens: np.ndarray) -> np.ndarray:
    """About what so many training tokens take in shards, in bytes."""
    return training_tokens * BYTES_PER_TOKEN[load_tokenizer(config.tokenizer).dtype.itemsize]


def _seed(config: MillConfig) -> int:
    """By what the budget is to buy; where source and output are changes no forecast."""
    return text_number(content_id(yaml_config.dump(yaml_config.to_mapping(config)["budget"])))
