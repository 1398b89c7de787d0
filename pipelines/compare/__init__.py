"""Runs side by side: what differs between them, what each kept and gained, what it cost, and the same documents twice.

outputs ──► runs: facts, config, sample of each ──► tables, paired: figures ──► show: terminal
            the documents that all have ──► report.room: reading rooms ───────► page: compare.html

`thoughtmill compare A B` prints the tables and writes the page. Nothing is written into an output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sharding import storage

if TYPE_CHECKING:
    from pipelines.compare.runs import Run
    from pipelines.report.facts import Figure

PAGE_NAME = "compare.html"


def figures(runs: Sequence[Run]) -> list[Figure]:
    """What differs, in order: each has a table, and a chart where there is something to draw."""
    from pipelines.compare import paired_figure, tables

    return [
        tables.configuration(runs),
        tables.plans(runs),
        tables.kept(runs),
        tables.gains(runs),
        paired_figure.differences(runs),
        tables.costs(runs),
    ]


def render(outputs: Sequence[storage.Location]) -> str:
    """The comparison as a page; a few MB at most.

    Raises:
        RequestError: fewer than two outputs, too many of them, or one twice.
        MillError: one holds no scored run, or a file can't be read.
    """
    from pipelines.compare import page
    from pipelines.compare.runs import read_runs

    runs = read_runs([os.fspath(output) for output in outputs])
    return page.render(runs, figures(runs))
