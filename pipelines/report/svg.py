"""What charts are drawn of: scales, ticks, labels and shapes, as inline SVG. Pure; knows nothing of runs.

Every chart is drawn 440 units wide, so that its text can be read on a phone, and takes its colours from the page's
style sheet by class (`s0` ... `s7` for series, `grid`, `axis`, `mark`), so that it follows light and dark. Text is
escaped. A chart has a title and a description for screen readers; its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from pipelines.terminal import shortened

WIDTH = 440
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
ROW = 30
CHARACTER = 7.4
"""About the width of a character of the labels."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def picture(height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """A chart of its parts, told to those who can't see it."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(WIDTH, f"{height:g}", f"{title}. {description}", title, description, Markup("").join(parts))


def scale_of(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value from `low` to `high` lies between `start` and `end`."""
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    """A rectangle; one of no height or width is still one."""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5"/>').format(
        style, x, y, max(0.0, width), max(0.0, height)
    )


def text_at(x: float, y: float, text: str, anchor: str, style: str = "") -> Markup:
    """Text at a place; `anchor` is start, middle or end."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(style, x, y, anchor, text)


def horizontal(y: float, text: str) -> Markup:
    """A line across the chart, with what it stands for at its left."""
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(LEFT, WIDTH - RIGHT, y=y)
    return line + text_at(LEFT - 6, y + 4, text, "end")


def vertical(x: float, top: float, floor: float, text: str) -> Markup:
    """A line down the chart, with what it stands for below."""
    line = Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(top, floor, x=x)
    return line + text_at(x, floor + 15, text, "middle")


def label_width(labels: Sequence[str]) -> float:
    """How wide the labels of rows are to be."""
    return min(160.0, 16 + CHARACTER * max(map(len, labels), default=0))


def short(label: str, width: float) -> str:
    """A label that fits, cut in its middle: ends tell labels apart as well as beginnings do."""
    return shortened(label, int((width - 8) / CHARACTER))
