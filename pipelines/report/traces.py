"""Figures of generation and selection: how long traces are, what they gain, why they were rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from augment.selection.account import SHOWN_GAINS, in_words, lengths_in_words
from pipelines.report import charts, marks
from pipelines.report.charts import Box, Series
from pipelines.report.facts import Facts, Figure, missing_until, share
from pipelines.report.marks import Interval
from pipelines.report.worth import unvalued
from pipelines.terminal import counted

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def lengths(facts: Facts) -> Figure:
    """Trace length by tier: quantiles beside the cap, and how traces ended."""
    key, title = "lengths", "Trace length by tier"
    if facts.stages["select"] is None:
        return Figure(key=key, title=title, missing=missing_until("select"))
    rows, table = [], []
    for tier in facts.tiers:
        traces = [c for c in facts.sample.candidates if c.tier == tier]
        if not traces:
            continue
        quantiles = np.quantile([c.thought_tokens for c in traces], QUANTILES).tolist()
        cap = facts.caps.get(tier)
        p5, p25, p50, p75, p95 = quantiles
        rows.append(Box(tier, facts.style_of(tier), (p5, p25, p50, p75, p95), cap))
        closed = [sum(c.closed == how for c in traces) / len(traces) for how in ("natural", "forced", "cut")]
        table.append(
            (
                tier,
                f"{len(traces):,}",
                *(f"{q:,.0f}" for q in quantiles),
                f"{cap:,.0f}" if cap else "",
                *map("{:.0%}".format, closed),
            )
        )
    if not rows:
        return Figure(key=key, title=title, missing="There is no trace.")
    at_cap = [f"{row[0]}: {row[9]} closed by force, {row[10]} cut" for row in table]
    says = f"Box: half of the traces; whiskers: nine in ten; red mark: the cap. {'; '.join(at_cap)}."
    return Figure(
        key=key,
        title=title,
        says=says,
        chart=charts.boxes(
            title,
            "; ".join(f"{r.label} median {r.quantiles[2]:,.0f} tokens" for r in rows),
            rows,
            x_label="generated tokens",
        ),
        header=("tier", "traces", "5%", "25%", "median", "75%", "95%", "cap", "natural", "forced", "cut"),
        rows=table,
    )


def gains(facts: Facts) -> Figure:
    """What traces gain, by tier, beside what the estimate says where the truth is nothing: means with 95% intervals."""
    key, title = "gain", "Gain by tier"
    selected = facts.stages["select"]
    if selected is None:
        return Figure(key=key, title=title, missing=missing_until("select"))
    valued = [row for row in selected.facts.get("account", []) if row.get("gains")]
    if not valued:
        return Figure(key=key, title=title, missing="No trace has a measured gain.", notes=unvalued(selected))
    same_tier = [row["tier"] for row in valued]
    rows, table = [], []
    for row in sorted(valued, key=lambda r: facts.tiers.index(r["tier"]) if r["tier"] in facts.tiers else 99):
        name = row["tier"] if same_tier.count(row["tier"]) == 1 else f"{row['tier']} {row['model']} {row['prompt']}"
        found = row["gains"]
        for what, label, style in (
            ("heldout_first", name, facts.style_of(row["tier"])),
            ("heldout", f"{name}, kept", facts.style_of(row["tier"])),
            ("null_first", "null", "s0"),
        ):
            if what in found:
                low, high = found[what]["interval95"] or (None, None)
                rows.append(Interval(label, style, found[what]["mean"], low, high))
        table.append(
            (
                f"{row['tier']}, {row['model']}, {row['prompt']}",
                f"{found['heldout_first']['segments']:,}",
                *(in_words(found[what]) if what in found else "" for what in (*SHOWN_GAINS, "hard_gain")),
                *(lengths_in_words(row["lengths"].get(outcome)) for outcome in ("kept", "rejected")),
            )
        )
    best = ", ".join(f"{line[0].split(',')[0]} {line[2]}" for line in table)
    return Figure(
        key=key,
        title=title,
        says="Nats that a trace adds to the text after its segment, which its generator did not see, beyond what "
        f"traces of other documents add, with 95% intervals over documents: {best}. Kept: with what choosing adds "
        "beyond what it adds among controls. Grey: the same of traces of other documents, 0 but for noise.",
        chart=marks.intervals(title, best, rows, x_label="gain beyond controls, nats per segment"),
        header=(
            *("tier, model, prompt", "segments", "no choice", "choosing adds", "kept", "null", "null, kept"),
            *("on hard tokens", "tokens, kept (nats per 1,000)", "rejected"),
        ),
        rows=table,
        notes=unvalued(selected),
    )


def rejections(facts: Facts) -> Figure:
    """Why candidates were rejected: by the reason that counted, and by every objection."""
    key, title = "rejections", "Reasons for rejection"
    selected = facts.stages["select"]
    if selected is None:
        return Figure(key=key, title=title, missing=missing_until("select"))
    counts = selected.counts
    first = {name.removeprefix("rejected."): n for name, n in counts.items() if name.startswith("rejected.")}
    account = selected.facts.get("account", [])
    objections = Counter[str]()
    for row in account:
        objections.update(row["objections"])
    any_ = {reason: max(first.get(reason, 0), objections[reason]) for reason in {**first, **objections}}
    if not any_:
        return Figure(key=key, title=title, missing=f"Kept: all of {counted(counts['candidates'], 'candidate')}.")
    reasons = sorted(any_, key=lambda reason: (-first.get(reason, 0), -any_[reason], reason))
    series = [
        Series("the first reason, which counts", "s5", [first.get(reason, 0) for reason in reasons]),
        Series("a further objection", "s0", [any_[reason] - first.get(reason, 0) for reason in reasons]),
    ]
    kept, candidates = counts["kept"], counts["candidates"]
    was = "was" if kept == 1 else "were"
    says = f"{kept:,} of {counted(candidates, 'candidate')} {was} kept ({share(kept, candidates)})."
    return Figure(
        key=key,
        title=title,
        says=says,
        chart=charts.bars(
            title, says, [r.replace("_", " ") for r in reasons], series, x_label="candidates", stacked=True
        ),
        legend=charts.legend([(s.name, s.style) for s in series]),
        header=(
            "reason",
            "first reason",
            "any objection",
            *(_account_name(row) for row in account),
        ),
        rows=[
            (
                reason.replace("_", " "),
                f"{first.get(reason, 0):,}",
                f"{any_[reason]:,}",
                *(f"{row['reasons'].get(reason, 0):,}" for row in account),
            )
            for reason in reasons
        ],
    )


def _account_name(row: Mapping[str, Any]) -> str:
    return f"{row['tier']}, {row['model']}, {row['prompt']}"
