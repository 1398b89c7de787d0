"""Valuing a judged segment: its traces that passed the gates are tried, beside controls from other segments."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from augment.selection.candidates import Control, JudgedSegment, trace_of
from augment.selection.config import SelectConfig
from augment.selection.controls import controls_for
from augment.selection.values import value_class
from augment.selection.values.protocol import NatsAfter, Trial, Value
from sharding.records.types import Candidate


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


def valued(
    segment: JudgedSegment, config: SelectConfig, value: Value | None, pool: Sequence[Control]
) -> list[Candidate]:
    """The candidates of a segment, with their valuation those that no gate objected to, where their tier is valued.

    Args:
        value: from `make_value`.
        pool: the controls of the segment's tier.
    """
    passed = [candidate for candidate in segment.candidates if not candidate.reasons]
    if value is None or not segment.valued or not passed:
        return segment.candidates
    trial = Trial(
        segment_id=segment.segment_id,
        tier=segment.tier,
        source_text=segment.source_text,
        continuation=segment.continuation,
        traces=[trace_of(candidate) for candidate in passed],
        controls=[control.text for control in controls_for(segment, pool, config.gain.controls)],
    )
    columns = {c.key: vars(valuation) for c, valuation in zip(passed, value.valuations(trial), strict=True)}
    return [msgspec.structs.replace(c, **columns.get(c.key, {})) for c in segment.candidates]
