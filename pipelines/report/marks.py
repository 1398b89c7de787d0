"""Charts of estimates: intervals, points with their intervals, curves with their bands. Pure; knows nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    horizontal,
    label_width,
    picture,
    scale_of,
    short,
    text_at,
    ticks,
    vertical,
)
from pipelines.terminal import number


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, None where one number has none."""

    label: str
    style: str
    mean: float
    low: float | None
    high: float | None


def intervals(title: str, description: str, rows: Sequence[Interval], *, x_label: str) -> Markup:
    """A dot with its interval for each row, and the line of nothing gained."""
    left = label_width([row.label for row in rows])
    height = TOP + ROW * len(rows) + BOTTOM
    all_ends = [0.0, *(end for row in rows for end in (row.mean, row.low, row.high) if end is not None)]
    pad = (max(all_ends) - min(all_ends) or 1.0) * 0.06
    low, high = min(all_ends) - pad, max(all_ends) + pad
    scale = scale_of(low, high, left, WIDTH - RIGHT - 8)
    floor = height - BOTTOM
    parts = [vertical(scale(tick), TOP - 6, floor, f"{tick:g}") for tick in ticks(low, high, 6)]
    parts.append(
        Markup('<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(TOP - 6, floor, x=scale(0))
    )
    for place, row in enumerate(rows):
        y = TOP + place * ROW + ROW / 2 - 1
        parts.append(text_at(left - 8, y + 4, short(row.label, left), "end"))
        if row.low is not None and row.high is not None:
            ends = scale(row.low), scale(row.high)
            parts.append(
                Markup('<path class="interval {}" d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {t}v10M{b:.1f} {t}v10"/>').format(
                    row.style, a=ends[0], b=ends[1], y=y, t=y - 5
                )
            )
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="5"/>').format(row.style, scale(row.mean), y))
    parts.append(text_at((left + WIDTH) / 2, height - 6, x_label, "middle", "label"))
    return picture(height, title, description, parts)


@dataclass(frozen=True)
class Band:
    """A line with a band around it: (x, middle, low, high), ascending in x."""

    name: str
    style: str
    points: Sequence[tuple[float, float, float, float]]


def curves(title: str, description: str, bands: Sequence[Band], *, x_label: str, y_label: str) -> Markup:
    """A line for each, through its middles, with the band between its lows and highs behind it."""
    height, top = 300, TOP + 12
    floor = height - BOTTOM
    every = [point for band in bands for point in band.points] or [(0.0, 0.0, 0.0, 0.0)]
    low, high = min(point[2] for point in every), max(point[3] for point in every)
    scale_y = scale_of(low, high if high > low else low + 1, floor, top)
    scale_x = scale_of(0, max(point[0] for point in every) or 1, LEFT, WIDTH - RIGHT)
    parts = [horizontal(scale_y(tick), f"{tick:g}") for tick in ticks(low, high, 5)]
    for tick in ticks(0, max(point[0] for point in every), 5):
        parts.append(text_at(scale_x(tick), floor + 15, number(tick), "middle"))
    for kind in ("band", "line"):  # all lines before all bands
        for band in bands:
            there = [(scale_x(x), *map(scale_y, rest)) for x, *rest in band.points]
            edge = [(x, y) for x, y, _, _ in there]
            if kind == "band":
                edge = [(x, most) for x, _, _, most in there] + [(x, least) for x, _, least, _ in reversed(there)]
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
            shape = "polygon" if kind == "band" else "polyline"
            parts.append(Markup('<{} class="{} {}" points="{}"/>').format(Markup(shape), kind, band.style, places))
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", "label"))
    parts.append(text_at(0, 12, y_label, "start", "label"))
    return picture(height, title, description, parts)


@dataclass(frozen=True)
class Point:
    """Something at `x` with a mean `y` and its interval, None where it has none."""

    label: str
    style: str
    x: float
    y: float
    low: float | None
    high: float | None


def points(title: str, description: str, rows: Sequence[Point], *, x_label: str, y_label: str) -> Markup:
    """A dot with its upright interval for each, its label beside it, and the line of nothing gained."""
    height, top = 300, TOP + 12
    floor = height - BOTTOM
    ends = [0.0, *(end for row in rows for end in (row.y, row.low, row.high) if end is not None)]
    pad = (max(ends) - min(ends) or 1.0) * 0.06
    low, high = min(ends) - pad, max(ends) + pad
    most = max(row.x for row in rows) or 1.0
    scale_y = scale_of(low, high, floor, top)
    scale_x = scale_of(0, most * 1.06, LEFT, WIDTH - RIGHT)
    parts = [horizontal(scale_y(tick), f"{tick:g}") for tick in ticks(low, high, 5)]
    parts += [text_at(scale_x(tick), floor + 15, number(tick), "middle") for tick in ticks(0, most, 5)]
    axis = Markup('<line class="axis" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(axis.format(LEFT, WIDTH - RIGHT, y=scale_y(0)))
    for row in rows:
        x, y = scale_x(row.x), scale_y(row.y)
        if row.low is not None and row.high is not None:
            path = '<path class="interval {}" d="M{x:.1f} {a:.1f}V{b:.1f}M{l:.1f} {a:.1f}h10M{l:.1f} {b:.1f}h10"/>'
            places = {"x": x, "a": scale_y(row.low), "b": scale_y(row.high), "l": x - 5}
            parts.append(Markup(path).format(row.style, **places))
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(row.style, x, y))
        to_left = x > (LEFT + WIDTH) / 2
        parts.append(text_at(x - 9 if to_left else x + 9, y - 7, row.label, "end" if to_left else "start", "strong"))
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", "label"))
    parts.append(text_at(0, 12, y_label, "start", "label"))
    return picture(height, title, description, parts)
