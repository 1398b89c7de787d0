"""Selection: the generations of one segment become candidates, each kept or rejected with its reasons.

Pure; the select stage applies it to every request joined with its ledger rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from augment.gates import Gate
from augment.ledger import collapse_duplicates
from augment.thoughts import parse_trace
from sharding.records import Candidate, LedgerRow, Request
from sharding.tokenizer import TextTokenizer, UnencodableText

NOT_CHOSEN = "not_chosen"
"""The reason of a candidate that passed every gate while another one was kept."""

NOT_ENCODABLE = "not_encodable"
"""The reason of a trace that the training tokenizer can't spell."""


def select_candidates(
    request: Request, rows: Iterable[LedgerRow], tokenizer: TextTokenizer, gates: Sequence[Gate]
) -> list[Candidate]:
    """The candidates of one segment in the order of their samples; at most one of them is kept.

    Args:
        request: what the segment asked for.
        rows: the ledger's rows under the request's key, duplicates and surplus samples included.
        tokenizer: the training tokenizer.
        gates: applied in order; the first to object gives the candidate's first reason.
    """
    kept = False
    candidates = []
    for row in collapse_duplicates(rows):
        if row.sample >= request.samples:
            continue
        trace = parse_trace(row)
        reasons = [gate.name for gate in gates if gate.objects(trace)]
        try:
            input_ids = tokenizer.encode(trace.text)
        except UnencodableText:
            input_ids = tokenizer.encode("")
            reasons.append(NOT_ENCODABLE)
        if not reasons and kept:
            reasons.append(NOT_CHOSEN)
        kept = kept or not reasons
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
                thought_tokens=row.thought_tokens,
                text=trace.text,
                input_ids=input_ids,
                value_nats=None,
                kept=not reasons,
                reasons=reasons,
            )
        )
    return candidates


def candidate_counts(request: Request, candidates: Sequence[Candidate]) -> Mapping[str, int]:
    """What one segment adds to the stage's account."""
    counts = {
        "requested": request.samples,
        "candidates": len(candidates),
        "missing": request.samples - len(candidates),
        "kept": sum(candidate.kept for candidate in candidates),
        "rejected": sum(not candidate.kept for candidate in candidates),
        "thought_tokens": sum(candidate.thought_tokens for candidate in candidates),
        "kept_thought_tokens": sum(candidate.thought_tokens for candidate in candidates if candidate.kept),
    }
    for candidate in candidates:
        outcome = "kept" if candidate.kept else "rejected"
        counts[f"tier.{candidate.tier}.{outcome}"] = counts.get(f"tier.{candidate.tier}.{outcome}", 0) + 1
        if candidate.reasons:
            reason = f"rejected.{candidate.reasons[0]}"
            counts[reason] = counts.get(reason, 0) + 1
    return counts
