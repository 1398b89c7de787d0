"""A plan for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from difficulty.budget.tiers import margin_in_words
from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.terminal import counted
from pipelines.watch.status import UNIT_NAMES

Estimate = Mapping[str, float]

_COLUMNS = ("segments", "generations", "tokens in", "tokens out", "", "GPU-hours", "dollars")
_MEASURED_COLUMNS = ("passing", "kept")
_SMALL = 0.001
"""What is less needs no digits: a second of a GPU, a tenth of a cent."""

_FEW = 0.1
"""So many segments or generations are none that anybody would count."""

_COSTS = ("thought_tokens", "gpu_seconds", "dollars")
_UNITS = {"tokens": "tokens", "dollars": "dollars", "gpu_hours": "GPU-seconds"}

_BASIS = {"pilot": "measured", "expected_tokens": "as stated", "max_tokens": "at most", "": ""}


def render(plan: Mapping[str, Any]) -> Group:
    """The plan as something rich prints."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    budget, score, augment, select, pack = (plan[k] for k in ("budget", "score", "augment", "select", "pack"))
    facts.add_row("based on", _basis(plan["basis"]))
    facts.add_row(
        "budget",
        f"{_number(budget['target'])} {UNIT_NAMES[budget['unit']]}, spread {budget['policy']}; the plan comes to "
        f"{_number(budget['planned'])}",
    )
    took = "" if score["seconds_here"] is None else f"; about {_time(score['seconds_here']['value'])} on this machine"
    facts.add_row(
        "1 score",
        f"{_things(score['documents'], 'document')}, {_things(score['segments'], 'segment')}, "
        f"{_shown(score['tokens_in'])} source tokens{took}",
    )
    facts.add_row(
        "2 augment",
        f"{_shown(augment['tokens_in'])} prompt tokens in, {_shown(augment['tokens_out'])} thinking tokens out",
    )
    if contraction := augment["contraction"]:
        facts.add_row(
            "",
            f"at most {_shown(contraction['calls'])} contractions by {contraction['model']}, "
            f"{_shown(contraction['tokens_out'])} tokens, made from {_shown(contraction['tokens_in'])} prompt tokens",
        )
    if budget["expected_gain_nats"] is not None:
        facts.add_row("", _expected_gain(budget, augment["tiers"]))
    tiers = Table(box=None, padding=(0, 1), pad_edge=False)
    is_measured = any(tier["accepted_share"] is not None for tier in augment["tiers"])
    shares = ("accepted_share", "kept_share") if is_measured else ()
    # A column for each tier: of these there are few, and a number that is cut is worse than none.
    tiers.add_column("tier")
    for tier in augment["tiers"]:
        tiers.add_column(tier["name"], justify="right", overflow="fold")
    names = (*_COLUMNS, *(_MEASURED_COLUMNS if is_measured else ()))
    columns = [_column(tier, shares) for tier in augment["tiers"]]
    for name, *cells in zip(names, *columns, strict=True):
        tiers.add_row(name, *cells)
    costs = Table.grid(padding=(0, 2))
    costs.add_column(style="bold", no_wrap=True)
    costs.add_column(overflow="fold")
    costs.add_row("GPU-hours", _total(augment["gpu_hours"], augment["tiers"], "gpu_hours", "tokens_per_gpu_second"))
    costs.add_row("dollars", _total(augment["dollars"], augment["tiers"], "dollars", "dollars_per_million_tokens"))
    if augment["hours"] is not None:
        number = augment["accelerators"]
        costs.add_row("time", f"{_shown(augment['hours'])} hours on {counted(number, 'accelerator')}")
    costs.add_row("3 select", f"{_shown(select['candidates'])} candidates, {_shown(select['kept'])} kept")
    if gains := [f"{tier['name']} {_gain(tier['gain_nats'])}" for tier in augment["tiers"] if tier["gain_nats"]]:
        costs.add_row("", f"held-out gain, nats per segment beyond controls: {', '.join(gains)}")
    if "frontier" in plan:
        costs.add_row("frontier", _frontier(plan["frontier"]))
    if "learned" in plan:
        costs.add_row("learned", _learned(plan["learned"]))
        costs.add_row("lift", _lift(plan["learned"]["report"]))
    costs.add_row(
        "4 pack",
        f"{_shown(pack['training_tokens'])} training tokens, {_shown(pack['sequences'])} sequences in "
        f"{counted(pack['shards'], 'shard')}, {_bytes(pack['bytes'])}",
    )
    for warning in plan["warnings"]:
        costs.add_row("warning", Text(warning, "yellow"))
    if plan["basis"]["rehearsal"]:
        costs.add_row("note", Text(REHEARSAL_NOTICE, "yellow"))
    return Group(facts, tiers, costs)


def _frontier(frontier: Mapping[str, Any]) -> Table:
    """A row for each tier that was tried: what it gains per segment and what that takes."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in (
        "tier",
        "nats per segment",
        "of chance alone",
        "tokens",
        "GPU-seconds",
        "dollars",
        "nats/1,000 tokens",
    ):
        table.add_column(name, justify="left" if name == "tier" else "right", overflow="fold")
    table.add_column("", overflow="fold")
    for tier in frontier["tiers"]:
        rate = tier["nats_per_1000_tokens"]
        table.add_row(
            tier["name"],
            *("unknown" if tier[name] is None else _gain(tier[name]) for name in ("gain_nats", "null_nats")),
            *("unknown" if tier[name] is None else _number(tier[name]) for name in _COSTS),
            "unknown" if rate is None else f"{rate:+.2f}",
            _dominated(tier, frontier["unit"]),
        )
    return table


def _dominated(tier: Mapping[str, Any], unit: str) -> str:
    if not tier["is_dominated"]:
        return ""
    by = " and ".join(tier["dominated_by"]) or "no thinking at all"
    return f"dominated in {_UNITS[unit]} by {by}" + ("" if tier["shown"] else ", as far as it goes: within chance")


def _learned(learned: Mapping[str, Any]) -> str:
    made_from = learned["made_from"]
    words = "; ".join(learned["report"].get("words", ()))
    told = f"{made_from['gains']:,} gains of {made_from['segments']:,} segments in {made_from['documents']:,} documents"
    return f"from {told}" + (f": {words}" if words else "")


def _lift(report: Mapping[str, Any]) -> Table:
    """A row for each tenth of the tries by what was predicted of them, and what they gained."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("tenth by predicted gain", "tries", "predicted, nats", "measured (90%)"):
        table.add_column(name, justify="left" if name.startswith("tenth") else "right", overflow="fold")
    for tenth in report.get("deciles", ()):
        low, high = tenth["low_nats"], tenth["high_nats"]
        between = "too few documents to say" if low is None else f"{low:+.2f} – {high:+.2f}"
        table.add_row(
            tenth["name"],
            f"{tenth['observations']:,}",
            f"{tenth['predicted_nats']:+.2f}",
            f"{tenth['mean_nats']:+.2f} ({between})",
        )
    return table


def _expected_gain(budget: Mapping[str, Any], tiers: Sequence[Mapping[str, Any]]) -> str:
    """What the plan promises: in all, by tier, and for one unit more."""
    by_tier = [
        f"{tier['name']} {_gain(tier['expected_gain_nats'])}" for tier in tiers if tier["expected_gain_nats"]["value"]
    ]
    return (
        f"expected gain in nats: {_gain(budget['expected_gain_nats'])} in all; {', '.join(by_tier)}; "
        f"{margin_in_words(budget['unit'], budget['marginal_nats'])}"
    )


def _column(tier: Mapping[str, Any], shares: Sequence[str]) -> list[str]:
    """What there is to say of a tier, in the order of the rows."""
    thinks = tier["model"] is not None
    return [
        _short(tier["segments"], least=_FEW),
        _short(tier["generations"], least=_FEW) if thinks else "",
        *(_short(tier[name]) if thinks else "" for name in ("tokens_in", "tokens_out")),
        _BASIS[tier["length_from"]],
        *(_short(tier[name]) if thinks else "" for name in ("gpu_hours", "dollars")),
        *("" if tier[name] is None else _share(tier[name]) for name in shares),
    ]


def _basis(basis: Mapping[str, Any]) -> str:
    if basis["scored"]:
        text = "the scored parts: difficulty as it is"
    elif basis["complete"]:
        text = f"all of the source, {counted(basis['documents'], 'document')}, scored now"
    else:
        sample = counted(basis["documents"], "document")
        text = f"a sample of {sample}, scored now; in brackets what 90% of such samples give"
    if basis["pilot_segments"]:
        return f"{text}; a pilot of {counted(basis['pilot_segments'], 'segment')}"
    return f"{text}; lengths of traces are assumed: --pilot measures them"


def _total(total: Estimate | None, tiers: Any, key: str, field: str) -> str:
    if total is not None:
        return _shown(total)
    missing = sorted({f"models.{model}.{field}" for tier in tiers for model in tier["unpriced"][key]})
    return f"unknown: set {' and '.join(missing)}" if missing else "none"


def _short(value: Estimate | None, *, least: float = 0.0) -> str:
    """An estimate in a few characters: the wider half of its interval in percent; below `least` no more than that."""
    if value is None:
        return "unknown"
    if 0 < value["high"] < least:
        return f"<{least}"
    half = max(value["high"] - value["value"], value["value"] - value["low"])
    off = f" ±{half / value['value']:.0%}" if value["value"] and half > 0 else ""
    return _number(value["value"]) + off


def _shown(value: Estimate) -> str:
    point, low, high = (_number(value[key]) for key in ("value", "low", "high"))
    return point if low == high == point else f"{point} ({low} – {high})"


def _things(value: Estimate, noun: str) -> str:
    return f"{_shown(value)} {noun}{'' if _shown(value) == '1' else 's'}"


def _gain(value: Estimate) -> str:
    return f"{value['value']:+.2f} ({value['low']:+.2f} – {value['high']:+.2f})"


def _share(value: Estimate) -> str:
    point, low, high = (f"{value[key]:.0%}" for key in ("value", "low", "high"))
    return point if low == high else f"{point} ({low} – {high})"


def _number(number: float) -> str:
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.3g}{sign}"
    if number >= 100 or number == int(number):
        return f"{number:,.0f}"
    if 0 < number < _SMALL:
        return f"<{_SMALL}"
    return f"{number:.3g}"


def _bytes(value: Estimate) -> str:
    size, sign = next(
        (s, n)
        for s, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
        if value["value"] >= s or s == 1
    )
    scaled = {key: number / size for key, number in value.items()}
    return f"{_shown(scaled)} {sign}"


def _time(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} seconds"
