"""Progress of the training runs on a terminal: a bar with the time left; in a log, a line a minute."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pipelines.ablation.config import AblationConfig

if TYPE_CHECKING:
    from pipelines.ablation.training import Training

LINE_S = 60.0


class Progress:
    """Shows how far all students are together. A context manager.

    Args:
        terminal: where to; a `pipelines.terminal.Terminal`.
        config: the `ablation` section.
    """

    def __init__(self, terminal: Any, config: AblationConfig) -> None:
        self._terminal = terminal
        students = len(config.seeds) * (len(config.arms) + len(config.outputs))
        self._wanted = students * config.tokens
        self._students = students
        self._came_to: dict[tuple[str, int], int] = {}
        self._first: dict[tuple[str, int], int] = {}
        self._began = self._said = time.monotonic()
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=terminal, transient=True, disable=not terminal.is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task("training tokens", total=self._wanted)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, training: Training, tokens: int) -> None:
        """A training run has come to so many tokens."""
        student = training.arm, training.seed
        if not self._came_to:
            self._began = self._said = time.monotonic()
        self._came_to[student] = tokens
        self._first.setdefault(student, tokens)
        now = time.monotonic()
        self._bars.update(self._task, completed=sum(self._came_to.values()))
        if now - self._said >= LINE_S and not self._terminal.is_terminal:
            self._said = now
            self._terminal.print(self._line(now - self._began))

    def _line(self, elapsed_s: float) -> str:
        done = sum(self._came_to.values())
        trained = done - sum(self._first.values())
        rate = trained / elapsed_s if elapsed_s else 0.0
        left = f", {(self._wanted - done) / rate / 60:,.0f} minutes left" if rate and done < self._wanted else ""
        return f"{done:,} of {self._wanted:,} training tokens, {rate:,.0f} a second{left}"
