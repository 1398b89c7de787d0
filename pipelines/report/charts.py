"""Charts of amounts: columns, bars and boxes. Pure; knows nothing of runs. `svg` has what they are drawn of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from pipelines.report.svg import (
    BOTTOM,
    CHARACTER,
    LEFT,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    horizontal,
    label_width,
    picture,
    rect,
    scale_of,
    short,
    text_at,
    ticks,
    vertical,
)
from pipelines.terminal import number


@dataclass(frozen=True)
class Series:
    """One colour of a chart: its name, the class that colours it, and a value for each column or bar."""

    name: str
    style: str
    values: Sequence[float]


def columns(
    title: str,
    description: str,
    edges: Sequence[float],
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, str]] = (),
    line: Series | None = None,
    open_end: bool = False,
) -> Markup:
    """Stacked columns between `edges`.

    Args:
        title, description: for those who can't see it.
        edges: (n + 1,) ascending, what the x axis counts.
        series: from the bottom up; n values each.
        marks: dashed lines across: where, and what to write there.
        line: a value for each column drawn as a dot over it.
        open_end: the last column holds everything above its left edge too.
    """
    height = 236 + 16 * len(marks)
    floor, top = height - BOTTOM, TOP + 12 + 16 * len(marks)
    tallest = max([sum(s.values[i] for s in series) for i in range(len(edges) - 1)] + list(line.values if line else ()))
    y_ticks = ticks(0, tallest or 1, 4)
    scale_y = scale_of(0, max(tallest, y_ticks[-1]) or 1, floor, top)
    scale_x = scale_of(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    parts = [horizontal(scale_y(tick), number(tick)) for tick in y_ticks]
    for i, (low, high) in enumerate(pairwise(edges)):
        at, width, base = scale_x(low) + 0.75, max(1.0, scale_x(high) - scale_x(low) - 1.5), 0.0
        for one in series:
            value = one.values[i]
            if value > 0:
                y = scale_y(base + value)
                parts.append(rect(at, y, width, scale_y(base) - y, one.style))
                base += value
    if line:
        for i, value in enumerate(line.values):
            if not value:
                continue
            x = (scale_x(edges[i]) + scale_x(edges[i + 1])) / 2
            parts.append(
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.2"/>').format(line.style, x, scale_y(value))
            )
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(LEFT, WIDTH - RIGHT, y=floor))
    x_ticks = ticks(edges[0], edges[-1], 6)
    for tick in x_ticks:
        text = number(tick) + ("+" if open_end and tick == x_ticks[-1] and tick == edges[-1] else "")
        parts.append(text_at(scale_x(tick), floor + 15, text, "middle"))
    places = [scale_x(min(max(x, edges[0]), edges[-1])) for x, _ in marks]
    for place, (at, (_, name)) in enumerate(zip(places, marks, strict=True)):
        # Later marks are written higher and earlier ones to the left where they would run into the next line.
        y = TOP + 16 * (len(marks) - 1 - place)
        room_until = places[place + 1] if place + 1 < len(places) else WIDTH
        to_left = at + 4 + len(name) * CHARACTER > room_until
        parts.append(
            Markup('<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(y - 9, floor, x=at)
        )
        parts.append(text_at(at + (-4 if to_left else 4), y, name, "end" if to_left else "start", "strong"))
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", "label"))
    parts.append(text_at(0, 12, y_label, "start", "label"))
    return picture(height, title, description, parts)


def bars(
    title: str,
    description: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    x_label: str,
    stacked: bool,
    unit: Callable[[float], str] = number,
) -> Markup:
    """Horizontal bars, one row for each label: stacked, or the first series in front of the others."""
    left = label_width(labels)
    height = TOP + ROW * len(labels) + BOTTOM
    totals = [
        sum(s.values[i] for s in series) if stacked else max(s.values[i] for s in series) for i in range(len(labels))
    ]
    x_ticks = ticks(0, max(totals, default=0) or 1, 4)
    room = 46  # for the number behind the longest bar
    scale = scale_of(0, max([*totals, x_ticks[-1]]) or 1, left, WIDTH - room)
    floor = height - BOTTOM
    parts = [vertical(scale(tick), TOP - 6, floor, unit(tick)) for tick in x_ticks]
    for row, label in enumerate(labels):
        y, base = TOP + row * ROW, 0.0
        parts.append(text_at(left - 8, y + 17, short(label, left), "end"))
        # Of bars that are equally long the first one is to be seen, too.
        ordered = series if stacked else sorted(series, key=lambda s: s.values[row])[::-1]
        for one in ordered:
            value = one.values[row]
            x = scale(base) if stacked else scale(0)
            parts.append(rect(x, y + 4, scale(base + value) - x if stacked else scale(value) - x, ROW - 10, one.style))
            base += value if stacked else 0.0
        parts.append(text_at(scale(totals[row]) + 5, y + 17, unit(totals[row]), "start", "strong"))
    parts.append(text_at((left + WIDTH - room) / 2, height - 6, x_label, "middle", "label"))
    return picture(height, title, description, parts)


@dataclass(frozen=True)
class Box:
    """Quantiles of something: 5%, 25%, 50%, 75%, 95%; and a limit to mark, or None."""

    label: str
    style: str
    quantiles: tuple[float, float, float, float, float]
    limit: float | None = None


def boxes(title: str, description: str, rows: Sequence[Box], *, x_label: str) -> Markup:
    """A box and whiskers for each row; its limit as an upright mark."""
    left = label_width([row.label for row in rows])
    height = TOP + ROW * len(rows) + BOTTOM
    most = max([row.quantiles[-1] for row in rows] + [row.limit or 0.0 for row in rows]) or 1.0
    scale = scale_of(0, most, left, WIDTH - RIGHT - 10)
    floor = height - BOTTOM
    parts = [vertical(scale(tick), TOP - 6, floor, number(tick)) for tick in ticks(0, most, 5)]
    for place, row in enumerate(rows):
        y = TOP + place * ROW + ROW / 2 - 1
        p5, p25, p50, p75, p95 = map(scale, row.quantiles)
        parts.append(text_at(left - 8, y + 4, short(row.label, left), "end"))
        parts.append(Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>').format(p5, p95, y=y))
        parts.append(rect(p25, y - 8, max(2.0, p75 - p25), 16, row.style))
        parts.append(
            Markup('<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(y - 8, y + 8, x=p50)
        )
        if row.limit is not None:
            x = scale(row.limit)
            parts.append(
                Markup('<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(y - 11, y + 11, x=x)
            )
    parts.append(text_at((left + WIDTH) / 2, height - 6, x_label, "middle", "label"))
    return picture(height, title, description, parts)


def legend(series: Sequence[tuple[str, str]]) -> Markup:
    """(name, class) of each colour as a list."""
    items = Markup("").join(
        Markup('<li><span class="key {}" aria-hidden="true"></span>{}</li>').format(style, escape(name))
        for name, style in series
    )
    return Markup('<ul class="legend">{}</ul>').format(items)
