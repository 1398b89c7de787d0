"""The account of selection: what became of every candidate, and what the kept ones gain, by tier, model and prompt.

Each segment adds integers under names, so that they can be added up in any order; the table is made of the sums.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from augment.selection.account_parts import judge_counts, step_counts, step_order
from augment.selection.account_sums import MICRO, add_to_sums, count_name, net_nats
from augment.selection.gates.language import spoken_language
from augment.selection.valuing import ValuedSegment
from augment.selection.verdict import FOREIGN, SEGMENTS, SEGMENTS_KEPT
from sharding.intervals import mean_of_segments
from sharding.records.types import Candidate

GAINS = {
    "heldout_first": "what a trace gains beyond controls, no choice made: the mean of those that passed the gates",
    "heldout_choice": "what choosing adds, on tokens not chosen by, beyond what choosing among controls adds",
    "heldout": "what the kept trace gains: both together",
    "null_first": "heldout_first of a control in place of the segment's traces: 0 but for noise",
    "null": "heldout likewise",
    "gain": "the raw gain of the kept trace, over the whole text",
    "control": "the same of the controls, on average",
    "hard_gain": "gain less control, over the hard tokens alone",
}
"""What is averaged over segments, in nats per segment."""


SHOWN_GAINS = ("heldout_first", "heldout_choice", "heldout", "null_first", "null")
"""Those that people are shown, in order."""


def account_counts(candidates: Sequence[Candidate], valued: ValuedSegment) -> dict[str, int]:
    """What one segment adds to the account and to the stage's counts.

    Args:
        candidates: all of the segment's, decided.
        valued: what was found out of them before.
    """
    counts = outcome_counts(candidates)
    counts.update(step_counts(candidates, valued))
    counts.update(judge_counts(candidates, valued))
    counts.update(_gain_counts(candidates, valued))
    return dict(counts)


def outcome_counts(candidates: Sequence[Candidate]) -> Counter[str]:
    """What became of the candidates of one segment, as it is counted: all of `account_counts` but what they gain."""
    counts: Counter[str] = Counter({SEGMENTS: 1, SEGMENTS_KEPT: int(any(candidate.kept for candidate in candidates))})
    for candidate in candidates:
        group = (candidate.tier, candidate.model, candidate.prompt)
        outcome = "kept" if candidate.kept else "rejected"
        counts.update(("candidates", outcome, f"tier.{candidate.tier}.{outcome}"))
        counts.update(count_name(group, what) for what in ("candidates", outcome))
        counts[f"closed.{candidate.closed}"] += 1
        for what in ("thought_tokens", "prompt_tokens"):
            counts[what] += getattr(candidate, what)
            counts[count_name(group, what)] += getattr(candidate, what)
        if candidate.kept:
            counts["kept_thought_tokens"] += candidate.thought_tokens
            counts[count_name(group, "kept_thought_tokens")] += candidate.thought_tokens
        if candidate.contaminated:
            counts["candidates_contaminated"] += 1
        for place, reason in enumerate(candidate.reasons):
            counts[count_name(group, "objections", reason)] += 1
            if place == 0:
                counts[f"rejected.{reason}"] += 1
                if reason == "language" and (language := spoken_language(candidate.text)) is not None:
                    counts[f"{FOREIGN}{language}"] += 1
                counts[count_name(group, "reasons", reason)] += 1
    return counts


def kept_nats(candidates: Sequence[Candidate]) -> float | None:
    """What the kept candidates of a segment gain, on average: `heldout` of `GAINS`. None where it can't be told."""
    with_gain = [candidate for candidate in candidates if candidate.gain_nats is not None]
    added = _added_by_choice(with_gain)
    return None if added is None else statistics.fmean(map(net_nats, with_gain)) + added


def _added_by_choice(candidates: Sequence[Candidate]) -> float | None:
    """`heldout_choice` of a segment, from its candidates with a gain."""
    kept = [candidate.heldout_nats or 0.0 for candidate in candidates if candidate.kept]
    by_chance = candidates[0].chance_heldout_nats if candidates else None
    if not kept or by_chance is None:
        return None
    return statistics.fmean(kept) - statistics.fmean(c.heldout_nats or 0.0 for c in candidates) - by_chance


def _gain_counts(candidates: Sequence[Candidate], valued: ValuedSegment) -> Counter[str]:
    """Sums of what is averaged of a segment, and of what is shown of the lengths of its valued candidates."""
    counts: Counter[str] = Counter()
    with_gain = [candidate for candidate in candidates if candidate.gain_nats is not None]
    for candidate in candidates:
        if candidate.unvalued:
            counts[f"unvalued.{candidate.unvalued}"] += 1
    if not with_gain:
        return counts
    if valued.cut_tokens:
        counts["valued_without_front"] += 1
    group = (with_gain[0].tier, with_gain[0].model, with_gain[0].prompt)
    for candidate in with_gain:
        outcome = "kept" if candidate.kept else "rejected"
        counts[count_name(group, "valued", outcome)] += 1
        counts[count_name(group, "valued_thought_tokens", outcome)] += candidate.thought_tokens
        counts[count_name(group, "valued_nats", outcome)] += round(net_nats(candidate) * MICRO)
    for what, nats in _averaged(with_gain, valued).items():
        add_to_sums(counts, group, what, valued.document, nats)
    return counts


def _averaged(candidates: Sequence[Candidate], valued: ValuedSegment) -> dict[str, float]:
    """`GAINS` of a segment, from its candidates with a gain; what can't be told is left out."""
    kept = [candidate for candidate in candidates if candidate.kept]
    null_first, null_choice = valued.null_first_nats, valued.null_choice_nats
    found = {
        # All that passed stand for the first, which is one of them: the same on average, and less noise.
        "heldout_first": statistics.fmean(map(net_nats, candidates)),
        "heldout_choice": _added_by_choice(candidates),
        "heldout": kept_nats(candidates),
        "null_first": null_first,
        "null": None if null_first is None or null_choice is None else null_first + null_choice,
    }
    if kept:
        for column in ("gain", "control", "hard_gain"):
            found[column] = statistics.fmean(getattr(candidate, f"{column}_nats") or 0.0 for candidate in kept)
    return {what: nats for what, nats in found.items() if nats is not None}


def split_account(counts: Mapping[str, int]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Sums of `account_counts` as the stage's plain counts, and the table for manifest and card.

    A row has tier, model, prompt, candidates, kept, rejected, kept_share, thought_tokens, kept_thought_tokens,
    prompt_tokens (of all candidates and all calls that made them), reasons (first reason → candidates), objections (any
    reason → candidates) and, where traces were valued, `gains`: each of
    `GAINS` with mean, interval95 (None of too few documents), segments and documents; and `lengths`: for kept and
    rejected candidates with a value how many they are, their mean thought tokens, and their nats beyond controls per
    1,000 thought tokens (of those kept by their value, too high: they were chosen by it). Where a judge graded them
    there is `judge_rank`, its concordance with gains as those of `gains`; where traces met in both orders
    `judge_orders`: the pairs that were `compared`, and of these those on which both orders `agreed`. Where a recipe
    made them there are `steps`: by step `calls`, `thought_tokens`, `prompt_tokens` and, of steps that think, `gain`,
    as those of `gains`.
    """
    plain = {name: number for name, number in counts.items() if not name.startswith("[")}
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, number in sorted(counts.items()):
        if name.startswith("["):
            *group, what, detail = (*json.loads(name), None) if len(json.loads(name)) == 4 else json.loads(name)
            row = rows.setdefault(tuple(group), {})
            if detail is None:
                row[what] = number
            else:
                row.setdefault(what, {})[detail] = number
    return plain, [_table_row(group, row) for group, row in sorted(rows.items())]


def _table_row(group: tuple[str, ...], row: Mapping[str, Any]) -> dict[str, Any]:
    tier, model, prompt = group
    candidates, kept = row.get("candidates", 0), row.get("kept", 0)
    table_row = {
        "tier": tier,
        "model": model,
        "prompt": prompt,
        "candidates": candidates,
        "kept": kept,
        "rejected": row.get("rejected", 0),
        "kept_share": round(kept / candidates, 4) if candidates else 0.0,
        "thought_tokens": row.get("thought_tokens", 0),
        "kept_thought_tokens": row.get("kept_thought_tokens", 0),
        "prompt_tokens": row.get("prompt_tokens", 0),
        "reasons": row.get("reasons", {}),
        "objections": row.get("objections", {}),
    }
    if gains := {what: found for what in GAINS if (found := _gain(row, what)) is not None}:
        table_row["gains"] = gains
        table_row["lengths"] = {
            outcome: _lengths(number, row["valued_thought_tokens"][outcome], row["valued_nats"][outcome] / MICRO)
            for outcome, number in row["valued"].items()
        }
    if trim := row.get("trim"):
        table_row["trim"] = dict(trim) | {"change": _gain(row, "trimmed")}
    if (rank := _gain(row, "judge_rank")) is not None:
        table_row["judge_rank"] = rank
    if orders := row.get("judge_orders"):
        table_row["judge_orders"] = {"compared": 0, "agreed": 0} | dict(orders)
    if steps := [what.removeprefix("step ") for what in row if what.startswith("step ")]:
        table_row["steps"] = {step: _step(row, step) for step in sorted(steps, key=step_order)}
    return table_row


def _step(row: Mapping[str, Any], step: str) -> dict[str, Any]:
    gain = _gain(row, f"step {step}")
    return dict(row[f"step {step}"]) | ({"gain": gain} if gain is not None else {})


def _gain(row: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    sums = [found for name, found in row.items() if name.startswith(f"sums.{what}.")]
    if not sums:
        return None
    segments = np.array([of_group["segments"] for of_group in sums])
    if not segments.any():
        return None
    found = mean_of_segments(segments, np.array([of_group["nats"] / MICRO for of_group in sums]))
    interval = None if found.low is None or found.high is None else [round(found.low, 4), round(found.high, 4)]
    return {
        "mean": round(found.mean, 4),
        "interval95": interval,
        "segments": found.segments,
        "documents": found.documents,
    }


def in_words(gain: Mapping[str, Any]) -> str:
    """A gain of the account: its mean and interval in nats, or that there are too few documents for one."""
    interval = gain["interval95"]
    if interval is None:
        return f"{gain['mean']:+.2f} (too few to say: {gain['documents']} documents)"
    return f"{gain['mean']:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def lengths_in_words(lengths: Mapping[str, Any] | None) -> str:
    """A row of the account's lengths; "" of none."""
    if lengths is None:
        return ""
    rate = lengths["nats_per_1000_thought_tokens"]
    return f"{lengths['mean_thought_tokens']:,.0f}" + ("" if rate is None else f" ({rate:+.1f})")


def _lengths(candidates: int, thought_tokens: int, nats: float) -> dict[str, Any]:
    return {
        "candidates": candidates,
        "mean_thought_tokens": round(thought_tokens / candidates, 1),
        "nats_per_1000_thought_tokens": round(1000 * nats / thought_tokens, 3) if thought_tokens else None,
    }
