"""Values of the miniature: arms in which thoughts stand about one kind of text only.

Named in a config as `select: {value: "pipelines.miniature.values:OnNoise", keep: best_above, min_value: 0.5}`.
"""

from __future__ import annotations

from collections.abc import Sequence

from augment.selection.values.protocol import NatsAfter, Trial, Valuation
from pipelines.miniature.world import NUMBER_KINDS


class OnNoise:
    """1 for a thought about a number that follows from nothing, 0 for all others."""

    needs_continuation = False
    needs_controls = False

    def __init__(self, nats_after: NatsAfter, threshold_nats: float) -> None:
        del nats_after, threshold_nats

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        about = any(f"'s {kind}" in trial.source_text for kind in NUMBER_KINDS)
        return [Valuation(value=float(about)) for _ in trial.traces]
