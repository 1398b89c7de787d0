"""Status: what a run has done so far, read from its output alone, live and from any machine."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table

from augment import ledger
from sharding import manifest, shard_io
from sharding.card import REHEARSAL_NOTICE
from sharding.errors import MillError

PLAN_NAME = "plan.json"
"""Written by the augment stage before its first generation, so that status knows what is to be done."""

RATE_WINDOW_S = 300.0
"""The rate is that of the generations finished in the last this many seconds of work."""


def read(output: str) -> dict[str, Any]:
    """The state of a run as JSON values.

    Raises:
        MillError: there is no run in `output`.
    """
    stages = {stage: manifest.read(output, stage) for stage in manifest.STAGES}
    plan_url = shard_io.join(manifest.stage_url(output, "augment"), PLAN_NAME)
    plan = ledger_url = None
    if shard_io.exists(plan_url):
        plan = _json(plan_url)
        ledger_url = plan["ledger"]
    if plan is None and not any(stages.values()):
        raise MillError(f"{output} holds no run: no stage has finished and no generation was planned")
    found: dict[str, Any] = {
        "output": output,
        "stages": {name: "done" if stage else "not done" for name, stage in stages.items()},
        "rehearsal": any(stage.rehearsal for stage in stages.values() if stage),
        "complete": shard_io.exists(shard_io.join(output, manifest.SUCCESS_NAME)),
    }
    if plan is not None and ledger_url is not None:
        found["rehearsal"] = found["rehearsal"] or plan["rehearsal"]
        found["generation"] = _generation(plan, ledger_url)
    return found


def _json(url: str) -> Any:
    import json

    return json.loads(shard_io.read_bytes(url))


def _generation(plan: dict[str, Any], ledger_url: str) -> dict[str, Any]:
    seen: dict[str, tuple[int, float]] = {}
    for row in ledger.read_ledger(ledger_url, columns=("key", "thought_tokens", "finished_at")):
        seen[row.key] = (row.thought_tokens, row.finished_at)
    tokens = sum(count for count, _ in seen.values())
    last = max((at for _, at in seen.values()), default=0.0)
    recent = [(count, at) for count, at in seen.values() if at > last - RATE_WINDOW_S]
    span_s = last - min((at for _, at in recent), default=last)
    rate = sum(count for count, _ in recent) / span_s if span_s > 0 else None
    left = max(0.0, plan["planned_tokens"] - tokens)
    return {
        "generations": len(seen),
        "generations_planned": plan["generations"],
        "thought_tokens": tokens,
        "thought_tokens_planned": plan["planned_tokens"],
        "tokens_per_second": rate,
        "seconds_left": left / rate if rate else None,
        "seconds_since_last": time.time() - last if seen else None,
    }


def render(found: dict[str, Any]) -> Table:
    """The state as a table for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("output", found["output"] + (" (complete)" if found["complete"] else ""))
    table.add_row("stages", ", ".join(f"{name}: {state}" for name, state in found["stages"].items()))
    if generation := found.get("generation"):
        table.add_row(
            "generations",
            f"{generation['generations']:,} in the ledger; about {generation['generations_planned']:,.0f} planned",
        )
        table.add_row(
            "thinking tokens",
            f"{generation['thought_tokens']:,} of at most {generation['thought_tokens_planned']:,.0f} planned",
        )
        if generation["tokens_per_second"] and found["stages"]["augment"] != "done":
            table.add_row("rate", f"{generation['tokens_per_second']:,.0f} tokens/s")
            table.add_row("time left", f"at most {generation['seconds_left'] / 60:,.1f} min at this rate")
    if found["rehearsal"]:
        table.add_row("note", REHEARSAL_NOTICE)
    return table
