"""Figures of an ablation: learning curves with their bands, and how many times fewer tokens an arm takes."""

from __future__ import annotations

from statistics import fmean

from pipelines.ablation.result import Ablation
from pipelines.ablation.show import ratio_rows, reached_rows, sentences
from pipelines.ablation.verdict import Ratio
from pipelines.report import charts, marks
from pipelines.report.facts import Figure
from pipelines.report.marks import Band, Interval

_MAX_BANDS = 16


def figures(found: Ablation | None) -> list[Figure]:
    """Those there are; none without an ablation."""
    if found is None:
        return []
    return [learning(found), ratios(found)]


def learning(found: Ablation) -> Figure:
    """The score of each arm against training tokens: the mean over seeds, and from the worst to the best of them."""
    title, metric = "Learning curves", found.verdict.metric
    styles = _styles(found)
    bands = [Band(arm, styles[arm], _points(found, arm, metric)) for arm in list(styles)[:_MAX_BANDS]]
    says = " ".join([*sentences(found), "Lines are means over seeds, bands go from the worst seed to the best."])
    header, rows = reached_rows(found)
    return Figure(
        key="curves",
        title=title,
        says=says,
        chart=marks.curves(title, says, bands, x_label="training tokens", y_label=metric),
        legend=charts.legend([(band.name, band.style) for band in bands]),
        header=header,
        rows=rows,
        open=True,
    )


def ratios(found: Ablation) -> Figure:
    """How many times fewer training tokens than the baseline, as doublings."""
    title, styles = "Tokens to the target", _styles(found)
    told = [one for one in found.verdict.ratios if one.other == found.baseline and one.ratio]
    header, rows = ratio_rows(found)
    says = (
        f"How many times fewer training tokens an arm takes to the target than {found.baseline}, in doublings: 1 is "
        "half the tokens, 0 as many. A dot without a line is a bound or of one seed: the table says which."
    )
    if not told:
        return Figure(key="ratios", title=title, missing="No arm can be compared with the baseline by its target.")
    return Figure(
        key="ratios",
        title=title,
        says=says,
        chart=marks.intervals(
            title, says, [_interval(one, styles[one.arm]) for one in told[:_MAX_BANDS]], x_label="doublings"
        ),
        header=header,
        rows=rows,
        open=True,
    )


def _styles(found: Ablation) -> dict[str, str]:
    others = [arm.arm for arm in found.arms if arm.arm != found.baseline]
    return {found.baseline: "s0"} | {
        arm: f"s{1 + place % 7}" + " dashed" * (place >= 7) for place, arm in enumerate(others)
    }


def _points(found: Ablation, arm: str, metric: str) -> list[tuple[float, float, float, float]]:
    by_tokens: dict[int, list[float]] = {}
    for curve in found.curves:
        if curve.arm == arm:
            for tokens, value in curve.values(metric):
                by_tokens.setdefault(tokens, []).append(value)
    return [(tokens, fmean(values), min(values), max(values)) for tokens, values in sorted(by_tokens.items())]


def _interval(one: Ratio, style: str) -> Interval:
    from math import log2

    low, high = (None if end is None else log2(end) for end in (one.low, one.high))
    return Interval(one.arm, style, log2(one.ratio or 1.0), low, high)
