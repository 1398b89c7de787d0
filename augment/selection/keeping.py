"""Keeping: which of a segment's candidates go into the corpus, and why not the others. The last step of selection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from augment.selection.config import SelectConfig
from sharding.hashing import fraction_of
from sharding.records.types import NOT_CHOSEN as NOT_CHOSEN
from sharding.records.types import Candidate

BELOW_THRESHOLD = "below_threshold"
"""The reason of a candidate that passed every gate and whose value, less chance's, is under `select.min_value`."""

UNVALUED = "unvalued"
"""The reason of a candidate that passed every gate and has no value, where `select.keep: best_above` asks for one."""


def choose(candidates: Sequence[Candidate], config: SelectConfig) -> list[Candidate]:
    """The candidates of one segment, each kept or with a reason why not.

    Those without reasons are in the running. Ties and candidates without a value go by their samples' order.
    """
    running = [candidate for candidate in candidates if not candidate.reasons]
    kept = {candidate.key for candidate in _winners(running, config)}
    return [
        msgspec.structs.replace(candidate, kept=True)
        if candidate.key in kept
        else msgspec.structs.replace(candidate, reasons=candidate.reasons or [_why_not(candidate, bool(kept))])
        for candidate in candidates
    ]


def _why_not(candidate: Candidate, another_kept: bool) -> str:
    if another_kept:
        return NOT_CHOSEN
    return UNVALUED if candidate.value is None else BELOW_THRESHOLD


def _winners(running: Sequence[Candidate], config: SelectConfig) -> Sequence[Candidate]:
    if config.keep == "all" or not running:
        return running
    valued = [candidate for candidate in running if candidate.value is not None]
    if config.keep == "best_above":
        valued = [c for c in valued if _value(c) - (c.chance_value or 0.0) >= config.min_value]
        return [max(valued, key=_value)] if valued else []
    if config.keep == "first" or not valued:
        return running[:1]
    if config.keep == "sample":
        return [max(valued, key=lambda candidate: _perturbed(candidate, config))]
    return [max(valued, key=_value)]


def _value(candidate: Candidate) -> float:
    assert candidate.value is not None
    return candidate.value


def _perturbed(candidate: Candidate, config: SelectConfig) -> float:
    """The Gumbel-max trick: the largest of log-weight plus Gumbel noise is a draw in proportion to the weights.

    BoLT (arXiv 2503.18866) draws traces so; its log-weight is log p(z, x) - log q(z | x), here it is the value.
    """
    uniform = fraction_of(f"{config.seed}/{candidate.segment_id}/{candidate.key}")
    return _value(candidate) / config.sample_temperature - math.log(-math.log(max(uniform, 1e-300)))
