"""Chance: what choosing among traces brings where none of them is about the segment. Pure.

The best of N noisy values is high, whatever the traces say; and what a trace does for the tokens that it was chosen by,
it partly does for the others as well (topic and style are common to both), whether it is about the segment or not. So
the controls' traces are chosen among as the segment's are, by the same tokens, and what that brings is the measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from augment.selection.config import SelectConfig
from augment.selection.values.protocol import Valuation

_DECIMALS = 3


@dataclass(frozen=True)
class Chance:
    """What the controls of a segment say of choosing there.

    Attributes:
        value, heldout_nats: of the trace that would be kept of a control, on average over controls; None where no
            control has as many traces as the segment.
        null_first_nats: what the traces of the first control gain beyond those of the others, on average.
        null_choice_nats: what choosing adds there, beyond what it adds among the others. Nothing tells the first
            control from the others: the truth of both is 0.
    """

    value: float | None
    heldout_nats: float | None
    null_first_nats: float | None
    null_choice_nats: float | None


def chance_of(controls: Sequence[Sequence[Valuation]], number: int, config: SelectConfig) -> Chance:
    """The chance of a segment with so many valued traces, from the valuations of each control's traces."""
    read = [[one for one in control if one.gain_nats is not None] for control in controls]
    gains = [float(np.mean([one.gain_nats for one in control])) for control in read if control]
    # Of more traces than the segment has, chance would bring more; and of a single token no half is left to measure on.
    enough = [
        control
        for control in read
        if len(control) >= number > 0 and all(one.heldout_nats is not None for one in control)
    ]
    chosen = [_kept(control[:number], config) for control in enough]
    added = [
        heldout - float(np.mean([one.heldout_nats for one in control[:number]]))
        for (_, heldout), control in zip(chosen, enough, strict=True)
    ]
    return Chance(
        value=_mean([value for value, _ in chosen]),
        heldout_nats=_mean([heldout for _, heldout in chosen]),
        null_first_nats=_beyond_others(gains),
        null_choice_nats=_beyond_others(added),
    )


def _kept(traces: Sequence[Valuation], config: SelectConfig) -> tuple[float, float]:
    """Value and held-out nats of the trace that `select.keep` keeps; of a draw, and of several, the mean."""
    values = np.array([one.value for one in traces], np.float64)
    heldout = np.array([one.heldout_nats for one in traces], np.float64)
    if config.keep in ("best", "best_above"):
        weights = np.eye(len(traces))[values.argmax()]
    elif config.keep == "sample":
        weights = np.exp((values - values.max()) / config.sample_temperature)
    else:
        weights = np.ones(len(traces)) if config.keep == "all" else np.eye(len(traces))[0]
    weights = weights / weights.sum()
    return float(weights @ values), float(weights @ heldout)


def _mean(numbers: Sequence[float]) -> float | None:
    return round(float(np.mean(numbers)), _DECIMALS) if numbers else None


def _beyond_others(numbers: Sequence[float]) -> float | None:
    return numbers[0] - float(np.mean(numbers[1:])) if len(numbers) > 1 else None
