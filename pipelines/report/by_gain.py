"""The figure of a budget that goes by expected gain: what each tier gets, and what it is expected to bring."""

from __future__ import annotations

from difficulty.budget.allocation import Allocation, TierPlan
from difficulty.budget.tiers import margin_in_words
from pipelines.counts import planned_gain
from pipelines.report import marks
from pipelines.report.facts import Facts, Figure, share
from pipelines.report.marks import Interval
from pipelines.terminal import number


def spending(facts: Facts, allocation: Allocation) -> Figure:
    """Expected gain by tier with 90% intervals; what a segment of each gains on average, and what it costs."""
    title = "Budget by expected gain"
    by_name = {tier.name: tier for tier in allocation.tiers}
    tiers = [by_name[name] for name in facts.tiers if by_name[name].tokens]
    total = planned_gain(*allocation.tiers)
    segments = sum(tier.segments for tier in allocation.tiers)
    says = (
        f"{number(allocation.planned_tokens)} thinking tokens are planned for "
        f"{share(sum(tier.segments for tier in tiers), segments)} of the segments, which hold "
        f"{share(sum(t.difficulty_nats for t in tiers), sum(t.difficulty_nats for t in allocation.tiers))} of the "
        f"difficulty, for an expected gain of {total['value']:,.1f} nats "
        f"({total['low']:,.1f} to {total['high']:,.1f}); "
        f"{margin_in_words(allocation.unit, allocation.marginal_nats)}."
    )
    rows = []
    for tier in tiers:
        gain = planned_gain(tier)
        rows.append(Interval(tier.name, facts.style_of(tier.name), gain["value"], gain["low"], gain["high"]))
    return Figure(
        key="budget",
        title=title,
        says=says,
        chart=marks.intervals(title, says, rows, x_label="expected gain, nats"),
        header=(
            "tier",
            "segments",
            "tokens, planned",
            "expected gain, nats",
            "nats per segment",
            "nats per 1,000 tokens",
        ),
        rows=[_row(tier) for tier in tiers],
        open=True,
    )


def _row(tier: TierPlan) -> tuple[str, ...]:
    gain = planned_gain(tier)
    return (
        tier.name,
        f"{tier.segments:,.0f}",
        f"{tier.tokens:,.0f}",
        f"{gain['value']:,.1f} ({gain['low']:,.1f} to {gain['high']:,.1f})",
        f"{gain['value'] / tier.segments:,.2f}",
        f"{1000 * gain['value'] / tier.tokens:,.2f}",
    )
