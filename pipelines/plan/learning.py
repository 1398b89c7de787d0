"""Learning from an exploring pilot: `thoughtmill plan --pilot N --explore`. Read `explore` from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from difficulty.budget.tiers import TierConfig
from difficulty.gain.fitting import Observations, fit, fit_model
from difficulty.gain.model import GainModel
from pipelines.config import MillConfig
from pipelines.plan import explore as exploring
from pipelines.plan.corpus import SampledDocument
from pipelines.plan.explore import Say, Tried, told
from pipelines.plan.frontier import costs_of
from pipelines.plan.learned import Learned, write_learned
from pipelines.plan.measured import Pilot
from sharding.errors import MillError, RequestError
from sharding.hashing import content_id
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import ScoredSegment
from sharding.storage.manifest import Manifest

CORPUS_SEGMENTS = 4_000
"""Segments without a measurement that show what kinds of text there are."""

FOLDS = 5
"""What the plan promises of a segment is learned from the documents of the other folds."""

_BySegment = Mapping[str, tuple[float, ...]]  # what every tier is expected to bring it


def explore(
    config: MillConfig,
    scored: Manifest,
    count: int,
    *,
    tries: int | None = None,
    beam_args: Sequence[str] = (),
    say: Say = print,
) -> tuple[Learned, Pilot, list[str]]:
    """Try about `count` segments with every tier, learn what pays, and store it in the output.

    Args:
        scored: the manifest of the scored parts.
        count: segments.
        tries: tiers that each segment is tried with, drawn at random; None: all.
        beam_args: Beam options for the generation.
        say: is told what it will cost, before it is spent.

    Returns:
        What was learned, the measurements, and what the reader should know.

    Raises:
        RequestError: nothing can be measured with this config; says what to change.
        MillError: too much of the generation failed; what was bought is in the ledger.
    """
    tiers = exploring.thinking_tiers(config)
    if tries is not None and not 1 <= tries <= len(tiers):
        raise RequestError(f"plan --tries: {tries} of {len(tiers)} tiers; allowed: 1 to {len(tiers)}")
    tries = tries or len(tiers)
    frame = exploring.frame_of(config, scored, count)
    tried = exploring.draw(config, frame, tiers, count, tries)
    pilot, notes = exploring.measure(config, tried, beam_args, say)
    for name, rate in pilot.tokens_per_second.items():
        if rate is not None and config.models[name].tokens_per_gpu_second is None:
            # Said at once: a budget in GPU-hours needs it, and the plan would end there.
            key = f"models.{name}.tokens_per_gpu_second"
            say(f"model {name} generated {rate:,.0f} tokens per second ({key} is not set)")
    observed = _observations(pilot, tried)
    corpus = _corpus(frame)
    decode = load_tokenizer(config.tokenizer).decode
    fitted = fit(observed, corpus, tiers, decode=lambda ids: decode(np.asarray(ids)))
    pilot = _with_expectations(
        pilot,
        expected_nats=_expectations(fitted.model, observed, tiers, tried),
        learned_nats=_by_segment([one.segment for one in tried], fitted.model),
    )
    learned = Learned(
        model=fitted.model,
        costs=costs_of(config, pilot),
        report=fitted.report.to_json(),
        made_from={
            "documents": len(set(observed.documents.tolist())),
            "segments": len(tried),
            "tries": sum(len(tier.generations) for tier in pilot.tiers.values()),
            "gains": len(observed.segments),
        },
    )
    write_learned(config, scored, learned)
    return learned, pilot, notes


def _observations(pilot: Pilot, tried: Sequence[Tried]) -> Observations:
    of_segment = {one.segment.segment_id: one.segment for one in tried}
    rows = [(name, tier, place) for name, tier in pilot.tiers.items() for place in told(tier).tolist()]
    if not rows:
        raise MillError(
            "the pilot could not tell what any trace gains (nothing follows its segments, its traces are too long for "
            "the scorer, or too few documents have traces to compare with): raise --pilot, or see select.gain"
        )
    return Observations(
        segments=[of_segment[tier.segment[place]] for _, tier, place in rows],
        documents=np.array([tier.document[place] for _, tier, place in rows]),
        tiers=[name for name, _, _ in rows],
        gain_nats=np.array([tier.gain_nats[place] for _, tier, place in rows], np.float64),
        chances=np.array([1 / tier.weight[place] for _, tier, place in rows]),
    )


def _corpus(frame: Sequence[SampledDocument]) -> list[ScoredSegment]:
    segments = [segment for document in frame for segment in document.segments]
    return sorted(segments, key=lambda segment: content_id(f"corpus {segment.segment_id}"))[:CORPUS_SEGMENTS]


def _expectations(
    model: GainModel,
    observed: Observations,
    tiers: Sequence[TierConfig],
    tried: Sequence[Tried],
) -> _BySegment:
    """What each tried segment is expected to gain by every tier, learned from documents of other folds.

    What the model says of the segments that it was learned from would promise too much: their noise is in it.
    """
    documents = {s.doc_id: int(d) for s, d in zip(observed.segments, observed.documents, strict=True)}
    fold_of = {name: int(content_id(f"fold {number}"), 16) % FOLDS for name, number in documents.items()}
    places = np.array([fold_of[segment.doc_id] for segment in observed.segments])
    found: dict[str, tuple[float, ...]] = {}
    for fold in range(FOLDS):
        own = [one.segment for one in tried if fold_of.get(one.segment.doc_id, 0) == fold]
        rest = np.flatnonzero(places != fold)
        if not own:
            continue
        try:
            of_others = fit_model(_part(observed, rest), model.features, tiers)
        except (RequestError, MillError):  # a pilot so small that the others have nothing of some tier
            of_others = model
        found.update(_by_segment(own, of_others))
    return found


def _by_segment(segments: Sequence[ScoredSegment], model: GainModel) -> _BySegment:
    gains = model.expected(segments).mean.tolist()
    return {segment.segment_id: tuple(own) for segment, own in zip(segments, gains, strict=True)}


def _part(observed: Observations, places: np.ndarray) -> Observations:
    return Observations(
        segments=[observed.segments[place] for place in places],
        documents=observed.documents[places],
        tiers=[observed.tiers[place] for place in places],
        gain_nats=observed.gain_nats[places],
        chances=observed.chances[places],
    )


def _with_expectations(pilot: Pilot, *, expected_nats: _BySegment, learned_nats: _BySegment) -> Pilot:
    """The pilot with these lists of its tiers, from what is expected of each segment."""
    return dataclasses.replace(
        pilot,
        tiers={
            name: dataclasses.replace(
                tier,
                expected_nats=tuple(expected_nats[segment] for segment in tier.segment),
                learned_nats=tuple(learned_nats[segment] for segment in tier.segment),
            )
            for name, tier in pilot.tiers.items()
        },
    )
