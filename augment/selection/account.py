"""The account of selection: what became of every candidate, and what the kept ones gain, by tier, model and prompt.

Each segment adds integers under names, so that they can be added up in any order; the table is made of the sums.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sharding.records.types import Candidate

MICRO = 1_000_000
"""Nats are added up as whole millionths, their squares likewise."""

NORMAL_95 = 1.96
"""Half the width of a 95% interval in standard errors, for means over many segments."""

GAINS = ("heldout", "heldout_first", "heldout_difference", "gain", "control", "hard_gain")
"""What is averaged over the segments that have a kept candidate with a value, in nats per segment."""


def account_counts(candidates: Sequence[Candidate]) -> dict[str, int]:
    """What one segment, with all candidates decided, adds to the account and to the stage's counts."""
    counts: Counter[str] = Counter()
    for candidate in candidates:
        group = (candidate.tier, candidate.model, candidate.prompt)
        outcome = "kept" if candidate.kept else "rejected"
        counts.update(("candidates", outcome, f"tier.{candidate.tier}.{outcome}"))
        counts.update(_name(group, what) for what in ("candidates", outcome))
        counts[f"closed.{candidate.closed}"] += 1
        counts["thought_tokens"] += candidate.thought_tokens
        counts[_name(group, "thought_tokens")] += candidate.thought_tokens
        if candidate.kept:
            counts["kept_thought_tokens"] += candidate.thought_tokens
            counts[_name(group, "kept_thought_tokens")] += candidate.thought_tokens
        if candidate.contaminated:
            counts["candidates_contaminated"] += 1
        for place, reason in enumerate(candidate.reasons):
            counts[_name(group, "objections", reason)] += 1
            if place == 0:
                counts[f"rejected.{reason}"] += 1
                counts[_name(group, "reasons", reason)] += 1
    counts.update(_gain_counts(candidates))
    return dict(counts)


def stands_for(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate whose gain counts for its segment: the kept one, of several that of most value; None unvalued."""
    kept = [candidate for candidate in candidates if candidate.kept and candidate.heldout_nats is not None]
    return max(kept, key=lambda candidate: candidate.value or 0.0, default=None)


def _gain_counts(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Sums of what the candidate kept of a segment gains, what the first that passed would have, and the difference."""
    chosen = stands_for(candidates)
    if chosen is None:
        return {}
    first = next(candidate for candidate in candidates if candidate.heldout_nats is not None)
    group = (chosen.tier, chosen.model, chosen.prompt)
    nats = {
        "heldout": chosen.heldout_nats,
        "heldout_first": first.heldout_nats,
        "heldout_difference": (chosen.heldout_nats or 0.0) - (first.heldout_nats or 0.0),
        "gain": chosen.gain_nats,
        "control": chosen.control_nats,
        "hard_gain": chosen.hard_gain_nats,
    }
    counts = {_name(group, "valued_segments"): 1, _name(group, "valued_thought_tokens"): chosen.thought_tokens}
    for what in GAINS:
        value = nats[what] or 0.0
        counts[_name(group, "nats", what)] = round(value * MICRO)
        counts[_name(group, "squares", what)] = round(value * value * MICRO)
    return counts


def _name(group: tuple[str, str, str], *what: str) -> str:
    return json.dumps([*group, *what])


def split_account(counts: Mapping[str, int]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Sums of `account_counts` as the stage's plain counts, and the table for manifest and card.

    A row has tier, model, prompt, candidates, kept, rejected, kept_share, thought_tokens, kept_thought_tokens, reasons
    (first reason → candidates), objections (any reason → candidates) and, where traces were valued, `gains`: the
    number of segments, for each of `GAINS` the mean in nats and its 95% interval, and the held-out nats per 1,000
    thought tokens.
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
        "reasons": row.get("reasons", {}),
        "objections": row.get("objections", {}),
    }
    segments = row.get("valued_segments", 0)
    if segments:
        sums = {what: (row["nats"][what] / MICRO, row["squares"][what] / MICRO) for what in GAINS}
        tokens = row["valued_thought_tokens"]
        table_row["gains"] = {
            "segments": segments,
            **{what: mean_and_interval(segments, *sums[what]) for what in GAINS},
            "heldout_nats_per_1000_thought_tokens": round(1000 * sums["heldout"][0] / tokens, 3) if tokens else None,
        }
    return table_row


def mean_and_interval(number: int, total: float, squares: float) -> dict[str, Any]:
    """The mean of some numbers and its 95% interval (None of a single one), from their sum and sum of squares."""
    mean = total / number
    if number < 2:
        return {"mean": round(mean, 4), "interval95": None}
    variance = max(squares - number * mean * mean, 0.0) / (number - 1)
    half = NORMAL_95 * math.sqrt(variance / number)
    return {"mean": round(mean, 4), "interval95": [round(mean - half, 4), round(mean + half, 4)]}
