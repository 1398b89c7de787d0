"""A value of one's own under which traces gain what is built in, to see what a pilot makes of it.

`select.value: benchmarks.built_in_gain:BuiltInGain`. A trace helps a segment that says "puzzle" by `GAIN_NATS` of its
tier, others by nothing; the rest is noise, as strong as measured with real models, and of the text's style a part that
both halves share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from augment.selection.values.protocol import NatsAfter, Trial, Valuation
from sharding.hashing import text_number

GAIN_NATS = {"brief": 1.0, "deep": 3.0}
NOISE_NATS = 2.0
WORD = "puzzle"


class BuiltInGain:
    """Gains by the segment's kind and the tier."""

    needs_continuation = False
    needs_controls = True
    gains = GAIN_NATS

    def __init__(self, nats_after: NatsAfter, threshold_nats: float) -> None:
        del nats_after, threshold_nats

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        own = self.gains.get(trial.tier, 0.0) if WORD in trial.source_text else 0.0
        controls = np.mean([self._halves(trial, text, 0.0) for text in trial.controls], axis=0)
        of_others = set(trial.controls)
        found = []
        for trace in trial.traces:
            halves = self._halves(trial, trace.text, 0.0 if trace.text in of_others else own)
            chosen_by, heldout = halves - controls
            found.append(
                Valuation(
                    value=round(float(chosen_by), 3),
                    heldout_nats=round(float(heldout), 3),
                    gain_nats=round(float(halves.mean()), 3),
                    control_nats=round(float(controls.mean()), 3),
                )
            )
        return found

    def _halves(self, trial: Trial, trace: str, own: float) -> np.ndarray:
        """(2,) nats gained on either half, each scaled up to the whole."""
        random = np.random.default_rng(text_number(f"{trial.segment_id} {trace}"))
        return own + random.normal(0, NOISE_NATS) + random.normal(0, NOISE_NATS, 2)


class NoGain(BuiltInGain):
    """Nothing helps: what is found is chance."""

    gains = dict.fromkeys(GAIN_NATS, 0.0)
