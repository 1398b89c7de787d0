"""The figure of paired differences: what other runs gain beyond the first one, on the segments that both tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.compare.paired import GAINS, Difference, difference
from pipelines.compare.runs import Run
from pipelines.report import marks
from pipelines.report.facts import Figure, missing_until
from pipelines.report.marks import Interval
from pipelines.terminal import counted

MEASURED_BY = ("select.value", "select.gain", "tokenizer")
"""Keys of which all that stands below must agree, or two gains are of different things."""

_SCORER = ("scorer", "model", "revision", "reference_model", "context_tokens", "segment_tokens")
"""Of the scorer that gains are measured with."""


def differences(runs: Sequence[Run]) -> Figure:
    """A dot with its 95% interval for every other run, of all that passed and of the kept; and what chance gives."""
    key, title = "paired", "Difference of the gain, on the same segments"
    first, others = runs[0], runs[1:]
    if missing := [run.name for run in runs if run.stages["select"] is None]:
        return Figure(key=key, title=title, missing=f"{', '.join(missing)}: {missing_until('select')}")
    rows, table, notes = [], [], []
    for place, other in enumerate(others, start=1):
        if unlike := measured_otherwise(first, other):
            notes.append(f"{other.name} can't be held against {first.name}: {', '.join(unlike)} differ.")
            continue
        found = [(what, one) for what, one in paired(first, other).items() if one is not None]
        if not found:
            notes.append(f"{other.name} and {first.name} have valued no segment in common, of those that were read.")
        for what, one in found:
            label = f"{other.name}, {what}" if what != "all that passed" else other.name
            rows.append(Interval(label, f"s{1 + place % 7}", one.mean.mean, one.mean.low, one.mean.high))
            if one.chance is not None:
                middle = (one.chance[0] + one.chance[1]) / 2
                rows.append(Interval("by chance alone", "s0", middle, *one.chance))
            table.append(_row(other.name, what, one))
    if not table:
        return Figure(key=key, title=title, missing="There is nothing to compare.", notes=notes)
    if not all(run.facts.sample.is_whole for run in runs):
        notes.append("Of large outputs a few parts are read: the same documents of each where they have as many parts.")
    best = "; ".join(f"{name}, {what}: {told}" for name, what, _, _, _, told, _ in table)
    return Figure(
        key=key,
        title=title,
        says=f"What traces gain beyond those of {first.name}, nats per segment, averaged over the segments that both "
        f"thought about, with 95% intervals over documents: {best}. Grey: where 95% of such differences lie if the "
        "runs are alike.",
        chart=marks.intervals(title, best, rows, x_label=f"nats per segment beyond {first.name}"),
        header=("run", "traces", "in common", f"gain, {first.name}", "gain", "difference (95%)", "by chance alone"),
        rows=table,
        open=True,
        notes=notes,
    )


def paired(first: Run, other: Run) -> dict[str, Difference | None]:
    """What is compared → the difference, None where no segment is in common."""
    return {
        what: difference(first.facts.sample.candidates, other.facts.sample.candidates, gain)
        for what, gain in GAINS.items()
    }


def measured_otherwise(first: Run, other: Run) -> list[str]:
    """Keys by which the gains of two runs are measured, and that differ."""
    keys = sorted({*first.config, *other.config})
    unlike = [
        key
        for key in keys
        if any(key == name or key.startswith(f"{name}.") for name in MEASURED_BY)
        and first.config.get(key) != other.config.get(key)
    ]
    ours, theirs = _scorer(first), _scorer(other)
    return unlike + [f"scorer.{name}" for name in _SCORER if ours.get(name) != theirs.get(name)]


def _scorer(run: Run) -> dict[str, Any]:
    """What gains are measured with, as the select stage has it."""
    selected = run.facts.stages["select"]
    found = selected.config.get("scorer") if selected else None
    return found if isinstance(found, dict) else {}


def _row(name: str, what: str, one: Difference) -> tuple[str, ...]:
    mean, chance = one.mean, one.chance
    told = f"{mean.mean:+.2f}"
    if mean.low is None or mean.high is None:
        told += f" (too few to say: {counted(mean.documents, 'document')})"
    else:
        told += f" ({mean.low:+.2f} to {mean.high:+.2f})"
    common = f"{counted(mean.segments, 'segment')} of {counted(mean.documents, 'document')}"
    by_chance = "" if chance is None else f"{chance[0]:+.2f} to {chance[1]:+.2f}"
    return name, what, common, f"{one.first:+.2f}", f"{one.other:+.2f}", told, by_chance
