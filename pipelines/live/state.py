"""What the live page says: now, and what has finished; each looked up as seldom as its cost asks for.

An output that isn't there yet is no error: a page may be opened before its run begins.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines import report
from pipelines.report import html, page
from pipelines.report.facts import Stages
from pipelines.report.funnel import steps
from pipelines.secrets import told
from pipelines.terminal import visible
from pipelines.watch import progress, status
from sharding import storage
from sharding.errors import MillError
from sharding.storage.json_files import MAX_BYTES
from sharding.storage.output import Output

LOOK_S = 1.0
"""The state is looked up no more often than this, however many pages ask."""

REPORT_PARTS = ("stage_list", "notices", "funnel", "drawn")


class Watched:
    """One output, as the live page has it. May be asked from several threads.

    Args:
        output: the run's output folder; it need not be there yet.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {}
        self._figures: dict[str, str] = {}
        self._made_from = ""
        self._look_again = 0.0

    def state(self) -> dict[str, Any]:
        """What is being done, as the parts of the page that change all the time; `figures` changes when those do."""
        with self._lock:
            began = time.monotonic()
            if began >= self._look_again:
                self._state = self._look()
                # Never more than a share of the time goes into looking: ledgers may be large.
                took_s = time.monotonic() - began
                self._look_again = began + max(LOOK_S, took_s / progress.MAX_SHARE)
            return self._state

    def figures(self) -> dict[str, str]:
        """The report's parts that change when a stage has finished, as HTML."""
        self.state()
        with self._lock:
            return self._figures

    def _look(self) -> dict[str, Any]:
        try:
            return self._found()
        except MillError as error:  # such as a file that is being replaced: the next look may find it whole
            return {"now": _rendered("trouble", said=told(str(error))), "figures": self._made_from, "complete": False}

    def _found(self) -> dict[str, Any]:
        stages = report.read_stages(self._output)
        try:
            found, doing = progress.state(self._output)
        except MillError:
            there = Output(self._output)
            if any(stages.values()) or storage.exists(there.progress) or storage.exists(there.plan):
                raise
            found, doing = None, None
        digest = self._digest(stages)
        if digest != self._made_from:
            self._figures, self._made_from = self._drawn(stages), digest
        return {
            "now": _rendered(
                "now",
                doing=doing,
                rows=list(rows(found, doing, elsewhere=page.warnings_of(self._output, stages))),
                meters=list(meters(found)),
                complete=bool(found and found["complete"]),
                waiting=found is None and doing is None,
            ),
            "figures": digest,
            "complete": bool(found and found["complete"]),
        }

    def _digest(self, stages: Stages) -> str:
        """Changes whenever figures may: with a stage that has finished, or a plan that was made."""
        plan = Output(self._output).difficulty
        parts = [f"{stage.fingerprint} {stage.elapsed_s}".encode() for stage in stages.values() if stage]
        parts += [storage.read_bytes(plan, MAX_BYTES)] if storage.exists(plan) else []
        return hashlib.sha256(b" ".join(parts)).hexdigest()[:16]

    def _drawn(self, stages: Stages) -> dict[str, str]:
        facts = report.gather(self._output, stages)
        return {
            "stages": _rendered("stage_list", stages=facts.stages),
            "notices": _rendered(
                "notices",
                rehearsal=page.rehearsal_of(facts.stages),
                warnings=page.warnings_of(self._output, facts.stages),
            ),
            "funnel": _rendered("funnel", steps=steps(facts.stages)),
            "figures": _rendered("drawn", figures=report.figures_of(self._output, facts)),
        }


def rows(
    found: Mapping[str, Any] | None, doing: Mapping[str, Any] | None, *, elsewhere: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """What a person wants to know of a run at work, as (name, text); of a finished one what it came to.

    Args:
        found: see `progress.state`.
        doing: the same.
        elsewhere: warnings that stand elsewhere on the page.
    """
    if doing is not None:
        yield "stage", f"{doing['stage']}, for {progress.duration(doing['elapsed_s'])}"
        yield from progress.facts(doing)
    if found is None:
        return
    generation = found.get("generation")
    if generation and doing is None:
        yield "generations", f"{generation['generations']:,} of about {generation['generations_planned']:,.0f}"
        yield "spent", status.spent(generation)
        if found["stages"]["augment"] != "done":
            yield "under way", status.under_way(generation)
    if doing is None:
        for warning in found.get("warnings", []):
            if warning not in elsewhere:
                yield "warning", warning


def meters(found: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    """(name, share from 0 to 1) of what has an end to come to."""
    generation = found.get("generation") if found else None
    if not generation or found is None or found["stages"]["augment"] == "done":
        return
    if planned := generation["generations_planned"]:
        yield "generations", min(1.0, generation["generations"] / planned)
    if generation["budget"] and generation["spent"] is not None:
        yield "budget", min(1.0, generation["spent"] / generation["budget"])


def _rendered(part: str, **values: Any) -> str:
    """A part of the page as HTML, by its macro: one of the report's, or of this page's own."""
    source = "parts.html.j2" if part in REPORT_PARTS else "live_parts.html.j2"
    call = ", ".join(f"{name}={name}" for name in values)
    text = f"{{% import '{source}' as parts %}}{{{{ parts.{part}({call}) }}}}"
    return visible(html.environment("pipelines.live").from_string(text).render(**values))
