"""Selection: the generations of a segment become candidates, each kept or rejected with its reasons. Pure.

    request + ledger rows ──► candidates ──► judged by the gates ──► valued ──► the keep policy chooses

The select stage, and the pilot of a plan, apply one step after the other; every candidate ends kept, or rejected with
exactly one first reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from augment.selection.candidates import Control, JudgedSegment, trace_of
from augment.selection.config import SelectConfig
from augment.selection.controls import controls_for
from augment.selection.values import value_class
from augment.selection.values.protocol import Case, NatsAfter, Value
from sharding.hashing import fraction_of
from sharding.records.types import Candidate

NOT_CHOSEN = "not_chosen"
"""The reason of a candidate that passed every gate while another one was kept."""

BELOW_THRESHOLD = "below_threshold"
"""The reason of a candidate that passed every gate and is worth less than `select.min_value`."""


def make_value(config: SelectConfig, nats_after: NatsAfter, threshold_nats: float) -> Value | None:
    """The value of a config; None for none.

    Args:
        nats_after: asks the scorer; loads it when first called.
        threshold_nats: surprisal above which a token is hard.

    Raises:
        RequestError: it can't be loaded.
    """
    name = config.value_name
    return None if name == "none" else value_class(name)(nats_after, threshold_nats)


def decide(
    segment: JudgedSegment, config: SelectConfig, value: Value | None, pool: Sequence[Control]
) -> list[Candidate]:
    """The candidates of a judged segment, valued where its tier is, each kept or with a reason why not.

    Args:
        value: from `make_value`.
        pool: the controls of the segment's tier.
    """
    if value is not None and segment.valued:
        controls = controls_for(segment, pool, config.gain.controls)
        segment = add_worths(segment, value, [control.text for control in controls])
    return choose(segment.candidates, config)


def add_worths(segment: JudgedSegment, value: Value, controls: Sequence[str]) -> JudgedSegment:
    """The segment with the worth of every candidate that no gate objected to."""
    passed = [candidate for candidate in segment.candidates if not candidate.reasons]
    worths = value.worths(
        Case(
            segment_id=segment.segment_id,
            tier=segment.tier,
            source_text=segment.source_text,
            continuation=segment.continuation,
            traces=[trace_of(candidate) for candidate in passed],
            controls=controls,
        )
    )
    worth_of = {candidate.key: worth for candidate, worth in zip(passed, worths, strict=True)}
    return msgspec.structs.replace(
        segment,
        candidates=[
            msgspec.structs.replace(candidate, **vars(worth_of[candidate.key]))
            if candidate.key in worth_of
            else candidate
            for candidate in segment.candidates
        ],
    )


def choose(candidates: Sequence[Candidate], config: SelectConfig) -> list[Candidate]:
    """The candidates of one segment, each kept or with a reason why not.

    Those without reasons are in the running. Ties and candidates without a value go by their samples' order.
    """
    running = [candidate for candidate in candidates if not candidate.reasons]
    kept = {candidate.key for candidate in _winners(running, config)}
    why_not = BELOW_THRESHOLD if running and not kept else NOT_CHOSEN
    return [
        msgspec.structs.replace(candidate, kept=True)
        if candidate.key in kept
        else msgspec.structs.replace(candidate, reasons=candidate.reasons or [why_not])
        for candidate in candidates
    ]


def _winners(running: Sequence[Candidate], config: SelectConfig) -> Sequence[Candidate]:
    if config.keep == "all" or not running:
        return running
    valued = [candidate for candidate in running if candidate.value is not None]
    if config.keep == "first" or not valued:
        return running[:1]
    if config.keep == "sample":
        return [max(valued, key=lambda candidate: _perturbed(candidate, config))]
    best = max(valued, key=_value)
    return [] if config.keep == "best_above" and _value(best) < config.min_value else [best]


def _value(candidate: Candidate) -> float:
    assert candidate.value is not None
    return candidate.value


def _perturbed(candidate: Candidate, config: SelectConfig) -> float:
    """The Gumbel-max trick: the largest of log-weight plus Gumbel noise is a draw in proportion to the weights.

    BoLT (arXiv 2503.18866) draws traces so; its log-weight is log p(z, x) - log q(z | x), here it is the value.
    """
    uniform = fraction_of(f"{config.seed}/{candidate.segment_id}/{candidate.key}")
    return _value(candidate) / config.sample_temperature - math.log(-math.log(max(uniform, 1e-300)))
