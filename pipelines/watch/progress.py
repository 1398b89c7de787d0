"""What a run is doing, while it does it: one live panel on a terminal, one line a minute in a log.

    steps ─► sharding.tally ─┐
    plan, ledger, heartbeats ┴► snapshot ─► panel | log line | stages/progress.json, for `status` from elsewhere

A thread of its own looks now and then, while this run is at work: one that is refused because another is at work on the
output leaves what that one has published. It never spends more than a hundredth of the time on looking, and whatever
goes wrong in it is no reason for a run to fail.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.watch import status
from pipelines.watch.files import read_snapshot
from sharding import storage, tally, waits
from sharding.errors import MillError
from sharding.storage.output import Output

logger = logging.getLogger(__name__)

LOOK_S = 1.0
LOG_S = 60.0
FIRST_LOG_S = 4.0
"""Whoever reads a log knows after so long that something is done, and what."""

PUBLISH_S = 10.0
STALE_S = 60.0
"""What was published longer ago is of a run that is gone."""

MAX_SHARE = 0.01
"""Of the time, so much may go into looking at a ledger or a store."""

PACKAGES = ("pipelines", "augment", "difficulty", "sharding")


class Progress:
    """Shows what a run is doing from `stage` to `stage`, within a `with` block.

    Args:
        output: the run's output.
        console: where it is shown; a panel if it is a terminal.
        quiet: show nothing. It is published for `status` all the same.
        publish: whether it is: what only plans writes nothing into an output.
    """

    def __init__(
        self, output: str, console: Console, *, quiet: bool = False, log_s: float = LOG_S, publish: bool = True
    ) -> None:
        self._output, self._console, self._quiet, self._log_s = output, console, quiet, log_s
        self._publish = publish
        self._url = Output(output).progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thoughtmill-progress", daemon=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if self._is_live() else None
        self._warning = _LastWarning()
        self._stage: str | None = None
        self._began = 0.0
        self._generation: dict[str, Any] | None = None
        self._look_again = 0.0
        self._run_id = secrets.token_hex(8)

    def _is_live(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def __enter__(self) -> Progress:
        tally.clear()
        self._warning.listen(keep_to_itself=self._live is not None)
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(LOOK_S)  # a store that hangs holds up nobody
        if self._live is not None:
            self._live.stop()
        self._warning.leave()
        with contextlib.suppress(Exception):
            if self._publish and read_snapshot(self._output)["run"] == self._run_id:
                storage.remove(self._url, self._output)

    def stage(self, name: str | None) -> None:
        """A stage begins, and this run may write to the output; None: it has ended."""
        tally.clear()
        self._generation, self._look_again = None, 0.0
        self._began = time.monotonic()
        self._stage = name
        if self._live is not None:
            self._live.update("", refresh=True)  # what follows is printed where the panel was

    def snapshot(self) -> dict[str, Any] | None:
        """What is being done now, as JSON values; None between stages."""
        stage = self._stage
        if stage is None:
            return None
        elapsed_s = time.monotonic() - self._began
        if stage == "augment":
            self._look()
        counts = tally.read()
        return {
            "stage": stage,
            "run": self._run_id,
            "at": time.time(),
            "elapsed_s": elapsed_s,
            "counts": counts,
            "tokens_per_second": counts["tokens"] / elapsed_s if counts.get("tokens") and elapsed_s > 0 else None,
            "generation": self._generation,
            "waits": waits.current(),
            "doing": tally.doing(),
            "warning": self._warning.message,
        }

    def _look(self) -> None:
        """Read plan, ledger and heartbeats, unless that would take more than its share of the time."""
        began = time.monotonic()
        if began < self._look_again:
            return
        with contextlib.suppress(MillError, OSError):
            self._generation = status.read(self._output).get("generation")
        took_s = time.monotonic() - began
        self._look_again = began + max(LOOK_S, took_s / MAX_SHARE)

    def _run(self) -> None:
        logged, published, stage, told = time.monotonic(), float("-inf"), "", None
        while not self._stop.wait(LOOK_S):
            try:
                found, now = self.snapshot(), time.monotonic()
                if found is None:
                    if self._live is not None and self._warning.message:  # such as what a start waits for
                        self._live.update(Text(self._warning.message, "yellow"), refresh=True)
                    continue
                if self._live is not None:
                    self._live.update(render(found), refresh=True)
                elif not self._quiet and (
                    now >= logged + self._log_s or (found["stage"] != told and found["elapsed_s"] >= FIRST_LOG_S)
                ):
                    logged, told = now, found["stage"]
                    self._console.print(Text(line(found)))
                if not self._publish:
                    continue
                if now >= published + PUBLISH_S or found["stage"] != stage:  # what was published says another one
                    published, stage = now, found["stage"]
                    storage.write_json(self._url, found)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not worth a run
                logger.debug("progress: %s", error)


class _LastWarning(logging.Handler):
    """Remembers the last warning of this project's own loggers; on a panel, in place of printing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.message: str | None = None
        self._before: list[tuple[logging.Logger, int, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()

    def listen(self, *, keep_to_itself: bool) -> None:
        for name in PACKAGES:
            heard = logging.getLogger(name)
            self._before.append((heard, heard.level, heard.propagate))
            if not heard.isEnabledFor(logging.WARNING):
                heard.setLevel(logging.WARNING)
                heard.propagate = False  # what was not shown before isn't now
            heard.propagate = heard.propagate and not keep_to_itself
            heard.addHandler(self)

    def leave(self) -> None:
        for heard, level, propagate in self._before:
            heard.removeHandler(self)
            heard.setLevel(level)
            heard.propagate = propagate
        self._before.clear()


# --- for people -------------------------------------------------------------------------------------------------------


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a snapshot tells, as (name, text)."""
    counts: Mapping[str, int] = found["counts"]
    done = [f"{counts[name]:,} {name}" for name in ("pieces", "documents", "segments", "tokens") if counts.get(name)]
    if done:
        yield "done", ", ".join(done)
    if found["tokens_per_second"]:
        yield "rate", f"{found['tokens_per_second']:,.0f} tokens/s"
    if decided := counts.get("candidates"):
        yield "kept", f"{counts.get('kept', 0) / decided:.0%} of {decided:,} candidates"
    generation = found["generation"]
    waiting = [*found.get("waits", ()), *(generation or {}).get("waits", ())]
    if doing := found.get("doing"):
        yield "doing", doing
    for wait in waits.all_told(waiting):
        yield "waiting", wait
    if generation:
        yield "generations", f"{generation['generations']:,} of about {generation['generations_planned']:,.0f}"
        if generation["processes"]:
            yield "under way", status.under_way(generation)
        yield "spent", status.spent(generation)
        if generation["tokens_per_second"]:
            yield "rate", f"{generation['tokens_per_second']:,.0f} tokens/s"
            if not waiting:
                yield "time left", f"about {duration(generation['seconds_left'])}"
    if found["warning"]:
        yield "warning", found["warning"]


def line(found: Mapping[str, Any]) -> str:
    """A snapshot in one line of a log."""
    told = "; ".join(f"{name} {text}" for name, text in facts(found))
    return f"{found['stage']}, {duration(found['elapsed_s'])}" + (f": {told}" if told else "")


def render(found: Mapping[str, Any]) -> Table:
    """A snapshot as a panel for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(found["stage"], "cyan"), f"for {duration(found['elapsed_s'])}")
    for name, text in facts(found):
        table.add_row(name, Text(text, "yellow" if name == "warning" else ""))
    return table


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


# --- from elsewhere ---------------------------------------------------------------------------------------------------


def published(output: str) -> dict[str, Any] | None:
    """The last snapshot of a run that is alive, from any machine; None where there is none.

    Raises:
        MillError: it is no snapshot, or the store can't tell.
    """
    try:
        found = read_snapshot(output) if storage.exists(Output(output).progress) else None
    except MillError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None  # the run has just ended
        raise
    return found if found is not None and abs(time.time() - found["at"]) <= STALE_S else None


def watch(output: str, console: Console, *, log_s: float = LOG_S) -> None:
    """Show the state of a run until it is complete: live on a terminal, one line a minute elsewhere.

    Raises:
        MillError: there is no run in `output`, and none is under way.
    """
    live = Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext()
    with live as shown:
        while True:
            began = time.monotonic()
            found, doing = state(output)
            if shown is not None:
                shown.update(
                    Group(*(part for part in (found and status.render(found), doing and render(doing)) if part)),
                    refresh=True,
                )
            elif doing is not None:
                console.print(Text(line(doing)))
            at_work = doing is not None or (found and found.get("generation", {}).get("processes"))
            if found is not None and (found["complete"] or not at_work):
                if shown is None:
                    console.print(status.render(found))
                return
            took_s = time.monotonic() - began
            time.sleep(max(LOOK_S if shown is not None else log_s, took_s / MAX_SHARE))


def state(output: storage.Location) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What has been done, as `status.read` says, and what is being done; one of the two may be missing.

    Raises:
        MillError: both are.
    """
    output = os.fspath(output)
    doing = published(output)
    try:
        return status.read(output), doing
    except MillError:
        if doing is None:
            raise
        return None, doing  # its first stage is under way
