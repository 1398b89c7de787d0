"""What a run is doing, while it does it: one live panel on a terminal, a line now and then in a log.

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
import posixpath
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.terminal import counted
from pipelines.watch import status
from pipelines.watch.files import read_snapshot
from pipelines.watch.last_warning import LastWarning
from sharding import storage, tally, waits
from sharding.errors import MillError
from sharding.storage import clock
from sharding.storage.output import Output

logger = logging.getLogger(__name__)

LOOK_S = 1.0
LOG_S = 60.0
FIRST_LOG_S = 2.0
"""Whoever reads a log knows after so long that something is done, and what; the next lines come twice as late each."""

PUBLISH_S = 10.0
STALE_S = 60.0
"""What was published longer ago is of a run that is gone."""

MAX_SHARE = 0.01
"""Of the time, so much may go into looking at a ledger or a store."""


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
        self._warning = LastWarning()
        self._stage: str | None = None
        self._of, self._looked_at = "", output
        self._begin_anew()
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

    def stage(self, name: str | None, *, of: str = "", output: str | None = None) -> None:
        """A stage begins, and this run may write to the output; None: it has ended.

        Args:
            of: what it is a stage of, such as a control arm.
            output: where that is, if it isn't the output.
        """
        self._of, self._looked_at = of, output or self._output
        tally.clear()
        self._generation, self._look_again = None, 0.0
        self._begin_anew()
        self._stage = name
        if self._live is not None:
            self._live.update("", refresh=True)  # what follows is printed where the panel was

    def _begin_anew(self) -> None:
        self._began = time.monotonic()
        self._next_line = self._began + min(self._log_s, FIRST_LOG_S)

    def snapshot(self) -> dict[str, Any] | None:
        """What is being done now, as JSON values; None between stages."""
        stage = self._stage
        if stage is None:
            return None
        elapsed_s = time.monotonic() - self._began
        if stage == "augment":
            self._look()
        counts = tally.read()
        tokens = counts.get("tokens") or counts.get("scored_tokens")
        return {
            "stage": f"{self._of}: {stage}" if self._of else stage,
            "run": self._run_id,
            "at": time.time(),
            "elapsed_s": elapsed_s,
            "counts": counts,
            "tokens_per_second": tokens / elapsed_s if tokens and elapsed_s > 0 else None,
            "generation": self._generation,
            "waits": waits.current(),
            "doing": tally.doing(),
            "warning": self._warning.message,
        }

    def _say_before(self) -> None:
        """What is done, or waited for, before a stage begins, such as a look at the files of a large source."""
        said = self._warning.message or tally.doing()
        if self._live is not None and said:
            self._live.update(Text(said, "yellow" if self._warning.message else ""), refresh=True)
        elif self._live is None and tally.doing() and self._is_due(time.monotonic()):
            self._console.print(Text(f"starting, {duration(time.monotonic() - self._began)}: {tally.doing()}"))

    def _is_due(self, now: float) -> bool:
        """Whether a log gets a line: soon after a stage has begun, then less and less often."""
        if self._quiet or now < self._next_line:
            return False
        self._next_line = now + min(self._log_s, max(FIRST_LOG_S, now - self._began))
        return True

    def _is_long(self, now: float) -> bool:
        """Whether a stage has gone on for long enough to tell what it does."""
        return not self._quiet and now >= self._began + min(self._log_s, FIRST_LOG_S)

    def _look(self) -> None:
        """Read plan, ledger and heartbeats, unless that would take more than its share of the time."""
        began = time.monotonic()
        if began < self._look_again:
            return
        with contextlib.suppress(MillError, OSError):
            self._generation = status.read(self._looked_at).get("generation")
        took_s = time.monotonic() - began
        self._look_again = began + max(LOOK_S, took_s / MAX_SHARE)

    def _run(self) -> None:
        published, stage = float("-inf"), ""
        while not self._stop.wait(LOOK_S):
            try:
                found, now, begun = self.snapshot(), time.monotonic(), tally.begun()
                if found is None:
                    self._say_before()
                    continue
                if self._live is not None:
                    self._live.update(render(found), refresh=True)
                elif self._is_due(now) or (begun and self._is_long(now)):
                    # A model that is loaded between two lines is told all the same.
                    self._console.print(
                        Text(line({**found, "doing": ", ".join(dict.fromkeys(begun)) or found["doing"]}))
                    )
                if not self._publish:
                    continue
                if now >= published + PUBLISH_S or found["stage"] != stage:  # what was published says another one
                    published, stage = now, found["stage"]
                    # By the store's clock, whatever this machine's says: whoever looks on tells its age by it.
                    storage.write_json(self._url, {**found, "at": clock.now_s(posixpath.dirname(self._url))})
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not worth a run
                logger.debug("progress: %s", error)


# --- for people -------------------------------------------------------------------------------------------------------


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a snapshot tells, as (name, text)."""
    counts: Mapping[str, int] = found["counts"]
    nouns = {"pieces": "piece", "documents": "document", "segments": "segment", "tokens": "token"}
    done = [counted(counts[name], noun) for name, noun in nouns.items() if counts.get(name)]
    if done:
        yield "done", ", ".join(done)
    if read := counts.get("scored_tokens"):
        yield "scored", f"{read:,} of the scorer's tokens"
    if found["tokens_per_second"]:
        yield "rate", f"{found['tokens_per_second']:,.0f} tokens/s"
    if decided := counts.get("candidates"):
        yield "kept", f"{counts.get('kept', 0) / decided:.0%} of {counted(decided, 'candidate')}"
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
    return found if found is not None and _is_fresh(output, found["at"]) else None


def _is_fresh(output: str, at: float) -> bool:
    """Whether something was published a moment ago: by this machine's clock, or else by the store's, which dates it."""
    if abs(time.time() - at) <= STALE_S:
        return True
    return abs(clock.now_s(posixpath.dirname(Output(output).progress)) - at) <= STALE_S


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
