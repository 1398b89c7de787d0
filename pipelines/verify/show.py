"""`thoughtmill verify`: the check of `pipelines.verify`, with its progress and its report on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from pipelines import verify
from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.terminal import counted
from pipelines.verify import work
from pipelines.verify.report import Report

LOG_EVERY_S = 60.0
"""In a log, progress is one line this often."""


def check(
    output: str, *, deep: bool, workers: int | None, beam_args: Sequence[str] = (), progress_on: Console | None
) -> Report:
    """Verify an output and show how far it is: a bar on a terminal, a line a minute otherwise, None: nothing.

    Raises:
        MillError: the folder holds no finished run, or the pipeline of `deep` failed.
        RequestError: a Beam option can't be.
    """
    with _progress(progress_on) as on_progress:
        return verify.verify(output, deep=deep, workers=workers, beam_args=beam_args, on_progress=on_progress)


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return msgspec.to_builtins(report)


def render(report: Report) -> Text:
    """The report for a person: every problem on its line, then what was checked."""
    text = Text()
    for problem in report.problems:
        text.append("wrong ", style="red").append(f"{problem}\n")
    checked = report.checked
    text.append(
        f"{report.output}: {counted(checked.files, 'file')}, {counted(checked.size_bytes, 'byte')}, "
        f"{counted(checked.rows, 'sequence')}, {counted(checked.documents, 'document')}"
    )
    if report.deep:
        thoughts = counted(checked.thoughts_compared, "thought")
        text.append(f"; compared {counted(checked.documents_compared, 'document')} and {thoughts}")
    if checked.files_searched:
        text.append(f"; searched {counted(checked.files_searched, 'file')} for what is to be absent")
    if report.signed_by:
        text.append(f"; signed with the key {report.signed_by}")
    text.append(f"; {report.elapsed_s:,.1f} s: ")
    text.append("all well" if report.ok else counted(len(report.problems), "problem"))
    if report.rehearsal:
        text.append(f"\n{REHEARSAL_NOTICE}")
    return text


@contextmanager
def _progress(console: Console | None) -> Iterator[work.Progress | None]:
    if console is None:
        yield None
    elif console.is_terminal:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = ("verify", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("verify", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield line_a_minute(console.print)


def line_a_minute(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> work.Progress:
    """Progress as one line a minute with rate and time left, the first after a minute.

    Args:
        say: takes a line.
        clock: seconds.
    """
    started = last = clock()

    def on_progress(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last < LOG_EVERY_S or done >= total:
            return
        last = now
        rate = done / (now - started)
        left_s = (total - done) / rate if rate else 0.0
        say(f"verify: {done / total:.0%}, {done / 1e6:,.0f} MB, {rate / 1e6:,.0f} MB/s, {left_s / 60:,.0f} min left")

    return on_progress
