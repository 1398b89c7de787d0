"""What judging takes: CPU time per candidate, on the labelled traces and on long traces about pages of documentation.

The first are those of `benchmarks.gates`. The second are made up as by the example `rehearsal`, of up to 256 or 2,048
words, about segments of some 500 tokens of the pages that come with Python: half prose, half markup and code. Each
segment is judged with all its candidates, as the select stage does it, once to warm up and then in turns; the shortest
turn counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from rich.console import Console

from augment.engines.config import ModelConfig
from augment.engines.protocol import GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from augment.selection.candidates import AskedSegment
from augment.selection.config import SelectConfig
from augment.selection.judging import Judge
from benchmarks.labelled_traces import labelled_traces
from benchmarks.selection_text import documents
from sharding.models.tokenizer import TextTokenizer
from sharding.records.types import Candidate, Request

SEGMENT_CHARACTERS = 2_000
SEGMENTS = 150
MAX_TOKENS = (256, 2_048)
"""Of the tiers brief and deep of the example; the second has two samples."""

Cases = Sequence[tuple[str, Sequence[str]]]
"""Segments with their traces."""


def ms_per_candidate(console: Console, tokenizer: TextTokenizer, repeats: int) -> dict[str, float]:
    """CPU milliseconds that the gates take for a candidate of either kind."""
    judge = Judge(SelectConfig(), tokenizer, ())
    figures = {}
    for name, cases in {"select_ms_per_candidate": labelled(), "select_ms_per_long_candidate": long_ones()}.items():
        asked = [_asked(segment, traces) for segment, traces in cases]
        number = sum(len(candidates) for _, candidates in asked)
        turns = [_seconds(judge, asked) for _ in range(repeats + 1)]
        figures[name] = 1000 * min(turns[1:]) / number
        characters = np.mean([len(trace) for _, traces in cases for trace in traces])
        console.print(
            f"{name}: {figures[name]:.2f} ms, {number} candidates of {characters:,.0f} characters in the mean"
        )
    return figures


def labelled() -> Cases:
    """The segments of the labelled traces."""
    traces = sorted(labelled_traces(), key=lambda trace: trace.segment)
    return [
        (segment, [trace.text for trace in about]) for segment, about in groupby(traces, lambda trace: trace.segment)
    ]


def long_ones() -> Cases:
    """Segments of documentation with made-up traces."""
    texts = [text for _, text in sorted(documents(SEGMENT_CHARACTERS))]
    pieces = [text[at : at + SEGMENT_CHARACTERS] for text in texts for at in range(0, len(text), SEGMENT_CHARACTERS)]
    spread = [pieces[place * len(pieces) // SEGMENTS] for place in range(SEGMENTS)]
    return asyncio.run(_with_traces(spread))


async def _with_traces(segments: Iterable[str]) -> Cases:
    engine = RehearsalEngine(ModelConfig(engine="rehearsal", name="pretend"))
    cases = []
    for number, segment in enumerate(segments):
        cap = MAX_TOKENS[number % len(MAX_TOKENS)]
        requests = [
            GenerationRequest(
                key=f"{number}/{sample}", prompt_token_ids=np.empty(0, np.uint32), max_tokens=cap, seed=sample
            )
            for sample in range(1 + number % len(MAX_TOKENS))
        ]
        cases.append((segment, [(await engine.generate(request)).text for request in requests]))
    return cases


def _asked(segment: str, traces: Sequence[str]) -> tuple[AskedSegment, list[Candidate]]:
    request = Request(
        doc_id="made",
        segment_index=0,
        tier="deep",
        model="pretend",
        prompt="expert",
        request_key="made",
        samples=len(traces),
        max_tokens=max(MAX_TOKENS),
        expected_tokens=1.0,
        prompt_tokens=1,
        prompt_token_ids=np.empty(0, np.uint32),
        shown_tokens=0,
    )
    asked = AskedSegment(request=request, document="made", valued=False, source_text=segment, continuation="")
    candidates = [
        Candidate(
            doc_id="made",
            segment_index=0,
            key=str(sample),
            sample=sample,
            tier="deep",
            model="pretend",
            prompt="expert",
            closed="natural",
            finish_reason="stop",
            thought_tokens=1,
            text=text,
            input_ids=np.empty(0, np.uint32),
            shown_tokens=0,
            kept=False,
            reasons=[],
        )
        for sample, text in enumerate(traces)
    ]
    return asked, candidates


def _seconds(judge: Judge, asked: Sequence[tuple[AskedSegment, list[Candidate]]]) -> float:
    begin = time.process_time()
    for segment, candidates in asked:
        judge.judge(segment, candidates)
    return time.process_time() - begin
