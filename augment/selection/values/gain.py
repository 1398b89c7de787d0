"""Values that ask the scorer: how much more likely does a trace make a text?

Traces are tried in the order trace, segment, text that follows: a trace between segment and continuation costs tens of
nats for the break alone, whatever it says. What the format and the length of any trace cost or gain is the same for
traces of other segments, so that is subtracted (the control).

The best of N noisy values is above the truth. So the tokens of the text are dealt out, block by block, to two halves:
candidates are chosen by the one, and what choosing brings is measured on the other. The halves are not independent (a
trace of the text's topic or style lifts both), so the controls are chosen among in the same way, and what that brings
is subtracted: see `augment.selection.valuing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from augment.selection.values.protocol import NatsAfter, Trial, Valuation
from augment.selection.words import WORD

BLOCK_TOKENS = 16
"""Neighbouring tokens share words, so they are dealt out to the two halves in blocks of this many."""

COPY_WORDS = 3
"""So many words in a row that also stand in the segment, in that order, are copied."""

_DECIMALS = 3
"""Values are rounded to so many: what two machines' arithmetic differ by must not choose."""


NOTHING_FOLLOWS = "nothing_follows"
"""Why a trace has no value: no text follows its segment, and no tail was held back."""

TOO_LONG = "too_long"
"""Why a trace has no value: with it, segment and continuation are longer than the scorer reads at once."""


class ContinuationGain:
    """What a trace does for the text after the segment, which its generator was not shown; so that copying can't win.

    gain = log p(continuation | trace, segment) - log p(continuation | segment), less the mean of the same for control
    traces. Without anything to try it on, there is no value.
    """

    needs_continuation = True
    needs_controls = True

    def __init__(self, nats_after: NatsAfter, threshold_nats: float) -> None:
        self._nats_after, self._threshold_nats = nats_after, threshold_nats

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        prefixes = ["", *(trace.text for trace in trial.traces), *trial.controls]
        text = trial.source_text + trial.continuation
        nats = self._nats_after(prefixes, text, len(trial.source_text), trial.trace_tokens)
        gains = nats[0] - nats[1:]
        of_traces, of_controls = gains[: len(trial.traces)], gains[len(trial.traces) :]
        read = of_controls[np.isfinite(of_controls).all(axis=1)]
        control = read.mean(axis=0) if len(read) else np.zeros_like(nats[0])
        return [_valuation(gain, control, nats[0] > self._threshold_nats) for gain in of_traces]


class SelfGain:
    """What a trace does for the segment itself, beyond what its mere copies from the segment do.

    gain = log p(segment | trace) - log p(segment), the reward of RLP (arXiv 2510.01265), less the same for the words of
    the trace that stand in the segment in the same order: a trace that only copies has no value.
    """

    needs_continuation = False
    needs_controls = False

    def __init__(self, nats_after: NatsAfter, threshold_nats: float) -> None:
        self._nats_after, self._threshold_nats = nats_after, threshold_nats

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        copies = [copied_part(trace.text, trial.source_text) for trace in trial.traces]
        prefixes = ["", *(trace.text for trace in trial.traces), *copies]
        nats = self._nats_after(prefixes, trial.source_text, 0, trial.trace_tokens)
        gains = nats[0] - nats[1:]
        hard = nats[0] > self._threshold_nats
        return [
            _valuation(gain, control, hard)
            for gain, control in zip(gains[: len(copies)], gains[len(copies) :], strict=True)
        ]


def copied_part(trace: str, source: str) -> str:
    """The parts of a trace that are copies of the source, one after the other: runs of three words or more."""
    wanted = _ngrams([match[0].lower() for match in WORD.finditer(source)])
    words = list(WORD.finditer(trace))
    lowered = [match[0].lower() for match in words]
    copied = np.zeros(len(words), bool)
    for at in range(len(words) - COPY_WORDS + 1):
        if tuple(lowered[at : at + COPY_WORDS]) in wanted:
            copied[at : at + COPY_WORDS] = True
    runs = np.flatnonzero(np.diff(np.concatenate([[0], copied.astype(np.int8), [0]])))
    return " ".join(trace[words[first].start() : words[end - 1].end()] for first, end in runs.reshape(-1, 2))


def _ngrams(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + COPY_WORDS]) for at in range(len(words) - COPY_WORDS + 1)}


def chosen_by(num_tokens: int) -> np.ndarray:
    """Which tokens candidates are chosen by, (num_tokens,) bool; the others are for the report."""
    block = max(1, min(BLOCK_TOKENS, num_tokens // 2))
    return (np.arange(num_tokens) // block) % 2 == 0


def _valuation(gain: np.ndarray, control: np.ndarray, hard: np.ndarray) -> Valuation:
    """Valuation from the gain and control of every token, (num_tokens,) nats; each half scaled up to the whole text."""
    if not len(gain):
        return Valuation(value=None, unvalued=NOTHING_FOLLOWS)
    if not np.isfinite(gain).all():
        return Valuation(value=None, unvalued=TOO_LONG)
    difference = (gain - control).astype(np.float64)
    choosing = chosen_by(len(gain))
    return Valuation(
        value=_scaled(difference, choosing),
        gain_nats=_rounded(gain),
        control_nats=_rounded(control),
        hard_gain_nats=_rounded(difference[hard]),
        heldout_nats=_scaled(difference, ~choosing),
    )


def _scaled(nats: np.ndarray, mask: np.ndarray) -> float | None:
    return _rounded(nats[mask] * (len(nats) / mask.sum())) if mask.any() else None


def _rounded(nats: np.ndarray) -> float:
    return round(float(nats.sum(dtype=np.float64)), _DECIMALS)
