"""The value that prefers the longest trace: a control for the values that look at what a trace says."""

from __future__ import annotations

from collections.abc import Sequence

from augment.selection.values.protocol import NatsAfter, Trial, Valuation


class Length:
    """The value of a trace is its number of generated tokens."""

    needs_continuation = False
    needs_controls = False

    def __init__(self, nats_after: NatsAfter, threshold_nats: float) -> None:
        del nats_after, threshold_nats

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        return [Valuation(value=float(trace.thought_tokens)) for trace in trial.traces]
