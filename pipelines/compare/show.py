"""A comparison in the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.compare.paired_figure import measured_otherwise, paired
from pipelines.compare.runs import Run
from pipelines.report.facts import Figure


def render(figures: Sequence[Figure]) -> Iterator[RenderableType]:
    """One table below another, each with what it says."""
    for figure in figures:
        yield Text(f"\n{figure.title}", "bold cyan")
        if figure.missing:
            yield Text(figure.missing)
        else:
            yield Text(figure.says, "dim")
            yield _table(figure)
        for note in figure.notes:
            yield Text(f"note: {note}", "yellow")


def _table(figure: Figure) -> Table:
    # No number is cut and no key: what has no room goes on in the next line.
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for place, name in enumerate(figure.header):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in figure.rows:
        table.add_row(*row)
    return table


def to_json(runs: Sequence[Run], figures: Sequence[Figure]) -> dict[str, Any]:
    """Runs, tables as they are shown, and the paired differences as numbers."""
    differences = []
    for other in runs[1:]:
        if not measured_otherwise(runs[0], other):
            found = paired(runs[0], other)
            told = {what: asdict(one) for what, one in found.items() if one is not None}
            differences.append({"first": runs[0].output, "other": other.output, "gains": told})
    return {
        "runs": [{"name": run.name, "output": run.output} for run in runs],
        "tables": [
            {"key": one.key, "title": one.title, "says": one.missing or one.says, "notes": list(one.notes)}
            | {"header": list(one.header), "rows": [list(row) for row in one.rows]}
            for one in figures
        ],
        "differences": differences,
    }
