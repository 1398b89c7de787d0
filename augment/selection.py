"""Selection: the generations of a segment become candidates, each kept or rejected with its reasons. Pure.

    request + ledger rows ──► candidates ──► judged by the gates ──► valued ──► the keep policy chooses

The select stage, and the pilot of a plan, apply one step after the other; every candidate ends kept, or rejected with
exactly one first reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from augment.controls import Control, controls_for
from augment.decontamination import DecontaminationConfig
from augment.gates import Gate, GatesConfig, Subject
from augment.ledger import collapse_duplicates
from augment.requests import fraction_of
from augment.thoughts import Trace, parse_trace
from augment.values import BUILT_IN, Case, GainConfig, NatsAfter, Value, value_class
from sharding.config import STRICT
from sharding.records import Candidate, JudgedSegment, LedgerRow, Request
from sharding.tokenizer import TextTokenizer, UnencodableText

NOT_CHOSEN = "not_chosen"
"""The reason of a candidate that passed every gate while another one was kept."""

BELOW_THRESHOLD = "below_threshold"
"""The reason of a candidate that passed every gate and is worth less than `select.min_value`."""

NOT_ENCODABLE = "not_encodable"
"""The reason of a trace that the training tokenizer can't spell."""

CONTAMINATED = "contaminated"
"""The reason of a trace that overlaps with a benchmark."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectConfig:
    """Which candidates are kept."""

    value: str | None = Field(
        default=None,
        min_length=1,
        description="What a trace is worth: none, continuation_gain, self_gain, length, or your own as file.py:Class; "
        "null: continuation_gain for tiers with several samples, none for the others.",
    )
    keep: Literal["first", "best", "best_above", "sample", "all"] = Field(
        default="best",
        description="Of the candidates that pass the gates: the first; the best (without a value the first); the best "
        "if it is worth min_value; one drawn in proportion to exp(value / sample_temperature); or all.",
    )
    min_value: float = Field(default=0.0, description="For keep best_above, in the value's unit (nats for gains).")
    sample_temperature: float = Field(default=1.0, gt=0, description="For keep sample, in the value's unit.")
    seed: int = Field(default=0, ge=0, description="Of keep sample.")
    gain: GainConfig = Field(default_factory=GainConfig, description="How values that are gains are measured.")
    gates: GatesConfig = Field(default_factory=GatesConfig, description="Reasons to reject a candidate.")
    decontaminate: DecontaminationConfig | None = Field(
        default=None, description="Benchmarks that documents and traces must not overlap with; null: not looked at."
    )

    @property
    def value_name(self) -> str:
        """The value in use where there is one."""
        return self.value or "continuation_gain"

    def values_tier(self, samples: int) -> bool:
        """Whether the traces of a tier with so many samples are valued."""
        return self.value != "none" and (self.value is not None or samples > 1)

    @model_validator(mode="after")
    def _value_is_there(self) -> SelectConfig:
        if self.value not in (None, "none", *BUILT_IN) and ":" not in str(self.value):
            raise ValueError(
                f"value: {self.value!r} is none of none, {', '.join(sorted(BUILT_IN))}; one of your own is named as "
                '"file.py:Class" or "module:Class"'
            )
        if self.value == "none" and self.keep in ("best_above", "sample"):
            raise ValueError(f"keep {self.keep} needs a value; value is none")
        return self


def make_candidates(request: Request, rows: Iterable[LedgerRow], tokenizer: TextTokenizer) -> list[Candidate]:
    """The candidates of one request in the order of their samples, not judged yet.

    Args:
        request: what the segment asked for.
        rows: the ledger's rows under the request's key, duplicates and surplus samples included.
        tokenizer: the training tokenizer.
    """
    candidates = []
    for row in collapse_duplicates(rows):
        if row.sample >= request.samples:
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
                text=trace.text,
                input_ids=input_ids,
                shown_tokens=request.shown_tokens,
                kept=False,
                reasons=reasons,
            )
        )
    return candidates


def judge(
    candidate: Candidate, source_text: str, gates: Sequence[Gate], benchmarks: Sequence[str], *, remove: bool
) -> Candidate:
    """The candidate with the gates' reasons against it, in the order of the gates.

    Args:
        source_text: the segment, as much of it as the generator was shown.
        benchmarks: those that the trace overlaps with.
        remove: whether that is a reason against it.
    """
    subject = Subject(trace=trace_of(candidate), source_text=source_text, prompt=candidate.prompt)
    reasons = [gate.name for gate in gates if gate.objects(subject)] + candidate.reasons
    if benchmarks and remove:
        reasons.append(CONTAMINATED)
    return msgspec.structs.replace(candidate, reasons=reasons, contaminated=list(benchmarks))


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


def decide(
    segment: JudgedSegment, config: SelectConfig, value: Value | None, pool: Sequence[Control]
) -> list[Candidate]:
    """The candidates of a judged segment, valued where its tier is, each kept or with a reason why not.

    Args:
        value: from `make_value`.
        pool: the controls of the segment's tier.
    """
    if value is not None and segment.valued:
        controls = controls_for(segment, pool, config.gain.controls)
        segment = add_worths(segment, value, [control.text for control in controls])
    return choose(segment.candidates, config)


def add_worths(segment: JudgedSegment, value: Value, controls: Sequence[str]) -> JudgedSegment:
    """The segment with the worth of every candidate that no gate objected to."""
    passed = [candidate for candidate in segment.candidates if not candidate.reasons]
    worths = value.worths(
        Case(
            segment_id=segment.segment_id,
            tier=segment.tier,
            source_text=segment.source_text,
            continuation=segment.continuation,
            traces=[trace_of(candidate) for candidate in passed],
            controls=controls,
        )
    )
    worth_of = {candidate.key: worth for candidate, worth in zip(passed, worths, strict=True)}
    return msgspec.structs.replace(
        segment,
        candidates=[
            msgspec.structs.replace(candidate, **vars(worth_of[candidate.key]))
            if candidate.key in worth_of
            else candidate
            for candidate in segment.candidates
        ],
    )


def choose(candidates: Sequence[Candidate], config: SelectConfig) -> list[Candidate]:
    """The candidates of one segment, each kept or with a reason why not.

    Those without reasons are in the running. Ties and candidates without a value go by their samples' order.
    """
    running = [candidate for candidate in candidates if not candidate.reasons]
    kept = {candidate.key for candidate in _winners(running, config)}
    why_not = BELOW_THRESHOLD if running and not kept else NOT_CHOSEN
    return [
        msgspec.structs.replace(candidate, kept=True)
        if candidate.key in kept
        else msgspec.structs.replace(candidate, reasons=candidate.reasons or [why_not])
        for candidate in candidates
    ]


def _winners(running: Sequence[Candidate], config: SelectConfig) -> Sequence[Candidate]:
    if config.keep == "all" or not running:
        return running
    valued = [candidate for candidate in running if candidate.value is not None]
    if config.keep == "first" or not valued:
        return running[:1]
    if config.keep == "sample":
        return [max(valued, key=lambda candidate: _perturbed(candidate, config))]
    best = max(valued, key=_value)
    return [] if config.keep == "best_above" and _value(best) < config.min_value else [best]


def _value(candidate: Candidate) -> float:
    assert candidate.value is not None
    return candidate.value


def _perturbed(candidate: Candidate, config: SelectConfig) -> float:
    """The Gumbel-max trick: the largest of log-weight plus Gumbel noise is a draw in proportion to the weights.

    BoLT (arXiv 2503.18866) draws traces so; its log-weight is log p(z, x) - log q(z | x), here it is the value.
    """
    uniform = fraction_of(f"{config.seed}/{candidate.segment_id}/{candidate.key}")
    return _value(candidate) / config.sample_temperature - math.log(-math.log(max(uniform, 1e-300)))


def trace_of(candidate: Candidate) -> Trace:
    """The trace of a candidate, as gates and values see it."""
    return Trace(
        text=candidate.text,
        closed=candidate.closed,  # type: ignore[arg-type]
        finish_reason=candidate.finish_reason,
        thought_tokens=candidate.thought_tokens,
    )
