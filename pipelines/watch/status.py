"""Status: what a run has done so far, read from its output and ledger alone, live and from any machine.

The plan tells what is to be generated and what it costs, the ledger what has been, and heartbeats what is under way.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from augment.feeding.heartbeat import alive_now
from augment.ledger.dropping import dropped_rows, drops
from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.delivered import deliveries_of
from pipelines.deliveries_begun import pending
from pipelines.terminal import counted
from pipelines.watch.bought import Bought, read_begun, read_bought
from pipelines.watch.files import read_drifts, read_plan
from sharding import storage, waits
from sharding.errors import MillError
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

RATE_WINDOW_S = 300.0
"""The rate is that of the generations finished in the last this many seconds of work."""

UNIT_NAMES = {"tokens": "tokens", "dollars": "dollars", "gpu_hours": "GPU-hours"}
_KEYS = {"tokens": "thought_tokens", "dollars": "dollars", "gpu_hours": "gpu_hours"}
"""What a unit of the budget is called in what was spent."""


# --- what is there ----------------------------------------------------------------------------------------------------


def read(output: storage.Location) -> dict[str, Any]:
    """The state of a run as JSON values.

    Raises:
        MillError: there is no run in `output`.
    """
    output = os.fspath(output)
    stages = {stage: manifest.read(output, stage) for stage in manifest.STAGES}
    plan = read_plan(output)
    if plan is None and not any(stages.values()):
        raise MillError(f"{output} holds no run: no stage has finished and no generation was planned")
    found: dict[str, Any] = {
        "output": output,
        "stages": {name: "done" if stage else "not done" for name, stage in stages.items()},
        "rehearsal": any(stage.rehearsal for stage in stages.values() if stage),
        "complete": storage.exists(Output(output).success),
    }
    if later := deliveries_of(stages["pack"]):
        found["deliveries"] = [{"number": one.number, "documents": one.told["score/documents"]} for one in later]
    if (number := pending(output)) is not None:
        found["delivery_begun"] = number
    if plan is not None:
        done, beside = read_bought(plan, output, stages["augment"])
        beats, now = ([], time.time()) if stages["augment"] else alive_now(Output(output).alive)
        found["rehearsal"] = found["rehearsal"] or plan["rehearsal"]
        begun = read_begun(plan)
        found["generation"] = _generation(plan, done, begun, beats, now)
        if len(begun.tokens):
            found["begun"] = {"generations": len(begun.tokens), "thought_tokens": int(begun.tokens.sum())}
        if len(beside.tokens):
            found["beside"] = {"generations": len(beside.tokens), **_spent(plan, beside)}
        if (absent := _absent_ledger(plan, stages["augment"])) is not None:
            found["absent"] = absent
            found["generation"] |= absent["generation"]
        if names := drops(plan["ledger"]):
            tokens = dropped_rows(plan["ledger"], names, "thought_tokens")
            found["dropped"] = {"generations": len(tokens), "thought_tokens": sum(tokens)}
        found["warnings"] = [*plan["warnings"], *map(str, read_drifts(output))]
    return found


def _absent_ledger(plan: dict[str, Any], augmented: Manifest | None) -> dict[str, Any] | None:
    """What can be said where the ledger isn't here, though there were generations: as counted when they were made."""
    if augmented is None or not augmented.counts.get("generations") or storage.list_names(plan["ledger"]):
        return None
    tokens = augmented.counts.get("thought_tokens", 0)
    known = {"generations": augmented.counts["generations"], "thought_tokens": tokens}
    unknown = dict.fromkeys(("spent", "dollars", "gpu_hours"))
    spent = {"spent": tokens} if plan["unit"] == "tokens" else {}
    return {"ledger": plan["ledger"], "generation": unknown | known | spent}


def _generation(
    plan: dict[str, Any], done: Bought, begun: Bought, beats: Sequence[Mapping[str, Any]], now: float
) -> dict[str, Any]:
    spent = _spent(plan, done, begun)
    rate = _tokens_per_second(done, live=bool(beats), now=now)
    left = max(0.0, _tokens_left(plan, done) - float(begun.tokens.sum()))
    at_work = [model for beat in beats for model in beat["models"].values()]
    return {
        "generations": len(done.tokens),
        "generations_planned": plan["generations"],
        "thought_tokens": spent["thought_tokens"],
        "thought_tokens_planned": plan["planned_tokens"],
        "unit": plan["unit"],
        "spent": spent[_KEYS[plan["unit"]]],
        "budget": plan["target"],
        "dollars": spent["dollars"],
        "gpu_hours": spent["gpu_hours"],
        "processes": len(beats),
        **{what: sum(model[what] for model in at_work) for what in ("in_flight", "waiting", "failed")},
        "waits": [wait for beat in beats for wait in beat.get("waits", ())],
        "tokens_per_second": rate,
        "seconds_left": left / rate if rate else None,
        "seconds_since_last": now - float(done.finished_at.max()) if len(done.tokens) else None,
    }


def _spent(plan: dict[str, Any], *bought: Bought) -> dict[str, Any]:
    """What these generations took, in every unit; None where a price isn't known.

    A recipe's are told with the tokens of all its calls: where these are of several models they count as the dearest's,
    as the budget has it.
    """
    tokens: Counter[tuple[str, ...]] = Counter()
    for each in bought:
        for tier, model in dict.fromkeys(zip(each.tiers.tolist(), each.models.tolist(), strict=True)):
            asked = [name for name in plan["tiers"].get(tier, {}).get("models", ()) if name in plan["models"]]
            number = each.tokens[(each.tiers == tier) & (each.models == model)].sum()
            tokens[tuple(asked) if len(asked) > 1 else (model,)] += int(number)
    return {
        "thought_tokens": sum(tokens.values()),
        "dollars": _cost(plan, tokens, "dollars_per_million_tokens", lambda number, price: number * price / 1e6),
        "gpu_hours": _cost(plan, tokens, "tokens_per_gpu_second", lambda number, rate: number / rate / 3600),
    }


def _cost(plan: dict[str, Any], tokens: Mapping[tuple[str, ...], int], price: str, of: Any) -> float | None:
    """What the tokens of all models have cost, or None where the price of a model in use is not known.

    Args:
        tokens: by the models that may have made them, of which the dearest counts.
    """
    in_use = [models for models, count in tokens.items() if count] or [(name,) for name in plan["models"]]
    prices = {models: [plan["models"][name][price] for name in models] for models in in_use}
    if any(None in known for known in prices.values()):
        return None
    return float(sum(max(of(tokens.get(models, 0), one) for one in known) for models, known in prices.items()))


def _tokens_per_second(done: Bought, *, live: bool, now: float) -> float | None:
    """Of the last minutes: up to now while processes are at work, up to the last generation otherwise."""
    end = max(now if live else 0.0, done.finished_at.max(initial=0.0))
    recent = done.finished_at > end - RATE_WINDOW_S
    if not recent.any():
        return None
    begin = max(end - RATE_WINDOW_S, (done.finished_at - done.wall_s)[recent].min())
    return float(done.tokens[recent].sum() / (end - begin)) if end > begin else None


def _tokens_left(plan: dict[str, Any], done: Bought) -> float:
    """About how many tokens are still to be made: the generations that each tier lacks, at the length of those there.

    A tier that has none yet counts with the length it was planned with.
    """
    left = 0.0
    for name, tier in plan["tiers"].items():
        tokens = done.tokens[done.tiers == name]
        missing = max(0.0, tier["generations"] - len(tokens))
        if missing:
            left += missing * (tokens.mean() if len(tokens) else tier["planned_tokens"] / tier["generations"])
    return float(left)


# --- for a terminal ---------------------------------------------------------------------------------------------------


def render(found: dict[str, Any]) -> Table:
    """The state as a table for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("output", Text(found["output"] + (" (complete)" if found["complete"] else "")))
    table.add_row("stages", ", ".join(f"{name}: {state}" for name, state in found["stages"].items()))
    for later in found.get("deliveries", ()):
        said = f"{later['number']}: {counted(later['documents'], 'document')} joined the corpus later"
        table.add_row("delivery", said)
    if number := found.get("delivery_begun"):
        table.add_row(
            "delivery", f"{number} was begun and has not joined: the same `thoughtmill append` goes on with it"
        )
    if generation := found.get("generation"):
        absent = found.get("absent")
        where = "counted when they were made" if absent else "in the ledger"
        table.add_row(
            "generations",
            f"{generation['generations']:,} {where}; about {generation['generations_planned']:,.0f} planned",
        )
        table.add_row(
            "thinking tokens",
            f"{generation['thought_tokens']:,} of at most {generation['thought_tokens_planned']:,.0f} planned",
        )
        table.add_row("spent", spent(generation))
        if beside := found.get("beside"):
            said = f"{beside['generations']:,} generations of {beside['thought_tokens']:,} tokens"
            table.add_row(
                "beside", f"{said} were paid for that this plan doesn't ask for: by a pilot, or for other plans"
            )
        if begun := found.get("begun"):
            said = f"{begun['generations']:,} interrupted, with {begun['thought_tokens']:,} of these tokens"
            table.add_row("begun", f"{said}; the next run goes on from there")
        if absent:
            said = f"{absent['ledger']} isn't here, or is empty: what was spent of other units is not known"
            table.add_row("ledger", Text(said, "yellow"))
        if dropped := found.get("dropped"):
            said = f"{dropped['generations']:,} generations of {dropped['thought_tokens']:,} tokens"
            table.add_row("dropped", f"{said} were paid for besides, and taken out of this ledger")
        if found["stages"]["augment"] != "done":
            table.add_row("under way", under_way(generation))
            for wait in waits.all_told(generation["waits"]):
                table.add_row("waiting", Text(wait))
            if generation["tokens_per_second"] and not generation["waits"]:
                table.add_row("rate", f"{generation['tokens_per_second']:,.0f} tokens/s")
                table.add_row("time left", f"about {generation['seconds_left'] / 60:,.1f} min at this rate")
    for warning in found.get("warnings", []):
        table.add_row("warning", Text(warning))
    if found["rehearsal"]:
        table.add_row("note", REHEARSAL_NOTICE)
    return table


def spent(generation: Mapping[str, Any]) -> str:
    """What was spent of the budget, in its unit and in money."""
    unit = generation["unit"]
    text = f"{_amount(generation['spent'])} of {_amount(generation['budget'])} {UNIT_NAMES[unit]}"
    for name in ("dollars", "gpu_hours"):
        if name != unit and (amount := generation[name]) is not None:
            text += f", {_amount(amount)} {UNIT_NAMES[name]}"
    return text


def _amount(number: float | None) -> str:
    if number is None:
        return "unknown"
    return f"{number:,.0f}" if number >= 1000 or number == int(number) else f"{number:,.4g}"


def under_way(generation: Mapping[str, Any]) -> str:
    """What the processes that generate are doing."""
    if not generation["processes"]:
        since = generation["seconds_since_last"]
        return "no process is at work" + (f"; the last generation came {since / 60:,.1f} min ago" if since else "")
    failed = f", {generation['failed']:,} failed" if generation["failed"] else ""
    return (
        f"{generation['in_flight']:,} in flight and {generation['waiting']:,} waiting in "
        f"{counted(generation['processes'], 'process')}{failed}"
    )
