"""The arithmetic of a plan: from evidence and measurements to what each stage and tier will take, with intervals.

Every number is an array: first the estimate, then what it would have been in each of `DRAWS` resamplings of the
evidence (bootstrap over documents, and over the ranges they were read from) and of the pilot's measurements. Sums and
products keep draws together, so that the interval of a total accounts for what its parts share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difficulty.budget.allocation import Allocation
from difficulty.budget.tiers import TierConfig
from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.joints import Choices, allocation_of, holdback_of, trace_planner
from pipelines.plan.evidence import Corpus, Evidence
from pipelines.plan.measured import MeasuredTier, Pilot
from sharding.errors import RequestError
from sharding.hashing import content_id, text_number
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request

DRAWS = 100
INTERVAL = (0.05, 0.95)
"""Between these quantiles of the draws lies a 90% interval."""

BYTES_PER_TOKEN = {2: 0.84, 4: 0.99}
"""What a training token takes in a shard, types and lengths included, by the bytes of an id: measured with zstd at
level 3 on technical text."""

MIN_MEASURED = 2
"""Segments that a tier needs in the pilot for its measurements to count."""


@dataclass(frozen=True, kw_only=True)
class TierForecast:
    """One tier; all arrays (1 + DRAWS,) float64.

    Attributes:
        basis: where the length of its traces comes from: "pilot", "expected_tokens", or "max_tokens", a ceiling.
        cut_share, accepted_share, kept_share: of the pilot's generations; None without.
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
    cut_share: float | None = None
    accepted_share: float | None = None
    kept_share: float | None = None
    gain_nats: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will come to.

    Attributes:
        allocation: the plan as the run would make it now.
        documents, segments, source_tokens, copies: (1 + DRAWS,) of the corpus; `copies` is how often a source token
            is in the shards, for the weights of the sources.
        infeasible_share: of the draws, those whose corpus couldn't take the budget.
    """

    allocation: Allocation
    documents: np.ndarray
    segments: np.ndarray
    source_tokens: np.ndarray
    copies: np.ndarray
    tiers: tuple[TierForecast, ...]
    infeasible_share: float


def forecast(config: MillConfig, evidence: Evidence, pilot: Pilot | None) -> Forecast:
    """The forecast.

    Raises:
        RequestError: the budget can't be met; says what can.
    """
    random = np.random.Generator(np.random.PCG64(_seed(config)))
    allocation = allocation_for(config, evidence)
    draws = [np.ones(len(evidence.sample), np.int64), *(_resample(evidence, random) for _ in range(DRAWS))]
    corpora: list[Corpus] = []
    plans: list[Allocation] = []
    infeasible = 0
    for multiplicity in draws:
        corpus = corpora[0] if corpora and evidence.scored is not None else evidence.corpus(multiplicity)
        try:
            plan = allocation if not plans or evidence.scored is not None else _allocate(config, corpus)
        except RequestError:
            infeasible += 1
            corpus, plan = corpora[0], plans[0]
        corpora.append(corpus)
        plans.append(plan)
    prompts = prompt_requests(config, evidence, allocation)
    tiers = tuple(
        _tier(
            tier,
            number,
            plans,
            draws,
            prompts,
            pilot.tiers.get(tier.name) if pilot else None,
            random,
            keep_all=config.select.keep == "all",
        )
        for number, tier in enumerate(config.budget.tiers)
    )
    return Forecast(
        allocation=allocation,
        documents=np.array([corpus.documents for corpus in corpora]),
        segments=np.array([corpus.segments for corpus in corpora]),
        source_tokens=np.array([corpus.source_tokens for corpus in corpora]),
        copies=_copies(config, evidence, draws),
        tiers=tiers,
        infeasible_share=infeasible / DRAWS,
    )


def allocation_for(config: MillConfig, evidence: Evidence) -> Allocation:
    """The plan for the corpus as the evidence has it.

    Raises:
        RequestError: the budget can't be met.
    """
    corpus = evidence.corpus(np.ones(len(evidence.sample), np.int64))
    try:
        return _allocate(config, corpus)
    except RequestError as error:
        if evidence.scored is not None:
            raise
        raise RequestError(f"{error} (as estimated from {len(evidence.sample)} documents)") from error


def _allocate(config: MillConfig, corpus: Corpus) -> Allocation:
    return allocation_of(config, corpus.histogram, round(corpus.source_tokens))


def estimate(values: np.ndarray) -> dict[str, float]:
    """An array of this module as its estimate and 90% interval."""
    low, high = np.quantile(values[1:], INTERVAL)
    return {"value": float(values[0]), "low": float(min(low, values[0])), "high": float(max(high, values[0]))}


def prompt_requests(config: MillConfig, evidence: Evidence, allocation: Allocation) -> list[tuple[int, int, Request]]:
    """(document, tier, request) of the sample's segments that think, counted in training tokens.

    The generators' own tokenizers and chat templates take seconds to load and change a prompt's length by little.
    """
    planner = trace_planner(config)
    for name, model in planner.models.items():
        planner.models[name] = dataclasses.replace(
            model, engine="rehearsal", urls=(), served_name=None, api_key_env=None, engine_args={}
        )
    choices = Choices(allocation, holdback_of(config))
    numbers = {tier.name: number for number, tier in enumerate(config.budget.tiers)}
    found = []
    for number, document in enumerate(evidence.sample):
        for request in planner.requests(document.segments, choices):
            if isinstance(request, Request):
                found.append((number, numbers[request.tier], request))
    return found


def _resample(evidence: Evidence, random: np.random.Generator) -> np.ndarray:
    """How often each document is drawn: (documents,) int64."""
    size = len(evidence.sample)
    if evidence.complete:
        return np.ones(size, np.int64)
    members = np.arange(size)
    if not evidence.whole_groups:
        groups = np.array([document.group for document in evidence.sample])
        names = np.unique(groups)
        members = np.concatenate([np.flatnonzero(groups == name) for name in random.choice(names, len(names))])
    return np.bincount(random.choice(members, len(members)), minlength=size)


def _tier(
    tier: TierConfig,
    number: int,
    plans: Sequence[Allocation],
    draws: Sequence[np.ndarray],
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
        weights = [multiplicity[documents].astype(np.float64) for multiplicity in draws]
        prompt_tokens = np.array([float(w @ lengths / w.sum()) if w.any() else float(lengths.mean()) for w in weights])
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
    made = sum(measured.generations)
    return TierForecast(
        name=tier.name,
        model=tier.model,
        segments=segments,
        generations=generations,
        tokens_in=_total(np.array(measured.prompt_tokens, np.float64) * tier.samples, segments, random),
        tokens_out=_total(np.array(measured.thought_tokens, np.float64), segments, random),
        kept=np.minimum(_total(np.array(measured.kept, np.float64), segments, random), generations),
        kept_tokens=_total(np.array(measured.kept_tokens, np.float64), segments, random),
        basis="pilot",
        cut_share=sum(measured.cut) / made,
        accepted_share=sum(measured.accepted) / made,
        kept_share=sum(measured.kept) / made,
        gain_nats=_mean(np.array([nats for nats in measured.heldout_nats if nats is not None]), random),
    )


def _total(measured: np.ndarray, segments: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The sum over so many segments of what was measured on a few: those as they are, the others like them.

    Draws are of the predictive distribution: the mean of the others is uncertain by the few that were measured
    (Student's t, since their spread is estimated too), and the sum of the others varies around it.
    """
    size, mean, spread = len(measured), float(measured.mean()), float(measured.std(ddof=1))
    # All of a tier may have been measured, or more than the tier gets by now.
    others = np.maximum(segments - size, 0.0)
    total = np.where(segments >= size, measured.sum(), segments * mean) + others * mean
    noise = random.standard_t(size - 1, len(segments)) * spread / math.sqrt(size) * others
    noise += random.standard_normal(len(segments)) * spread * np.sqrt(others)
    noise[0] = 0.0
    return np.asarray(np.maximum(total + noise, 0.0))


def _mean(measured: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    """(1 + DRAWS,) the mean of few numbers, uncertain by Student's t; None of fewer than `MIN_MEASURED`.

    Nothing is added to it, so its draws needn't be independent: evenly spaced quantiles give a steadier interval.
    """
    if len(measured) < MIN_MEASURED:
        return None
    drawn = random.standard_t(len(measured) - 1, 10_000) * measured.std(ddof=1) / math.sqrt(len(measured))
    spaced = np.quantile(drawn, (np.arange(DRAWS) + 0.5) / DRAWS)
    return np.concatenate([[measured.mean()], measured.mean() + spaced])


def _copies(config: MillConfig, evidence: Evidence, draws: Sequence[np.ndarray]) -> np.ndarray:
    tokens = np.array([sum(len(s.input_ids) for s in document.segments) for document in evidence.sample], np.float64)
    weights = np.array([config.pack.source_weights.get(d.segments[0].source, 1.0) for d in evidence.sample])
    return np.array([float((m * tokens) @ weights / max(float(m @ tokens), 1.0)) for m in draws])


def shard_bytes(config: MillConfig, training_tokens: np.ndarray) -> np.ndarray:
    """About what so many training tokens take in shards, in bytes."""
    return training_tokens * BYTES_PER_TOKEN[load_tokenizer(config.tokenizer).dtype.itemsize]


def _seed(config: MillConfig) -> int:
    return text_number(content_id(yaml_config.dump(config)))
