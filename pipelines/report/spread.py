"""Figures over difficulty: how segments are spread, and what the budget spends where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from pipelines.report import by_gain, charts, svg
from pipelines.report.charts import Series
from pipelines.report.facts import Facts, Figure, missing_until
from pipelines.terminal import counted, number

COLUMNS = 32
"""Columns of the histograms over difficulty."""

TAIL = 0.995
"""The histograms' last column holds everything above this quantile."""


@dataclass(frozen=True)
class _Binned:
    """Segments by difficulty in columns of equal width; by tier, segments and planned tokens, (columns,) each."""

    edges: np.ndarray
    segments: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]

    def place(self, nats: np.ndarray) -> np.ndarray:
        """The column of each difficulty."""
        return np.clip(np.searchsorted(self.edges, nats, side="right") - 1, 0, len(self.edges) - 2)


def _binned(facts: Facts, histogram: DifficultyHistogram) -> _Binned:
    nats, counts = histogram.bins()
    high = float(histogram.quantiles([TAIL])[0]) or 1.0
    top = svg.ticks(0, high, 6)
    step = top[1] - top[0] if len(top) > 1 else high
    end = top[-1] if top[-1] >= high else top[-1] + step
    binned = _Binned(np.linspace(0, end, COLUMNS + 1), {}, {})
    column = binned.place(nats)
    for name, share in _shares(facts.allocation, histogram).items():
        tokens = _tokens_per_segment(facts.allocation, name)
        binned.segments[name] = np.bincount(column, counts * share, COLUMNS)
        binned.tokens[name] = binned.segments[name] * tokens
    return binned


def _shares(allocation: Allocation | None, histogram: DifficultyHistogram) -> dict[str, np.ndarray]:
    """By tier, the share of each bin's segments that gets it; without a plan all under one name."""
    bins, _ = histogram.by_difficulty.bins()
    if allocation is None or allocation.by_gain is not None:  # whose tiers difficulty doesn't tell
        return {"segments": np.ones(len(bins))}
    shares = {tier.name: np.zeros(len(bins)) for tier in allocation.tiers}
    names = [allocation.tiers[i].name for i in allocation.choices]
    if allocation.axis == "none":
        shares[names[0]] += 1
    elif allocation.axis == "hash":
        total = sum(tier.segments for tier in allocation.tiers) or 1.0
        for tier in allocation.tiers:
            shares[tier.name] += tier.segments / total
    else:
        wide = bins >> max(0, allocation.shift - histogram.by_difficulty.shift)
        step = np.searchsorted(np.array(allocation.cuts, np.int64), wide, side="right")
        for i, name in enumerate(names):
            shares[name] += step == i
        shared = allocation.shared_bin
        if shared is not None:
            here = wide == shared.bin
            shares[names[shared.step - 1]][here] = 1 - shared.share
            shares[names[shared.step]][here] = shared.share
    return shares


def _tokens_per_segment(allocation: Allocation | None, name: str) -> float:
    plan = next((tier for tier in allocation.tiers if tier.name == name), None) if allocation else None
    return plan.tokens / plan.segments if plan and plan.segments else 0.0


def difficulty(facts: Facts) -> Figure:
    """Segments by difficulty, with the cut points between tiers."""
    key, title = "difficulty", "Difficulty of segments"
    scored = facts.stages["score"]
    if scored is None:
        return Figure(key=key, title=title, missing=missing_until("score"))
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    if not histogram.num_segments:
        return Figure(key=key, title=title, missing="The corpus has no segments.")
    binned = _binned(facts, histogram)
    tiers = facts.tiers if facts.allocation is not None and facts.allocation.by_gain is None else []
    order = tiers or ["segments"]
    series = [Series(n, facts.style_of(n) if tiers else "s1", binned.segments[n].tolist()) for n in order]
    cuts = _cuts(facts.allocation)
    median, p95 = histogram.quantiles([0.5, 0.95])
    threshold = scored.config["difficulty"]["threshold_nats"]
    says = (
        f"Half of the segments hold less than {median:,.0f} nats above the threshold of {threshold:g}, "
        f"one in twenty more than {p95:,.0f}."
    )
    if facts.tiers and not tiers:
        says += " Tiers go by expected gain here, not by difficulty."
    elif not tiers:
        says += " Tiers appear once the augment stage has planned."
    described = (
        f"{counted(histogram.num_segments, 'segment')} from {binned.edges[0]:g} to {binned.edges[-1]:g} nats."
        + "".join(f" {name} from {nats:,.0f} nats." for nats, name in cuts)
    )
    return Figure(
        key=key,
        title=title,
        says=says,
        chart=charts.columns(
            title,
            described,
            binned.edges.tolist(),
            series,
            x_label="difficulty of a segment, nats above the threshold",
            y_label="segments",
            marks=[(nats, f"{name} from {nats:,.0f}") for nats, name in cuts],
            open_end=True,
        ),
        legend=charts.legend([(s.name, s.style) for s in series]) if tiers else None,
        header=("nats", *order),
        rows=[
            (_span(binned.edges, i), *(f"{binned.segments[name][i]:,.0f}" for name in order))
            for i in range(COLUMNS)
            if any(binned.segments[name][i] for name in order)
        ],
    )


def _cuts(allocation: Allocation | None) -> list[tuple[float, str]]:
    if allocation is None:
        return []
    names = [allocation.tiers[i].name for i in allocation.choices[1:]]
    return [(nats, name) for nats, name in zip(allocation.cut_points_nats, names, strict=False) if nats != float("inf")]


def _span(edges: np.ndarray, i: int) -> str:
    above = i == len(edges) - 2
    return f"{edges[i]:,.0f} and more" if above else f"{edges[i]:,.0f} to {edges[i + 1]:,.0f}"


def spending(facts: Facts) -> Figure:
    """The budget over difficulty: tokens planned, and generated where candidates are there to look at."""
    key, title = "budget", "Budget against difficulty"
    scored, allocation = facts.stages["score"], facts.allocation
    if scored is None or allocation is None:
        return Figure(key=key, title=title, missing=missing_until("augment"))
    if allocation.by_gain is not None:
        return by_gain.spending(facts, allocation)
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    binned = _binned(facts, histogram)
    thinking = [name for name in facts.tiers if binned.tokens[name].any()]
    if not thinking:
        return Figure(key=key, title=title, missing="The plan spends nothing: every segment is skipped.")
    series = [Series(name, facts.style_of(name), binned.tokens[name].tolist()) for name in thinking]
    made = _generated(facts, binned)
    line = None if made is None else Series("generated", "dot", made.tolist())
    hard = sum(tier.difficulty_nats for tier in allocation.tiers if tier.tokens)
    share = hard / max(1e-9, sum(tier.difficulty_nats for tier in allocation.tiers))
    segments = sum(tier.segments for tier in allocation.tiers if tier.tokens)
    says = (
        f"{number(allocation.planned_tokens)} thinking tokens are planned for "
        f"{segments / histogram.num_segments:.0%} of the segments, which hold {share:.0%} of the difficulty."
    )
    if made is not None and not facts.sample.is_whole:
        there = counted(facts.sample.parts_there, "part")
        says += f" What was generated is scaled up from {facts.sample.parts_read} of {there}."
    return Figure(
        key=key,
        title=title,
        says=says,
        chart=charts.columns(
            title,
            says,
            binned.edges.tolist(),
            series,
            x_label="difficulty of a segment, nats above the threshold",
            y_label="thinking tokens",
            marks=[(nats, name) for nats, name in _cuts(allocation)],
            line=line,
            open_end=True,
        ),
        legend=charts.legend(
            [(f"{s.name}, planned", s.style) for s in series] + ([("generated", "dot")] if line else [])
        ),
        header=("nats", *(f"{name}, planned" for name in thinking), *(("generated",) if made is not None else ())),
        rows=[
            (
                _span(binned.edges, i),
                *(f"{binned.tokens[name][i]:,.0f}" for name in thinking),
                *((f"{made[i]:,.0f}",) if made is not None else ()),
            )
            for i in range(COLUMNS)
            if any(binned.tokens[name][i] for name in thinking) or (made is not None and made[i])
        ],
    )


def _generated(facts: Facts, binned: _Binned) -> np.ndarray | None:
    """(columns,) tokens of the candidates by the difficulty of their segment, scaled up from the sample to all."""
    selected, known = facts.stages["select"], facts.sample.difficulty_nats
    seen = [c for c in facts.sample.candidates if c.segment_id in known]
    tokens = np.array([c.thought_tokens for c in seen], np.float64)
    if selected is None or not tokens.sum():
        return None
    column = binned.place(np.array([known[c.segment_id] for c in seen]))
    return np.bincount(column, tokens, COLUMNS) * (selected.counts["thought_tokens"] / tokens.sum())
