"""The nulls of `benchmarks.selection`: valuing, choosing and account on texts that can't help, in place of traces.

Passages of other documents, several of one document for each segment, as the traces of a segment are of one segment.
Short ones, and short segments: the noise of a gain grows with the text it is measured on, and a bias of a third of a
nat has to show. And the segment's own traces with their sentences shuffled: the same words and topic, no train of
thought.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from augment.selection.account import account_counts, in_words, split_account
from augment.selection.candidates import JudgedSegment
from augment.selection.config import SelectConfig
from augment.selection.controls import pools_of
from augment.selection.keeping import choose
from augment.selection.values.protocol import GainConfig
from augment.selection.valuing import Valuer
from benchmarks.selection_text import documents
from pipelines.config import MillConfig
from pipelines.joints import ScorerNats
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate

PASSAGE_CHARACTERS = 160
"""Of a passage, a segment and its continuation: about 40 tokens each."""

NUMBERS = (1, 2, 4)
"""Of candidates."""


def nulls(console: Console, config: MillConfig, candidates: Sequence[Candidate], num_passages: int) -> dict[str, Any]:
    """The figures; `candidates` are the traces that the run selected from."""
    ask = _Cached(ScorerNats(dataclasses.replace(config.difficulty, dtype="bfloat16"), None))
    figures: dict[str, Any] = {}
    for number in NUMBERS:
        row = account_of(passages(num_passages, number), ask, config.select.gain)
        what = row["gains"]["heldout_first" if number == 1 else "heldout"]
        console.print(f"null, passages of other documents, best of {number}: {in_words(what)}")
        figures |= {f"null_bias_nats_n{number}": what["mean"], f"null_bias_ci95_n{number}": what["interval95"]}
        unchosen = row["gains"]["heldout_first"]["mean"]
        chosen = row["gains"]["control"]["mean"]
        console.print(f"  no choice made {unchosen:+.2f}; raw gain of controls {chosen:+.2f}")
    shuffled = account_of(shuffled_traces(config, candidates), ask, config.select.gain)["gains"]["heldout_first"]
    console.print(f"null, the segment's own traces with their sentences shuffled: {in_words(shuffled)}")
    return figures | {"null_shuffled_nats": shuffled["mean"], "null_shuffled_ci95": shuffled["interval95"]}


class _Cached:
    """Asks the scorer for a row once, whatever it is asked beside it: at one, two and four candidates they recur."""

    def __init__(self, ask: ScorerNats) -> None:
        self._ask = ask
        self._rows: dict[tuple[str, str], np.ndarray] = {}

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, size: int) -> tuple[np.ndarray, int]:
        if new := [prefix for prefix in dict.fromkeys(prefixes) if (text, prefix) not in self._rows]:
            nats, _ = self._ask(new, text, skipped, size)
            self._rows.update(zip(((text, prefix) for prefix in new), nats, strict=True))
        return np.stack([self._rows[text, prefix] for prefix in prefixes]), 0


def account_of(segments: Sequence[JudgedSegment], ask: _Cached, gain: GainConfig) -> dict[str, Any]:
    """The account's only row, of segments that are valued, chosen among and counted as by the select stage."""
    select = SelectConfig(value="continuation_gain", gain=gain)
    valuer = Valuer(select, ask, threshold_nats=2.0)
    [pool] = pools_of(segments, select.gain.control_pool).values()
    totals: Counter[str] = Counter()
    for segment in segments:
        valued = valuer.valued(segment, pool)
        totals.update(account_counts(choose(valued.candidates, select), valued))
    [row] = split_account(totals)[1]
    return row


def passages(number: int, samples: int) -> list[JudgedSegment]:
    """Segments of some documents, their "traces" passages of others; for more samples the first ones stay."""
    size = PASSAGE_CHARACTERS
    shuffled = sorted(documents(6 * size), key=lambda named: random.Random(named[0]).random())
    texts, others = shuffled[::2], shuffled[1::2]
    found = []
    for place in range(number):
        (name, text), (_, other) = texts[place % len(texts)], others[place % len(others)]
        again = place // len(texts)
        start, first = 2 * size * again, max(NUMBERS) * size * (place // len(others))
        if len(text) < start + 2 * size or len(other) < first + max(NUMBERS) * size:
            continue
        traces = [other[first + n * size : first + (n + 1) * size] for n in range(samples)]
        found.append(_segment(name, again, text[start : start + size], text[start + size : start + 2 * size], traces))
    return found


def shuffled_traces(config: MillConfig, candidates: Sequence[Candidate]) -> list[JudgedSegment]:
    """Each segment with the first of its traces, its sentences in another order."""
    assert config.source is not None
    lines = Path(str(config.source.path)).read_text(encoding="utf-8").splitlines()
    texts = {record["id"]: record["text"] for record in map(json.loads, lines)}
    tokenizer = load_tokenizer(config.tokenizer)
    found = []
    for candidate in sorted(candidates, key=lambda c: c.doc_id):
        if candidate.sample == 0 and candidate.segment_index == 0 and candidate.gain_nats is not None:
            ids = tokenizer.encode(texts[candidate.doc_id])
            shown = tokenizer.decode(ids[: candidate.shown_tokens])
            rest = tokenizer.decode(ids[candidate.shown_tokens :])
            sentences = re.split(r"(?<=[.!?\n])\s+", candidate.text)
            random.Random(candidate.key).shuffle(sentences)
            found.append(_segment(candidate.doc_id, 0, shown, rest, [" ".join(sentences)]))
    return found


def _segment(name: str, index: int, text: str, after: str, traces: Sequence[str]) -> JudgedSegment:
    return JudgedSegment(
        doc_id=name,
        segment_index=index,
        document=name,
        tier="deep",
        trace_tokens=256,
        valued=True,
        source_text=text,
        continuation=after,
        candidates=[_candidate(name, index, sample, trace) for sample, trace in enumerate(traces)],
    )


def _candidate(name: str, index: int, sample: int, trace: str) -> Candidate:
    return Candidate(
        doc_id=name,
        segment_index=index,
        key=f"{name}/{index}/{sample}",
        sample=sample,
        tier="deep",
        model="none",
        prompt="none",
        closed="natural",
        finish_reason="stop",
        thought_tokens=len(trace) // 4,
        text=trace,
        input_ids=np.empty(0, np.uint16),
        shown_tokens=0,
        kept=False,
        reasons=[],
    )
