"""Valuing a judged segment: its traces that passed the gates are tried, beside controls from other segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from augment.selection.candidates import Control, JudgedSegment, StepText, trace_of
from augment.selection.chance import chance_of
from augment.selection.config import SelectConfig
from augment.selection.controls import controls_for
from augment.selection.trimming import Trimmed, prefixes_of, trim
from augment.selection.values import value_class
from augment.selection.values.protocol import Trial, Valuation, Value
from augment.traces import Trace
from sharding.records.types import Candidate

TOO_FEW_CONTROLS = "too_few_controls"
"""Why a trace has no value: too few other documents have traces of its tier to compare it with."""

AskScorer = Callable[[Sequence[str], str, int, int], tuple[np.ndarray, int]]
"""As `values.protocol.NatsAfter`; beside the nats it gives how many tokens of the text's front were not read."""


@dataclass(frozen=True, kw_only=True)
class ValuedSegment:
    """A segment's candidates with their values, and what the estimate says where the truth is nothing.

    Attributes:
        candidates: all of the segment's.
        document: see `augment.selection.candidates.AskedSegment`.
        null_first_nats: what one control's traces gain beyond those of the others, on average; None without controls.
        null_choice_nats: what choosing among them adds, beyond what it adds among the others'.
        cut_tokens: of the segment's front, that the scorer had no room for.
        steps: the calls of its recipe; empty without one.
        grades: a judge's, by the key of the candidate.
        step_nats: step → what its thoughts gain beyond controls, on average; of values that are gains.
    """

    candidates: list[Candidate]
    document: str
    null_first_nats: float | None = None
    null_choice_nats: float | None = None
    cut_tokens: int = 0
    steps: Sequence[StepText] = ()
    step_nats: Mapping[str, float] = field(default_factory=dict)
    grades: Mapping[str, float] = field(default_factory=dict)


class Valuer:
    """Values the candidates of segments, one segment at a time.

    Args:
        config: the `select` section.
        ask: asks the scorer; loads it when first called.
        threshold_nats: surprisal above which a token is hard.

    Raises:
        RequestError: the value can't be loaded.
    """

    def __init__(self, config: SelectConfig, ask: AskScorer, threshold_nats: float) -> None:
        name = config.value_name
        self._config = config
        self._nats = _Remembered(ask)
        self._value: Value | None = None if name == "none" else value_class(name)(self._nats, threshold_nats)
        # What is chosen by something that has not seen the text needs no measure of what choosing by it brings.
        self._by_gain = getattr(self._value, "chooses_by_gain", True)

    def valued(self, segment: JudgedSegment, pool: Sequence[Control]) -> ValuedSegment:
        """The candidates, with their valuation those that no gate objected to, where their tier is valued.

        Args:
            pool: the controls of the segment's tier.
        """
        passed = [candidate for candidate in segment.candidates if not candidate.reasons]
        if self._value is None or not segment.valued or not passed:
            return ValuedSegment(candidates=segment.candidates, document=segment.document, steps=segment.steps)
        controls: list[Control] = []
        if self._value.needs_controls and not (controls := controls_for(segment, pool, self._config.gain.controls)):
            columns = {candidate.key: {"unvalued": TOO_FEW_CONTROLS} for candidate in passed}
            return ValuedSegment(
                candidates=_with(segment.candidates, columns), document=segment.document, steps=segment.steps
            )
        trial = Trial(
            segment_id=segment.segment_id,
            tier=segment.tier,
            source_text=segment.source_text,
            continuation=segment.continuation,
            traces=[trace_of(candidate) for candidate in passed],
            controls=[trace.text for control in controls for trace in control.traces],
            trace_tokens=segment.trace_tokens,
            grades=[
                grade
                for candidate, grade in zip(segment.candidates, segment.grades, strict=bool(segment.grades))
                if not candidate.reasons
            ],
        )
        valuations = self._valuations(trial)
        # As if the traces of each control were the segment's own; every row has been read by now.
        as_own = [
            self._valuations(replace(trial, traces=control.traces, grades=())) for control in controls if self._by_gain
        ]
        chance = chance_of(as_own, sum(one.value is not None for one in valuations), self._config)
        by_chance = {"chance_value": chance.value, "chance_heldout_nats": chance.heldout_nats}
        if not self._by_gain:
            by_chance = {"chance_value": None, "chance_heldout_nats": 0.0}
        columns = {
            candidate.key: vars(valuation) | (by_chance if valuation.value is not None else {})
            for candidate, valuation in zip(passed, valuations, strict=True)
        }
        return ValuedSegment(
            candidates=_with(segment.candidates, columns),
            document=segment.document,
            null_first_nats=chance.null_first_nats,
            null_choice_nats=chance.null_choice_nats,
            cut_tokens=self._nats.cut_tokens,
            steps=segment.steps,
            step_nats=self._step_nats(segment.steps, trial),
            grades={
                candidate.key: grade
                for candidate, grade in zip(segment.candidates, segment.grades, strict=bool(segment.grades))
                if grade is not None
            },
        )

    def trimmed(self, segment: JudgedSegment, candidate: Candidate) -> Trimmed | None:
        """A kept candidate as it is cut; None where it stays whole, or nothing can be told of it."""
        config = self._config
        if config.trim is None or candidate.gain_nats is None or not segment.continuation:
            return None
        too_short = config.gates.too_short
        prefixes = prefixes_of(candidate.text, config.trim, too_short.min_bytes if too_short.enabled else 0)
        if not prefixes:
            return None
        text = segment.source_text + segment.continuation
        rows = ["", *prefixes, candidate.text]
        nats = self._nats(rows, text, len(segment.source_text), segment.trace_tokens)
        return trim(prefixes, nats[0] - nats[1:], config.trim)

    def _step_nats(self, steps: Sequence[StepText], trial: Trial) -> dict[str, float]:
        """What the thoughts of each step gain beyond the controls, on average, as if each were the segment's trace."""
        texts: dict[str, list[str]] = {}
        for call in steps:
            if call.text:
                texts.setdefault(call.step, []).append(call.text)
        found = {}
        for step, own in texts.items():
            traces = [Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=0) for text in own]
            valuations = self._valuations(replace(trial, traces=traces, grades=()))
            nets = [one.gain_nats - (one.control_nats or 0.0) for one in valuations if one.gain_nats is not None]
            if nets:
                found[step] = float(np.mean(nets))
        return found

    def _valuations(self, trial: Trial) -> Sequence[Valuation]:
        assert self._value is not None
        return self._value.valuations(trial)


class _Remembered:
    """The nats of every row of a segment, asked for once."""

    def __init__(self, ask: AskScorer) -> None:
        self._ask = ask
        self._case: tuple[str, int, int] | None = None
        self._rows: dict[str, np.ndarray] = {}
        self.cut_tokens = 0

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, prefix_tokens: int) -> np.ndarray:
        case = (text, skipped, prefix_tokens)
        if case != self._case:
            self._case, self._rows = case, {}
        if new := [prefix for prefix in dict.fromkeys(prefixes) if prefix not in self._rows]:
            nats, self.cut_tokens = self._ask(new, *case)
            self._rows.update(zip(new, nats, strict=True))
        return np.stack([self._rows[prefix] for prefix in prefixes])


def _with(candidates: Sequence[Candidate], columns: Mapping[str, Mapping[str, Any]]) -> list[Candidate]:
    return [msgspec.structs.replace(candidate, **columns.get(candidate.key, {})) for candidate in candidates]
