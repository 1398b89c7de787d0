"""Charts as inline SVG: columns, bars, boxes and intervals. Pure; knows nothing of runs.

Every chart is drawn 440 units wide, so that its text can be read on a phone, and takes its colours from the page's
style sheet by class (`s0` ... `s7` for series, `grid`, `axis`, `mark`), so that it follows light and dark. Text is
escaped. A chart has a title and a description for screen readers; its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 42
_ROW = 30
_CHARACTER = 7.4  # about the width of a character of the labels


@dataclass(frozen=True)
class Series:
    """One colour of a chart: its name, the class that colours it, and a value for each column or bar."""

    name: str
    style: str
    values: Sequence[float]


def number(value: float) -> str:
    """A number for a person: 1,234 · 12.3k · 4.5M."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:,.0f}{unit}" if abs(scaled) >= 100 else f"{scaled:.3g}{unit}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


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
    floor, top = height - _BOTTOM, _TOP + 12 + 16 * len(marks)
    tallest = max([sum(s.values[i] for s in series) for i in range(len(edges) - 1)] + list(line.values if line else ()))
    y_ticks = ticks(0, tallest or 1, 4)
    scale_y = _scale(0, max(tallest, y_ticks[-1]) or 1, floor, top)
    scale_x = _scale(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    parts = [_horizontal(scale_y(tick), number(tick)) for tick in y_ticks]
    for i, (low, high) in enumerate(pairwise(edges)):
        at, width, base = scale_x(low) + 0.75, max(1.0, scale_x(high) - scale_x(low) - 1.5), 0.0
        for one in series:
            value = one.values[i]
            if value > 0:
                y = scale_y(base + value)
                parts.append(_rect(at, y, width, scale_y(base) - y, one.style))
                base += value
    if line:
        for i, value in enumerate(line.values):
            if not value:
                continue
            x = (scale_x(edges[i]) + scale_x(edges[i + 1])) / 2
            parts.append(
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.2"/>').format(line.style, x, scale_y(value))
            )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(_LEFT, WIDTH - _RIGHT, y=floor)
    )
    x_ticks = ticks(edges[0], edges[-1], 6)
    for tick in x_ticks:
        text = number(tick) + ("+" if open_end and tick == x_ticks[-1] and tick == edges[-1] else "")
        parts.append(_text(scale_x(tick), floor + 15, text, "middle"))
    places = [scale_x(min(max(x, edges[0]), edges[-1])) for x, _ in marks]
    for place, (at, (_, name)) in enumerate(zip(places, marks, strict=True)):
        # Later marks are written higher and earlier ones to the left where they would run into the next line.
        y = _TOP + 16 * (len(marks) - 1 - place)
        room_until = places[place + 1] if place + 1 < len(places) else WIDTH
        to_left = at + 4 + len(name) * _CHARACTER > room_until
        parts.append(
            Markup('<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(y - 9, floor, x=at)
        )
        parts.append(_text(at + (-4 if to_left else 4), y, name, "end" if to_left else "start", "strong"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, height - 6, x_label, "middle", "label"))
    parts.append(_text(0, 12, y_label, "start", "label"))
    return _svg(height, title, description, parts)


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
    left = _label_width(labels)
    height = _TOP + _ROW * len(labels) + _BOTTOM
    totals = [
        sum(s.values[i] for s in series) if stacked else max(s.values[i] for s in series) for i in range(len(labels))
    ]
    x_ticks = ticks(0, max(totals, default=0) or 1, 4)
    room = 46  # for the number behind the longest bar
    scale = _scale(0, max([*totals, x_ticks[-1]]) or 1, left, WIDTH - room)
    floor = height - _BOTTOM
    parts = [_vertical(scale(tick), _TOP - 6, floor, unit(tick)) for tick in x_ticks]
    for row, label in enumerate(labels):
        y, base = _TOP + row * _ROW, 0.0
        parts.append(_text(left - 8, y + 17, _short(label, left), "end"))
        ordered = series if stacked else sorted(series, key=lambda s: -s.values[row])
        for one in ordered:
            value = one.values[row]
            x = scale(base) if stacked else scale(0)
            parts.append(
                _rect(x, y + 4, scale(base + value) - x if stacked else scale(value) - x, _ROW - 10, one.style)
            )
            base += value if stacked else 0.0
        parts.append(_text(scale(totals[row]) + 5, y + 17, unit(totals[row]), "start", "strong"))
    parts.append(_text((left + WIDTH - room) / 2, height - 6, x_label, "middle", "label"))
    return _svg(height, title, description, parts)


@dataclass(frozen=True)
class Box:
    """Quantiles of something: 5%, 25%, 50%, 75%, 95%; and a limit to mark, or None."""

    label: str
    style: str
    quantiles: tuple[float, float, float, float, float]
    limit: float | None = None


def boxes(title: str, description: str, rows: Sequence[Box], *, x_label: str) -> Markup:
    """A box and whiskers for each row; its limit as an upright mark."""
    left = _label_width([row.label for row in rows])
    height = _TOP + _ROW * len(rows) + _BOTTOM
    most = max([row.quantiles[-1] for row in rows] + [row.limit or 0.0 for row in rows]) or 1.0
    scale = _scale(0, most, left, WIDTH - _RIGHT - 10)
    floor = height - _BOTTOM
    parts = [_vertical(scale(tick), _TOP - 6, floor, number(tick)) for tick in ticks(0, most, 5)]
    for place, row in enumerate(rows):
        y = _TOP + place * _ROW + _ROW / 2 - 1
        p5, p25, p50, p75, p95 = map(scale, row.quantiles)
        parts.append(_text(left - 8, y + 4, _short(row.label, left), "end"))
        parts.append(Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>').format(p5, p95, y=y))
        parts.append(_rect(p25, y - 8, max(2.0, p75 - p25), 16, row.style))
        parts.append(
            Markup('<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(y - 8, y + 8, x=p50)
        )
        if row.limit is not None:
            x = scale(row.limit)
            parts.append(
                Markup('<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(y - 11, y + 11, x=x)
            )
    parts.append(_text((left + WIDTH) / 2, height - 6, x_label, "middle", "label"))
    return _svg(height, title, description, parts)


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
    left = _label_width([row.label for row in rows])
    height = _TOP + _ROW * len(rows) + _BOTTOM
    all_ends = [0.0, *(end for row in rows for end in (row.mean, row.low, row.high) if end is not None)]
    pad = (max(all_ends) - min(all_ends) or 1.0) * 0.06
    low, high = min(all_ends) - pad, max(all_ends) + pad
    scale = _scale(low, high, left, WIDTH - _RIGHT - 8)
    floor = height - _BOTTOM
    parts = [_vertical(scale(tick), _TOP - 6, floor, f"{tick:g}") for tick in ticks(low, high, 6)]
    parts.append(
        Markup('<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(_TOP - 6, floor, x=scale(0))
    )
    for place, row in enumerate(rows):
        y = _TOP + place * _ROW + _ROW / 2 - 1
        parts.append(_text(left - 8, y + 4, _short(row.label, left), "end"))
        if row.low is not None and row.high is not None:
            ends = scale(row.low), scale(row.high)
            parts.append(
                Markup('<path class="interval {}" d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {t}v10M{b:.1f} {t}v10"/>').format(
                    row.style, a=ends[0], b=ends[1], y=y, t=y - 5
                )
            )
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="5"/>').format(row.style, scale(row.mean), y))
    parts.append(_text((left + WIDTH) / 2, height - 6, x_label, "middle", "label"))
    return _svg(height, title, description, parts)


@dataclass(frozen=True)
class Band:
    """A line with a band around it: (x, middle, low, high), ascending in x."""

    name: str
    style: str
    points: Sequence[tuple[float, float, float, float]]


def curves(title: str, description: str, bands: Sequence[Band], *, x_label: str, y_label: str) -> Markup:
    """A line for each, through its middles, with the band between its lows and highs behind it."""
    height, top = 300, _TOP + 12
    floor = height - _BOTTOM
    every = [point for band in bands for point in band.points] or [(0.0, 0.0, 0.0, 0.0)]
    low, high = min(point[2] for point in every), max(point[3] for point in every)
    scale_y = _scale(low, high if high > low else low + 1, floor, top)
    scale_x = _scale(0, max(point[0] for point in every) or 1, _LEFT, WIDTH - _RIGHT)
    parts = [_horizontal(scale_y(tick), f"{tick:g}") for tick in ticks(low, high, 5)]
    for tick in ticks(0, max(point[0] for point in every), 5):
        parts.append(_text(scale_x(tick), floor + 15, number(tick), "middle"))
    for kind in ("band", "line"):  # all lines before all bands
        for band in bands:
            there = [(scale_x(x), *map(scale_y, rest)) for x, *rest in band.points]
            edge = [(x, y) for x, y, _, _ in there]
            if kind == "band":
                edge = [(x, most) for x, _, _, most in there] + [(x, least) for x, _, least, _ in reversed(there)]
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
            shape = "polygon" if kind == "band" else "polyline"
            parts.append(Markup('<{} class="{} {}" points="{}"/>').format(Markup(shape), kind, band.style, places))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, height - 6, x_label, "middle", "label"))
    parts.append(_text(0, 12, y_label, "start", "label"))
    return _svg(height, title, description, parts)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _svg(height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(WIDTH, f"{height:g}", f"{title}. {description}", title, description, Markup("").join(parts))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5"/>').format(
        style, x, y, max(0.0, width), max(0.0, height)
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(style, x, y, anchor, text)


def _horizontal(y: float, text: str) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(_LEFT, WIDTH - _RIGHT, y=y)
    return line + _text(_LEFT - 6, y + 4, text, "end")


def _vertical(x: float, top: float, floor: float, text: str) -> Markup:
    line = Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(top, floor, x=x)
    return line + _text(x, floor + 15, text, "middle")


def _label_width(labels: Sequence[str]) -> float:
    return min(160.0, 16 + _CHARACTER * max(map(len, labels), default=0))


def _short(label: str, width: float) -> str:
    room = int((width - 8) / _CHARACTER)
    return label if len(label) <= room else label[: room - 1] + "…"


def legend(series: Sequence[tuple[str, str]]) -> Markup:
    """(name, class) of each colour as a list."""
    items = Markup("").join(
        Markup('<li><span class="key {}" aria-hidden="true"></span>{}</li>').format(style, escape(name))
        for name, style in series
    )
    return Markup('<ul class="legend">{}</ul>').format(items)
