"""From the generations of a segment to its candidates, and what travels between the steps of selection. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from augment.ledger.reading import STEP_COLUMNS, collapse_duplicates
from augment.recipes.judging import is_verdict
from augment.traces import Trace, parse_trace
from sharding.models.tokenizer import TextTokenizer, UnencodableText
from sharding.records.base import Record
from sharding.records.types import Candidate, LedgerRow, Request, segment_id

ROW_COLUMNS = STEP_COLUMNS
"""What selection looks at in the ledger: not the token ids, which are most of it."""

NOT_ENCODABLE = "not_encodable"
"""The reason of a trace that the training tokenizer can't spell."""


def make_candidates(request: Request, rows: Iterable[LedgerRow], tokenizer: TextTokenizer) -> list[Candidate]:
    """The candidates of one request in the order of their samples, not judged yet.

    Args:
        request: what the segment asked for.
        rows: the ledger's rows under the request's key, duplicates and surplus samples included.
        tokenizer: the training tokenizer.
    """
    candidates = []
    for row in collapse_duplicates(rows):
        if row.sample >= request.samples or row.step:
            continue
        trace = parse_trace(row)
        reasons = []
        try:
            input_ids = tokenizer.encode(trace.text)
        except UnencodableText:
            input_ids = tokenizer.encode("")
            reasons.append(NOT_ENCODABLE)
        candidates.append(
            Candidate(
                doc_id=request.doc_id,
                segment_index=request.segment_index,
                key=row.key,
                sample=row.sample,
                tier=request.tier,
                model=request.model,
                prompt=request.prompt,
                closed=row.closed,
                finish_reason=row.finish_reason,
                thought_tokens=row.thought_tokens,
                prompt_tokens=row.prompt_tokens,
                text=trace.text,
                input_ids=input_ids,
                shown_tokens=request.shown_tokens,
                kept=False,
                reasons=reasons,
            )
        )
    return candidates


def steps_of(request: Request, rows: Iterable[LedgerRow]) -> list[StepText]:
    """The calls that the recipe of a request has made, in the order of samples and time."""
    calls = [
        row
        for row in collapse_duplicates(rows)
        if row.step and not is_verdict(row.step) and row.sample < request.samples
    ]
    return [
        StepText(
            step=row.step,
            thought_tokens=row.thought_tokens,
            prompt_tokens=row.prompt_tokens,
            text=parse_trace(row).text if row.wants == "thought" else "",
        )
        for row in sorted(calls, key=lambda row: (row.sample, row.finished_at, row.key))
    ]


def trace_of(candidate: Candidate) -> Trace:
    """The trace of a candidate, as gates and values see it."""
    return Trace(
        text=candidate.text,
        closed=candidate.closed,  # type: ignore[arg-type]
        finish_reason=candidate.finish_reason,
        thought_tokens=candidate.thought_tokens,
    )


class AskedSegment(Record, frozen=True, kw_only=True, eq=False):
    """A request with the text that its traces are judged by; never stored.

    Attributes:
        document: a hash of the document's tokens: copies of a document are one to those who compare documents.
        valued: whether its candidates are to be valued.
        source_text: the segment, as much of it as the generator was shown.
        continuation: what follows that in the document, up to `select.gain.continuation_tokens`; "" where nothing does,
            or nothing is valued.
    """

    request: Request
    document: str
    valued: bool
    source_text: str
    continuation: str


class StepText(Record, frozen=True, kw_only=True, eq=False):
    """A call of a recipe, as the account of selection sees it; never stored.

    Attributes:
        step: of the recipe.
        thought_tokens: generated and paid.
        prompt_tokens: of its prompt.
        text: its thought; "" of a call that was asked for an answer.
    """

    step: str
    thought_tokens: int
    prompt_tokens: int
    text: str


class JudgedSegment(Record, frozen=True, kw_only=True, eq=False):
    """A segment with all its candidates between the steps of selection; never stored.

    Attributes:
        document: see `AskedSegment`.
        trace_tokens: cap on the tokens of one of its traces.
        valued: whether its candidates are to be valued.
        source_text: the segment, as much of it as the generator was shown.
        continuation: what follows that in the document, up to `select.gain.continuation_tokens`; "" where nothing does.
        candidates: in the order of their samples; those with reasons were rejected by a gate.
        steps: the calls that they were made by, where a recipe made them.
        known: a judge's verdicts on them that are in the ledger, until it has graded them.
        grades: of each candidate that a judge has graded; empty without a judge.
    """

    doc_id: str
    segment_index: int
    document: str
    tier: str
    trace_tokens: int
    valued: bool
    source_text: str
    continuation: str
    candidates: list[Candidate]
    steps: list[StepText] = msgspec.field(default_factory=list)
    known: list[LedgerRow] = msgspec.field(default_factory=list)
    grades: list[float | None] = msgspec.field(default_factory=list)

    @property
    def segment_id(self) -> str:
        return segment_id(self.doc_id, self.segment_index)


class Control(Record, frozen=True, kw_only=True, eq=False):
    """A segment whose traces those of other segments are compared with; never stored.

    Attributes:
        rank: hex digits of a hash of the segment's text; the lowest are picked.
        document: see `AskedSegment`.
        segment_id: the segment.
        octave: the power of two that its traces' tokens reach.
        traces: those that passed the gates, in the order of their samples.
    """

    rank: str
    document: str
    segment_id: str
    octave: int
    traces: list[Trace]
