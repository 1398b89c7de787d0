"""The tables of a comparison: a column for each run. From manifests alone, so totals are of the whole runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from augment.selection.account import in_words
from augment.selection.verdict import SEGMENTS, SEGMENTS_KEPT
from pipelines.card.generation import amount
from pipelines.compare.runs import Run
from pipelines.report import charts, marks
from pipelines.report.charts import Series
from pipelines.report.facts import Figure, quantity, share
from pipelines.report.marks import Interval
from pipelines.report.shards import tokens_by_model
from pipelines.report.worth import unvalued
from pipelines.terminal import counted

ABSENT = "–"

Row = tuple[str, ...]


def configuration(runs: Sequence[Run]) -> Figure:
    """Every key whose value is not the same in all runs."""
    keys = sorted({key for run in runs for key in run.config})
    rows = [
        (key, *(run.config.get(key, ABSENT) for run in runs))
        for key in keys
        if len({run.config.get(key) for run in runs}) > 1
    ]
    title = "Configuration"
    if not rows:
        said = f"All {counted(len(keys), 'key')} of the finished stages have the same values."
        return Figure(key="differences", title=title, missing=said)
    verb = "differs" if len(rows) == 1 else "differ"
    return Figure(
        key="differences",
        title=title,
        says=f"{counted(len(rows), 'key')} of {len(keys):,} {verb}; {ABSENT} stands for a key that a run has not, "
        "or whose stage has not finished.",
        header=("key", *(run.name for run in runs)),
        rows=rows,
        open=True,
    )


def plans(runs: Sequence[Run]) -> Figure:
    """What was scored, and what was planned of it."""
    rows = [
        _row("documents", runs, lambda run: _number(run, "score", "documents")),
        _row("segments", runs, lambda run: _number(run, "score", "segments")),
        _row("source tokens", runs, lambda run: _number(run, "score", "source_tokens")),
        _row("budget", runs, _budget),
        _row("planned thinking tokens", runs, _planned),
    ]
    for tier in _names(runs, "tiers"):
        rows.append(_row(f"segments, {tier}", runs, lambda run, tier=tier: _of_tier(run, tier)))  # type: ignore[misc]
    return Figure(
        key="plan",
        title="Plan",
        says="What each run scored, and how its budget was to be spent; segments by tier.",
        header=("", *(run.name for run in runs)),
        rows=rows,
        open=True,
    )


def kept(runs: Sequence[Run]) -> Figure:
    """How much of what was generated was kept, and why the rest wasn't."""
    rows = [
        _row("candidates", runs, lambda run: _number(run, "select", "candidates")),
        _row("kept", runs, lambda run: _number(run, "select", "kept")),
        _row("kept share", runs, lambda run: _share(run, "kept", "candidates")),
        _row("segments with a thought", runs, lambda run: _share(run, SEGMENTS_KEPT, SEGMENTS)),
    ]
    reasons = sorted(
        {name for run in runs for name in run.number["select"] if name.startswith("rejected.")},
        key=lambda name: (-max(run.number["select"].get(name, 0) for run in runs), name),
    )
    for name in reasons:
        label = f"rejected: {name.removeprefix('rejected.').replace('_', ' ')}"
        rows.append(_row(label, runs, lambda run, name=name: _share(run, name, "candidates")))  # type: ignore[misc]
    done = [run for run in runs if run.number["select"].get("candidates")]
    title, says = "Kept and rejected", "What became of the candidates; shares are of all candidates of a run."
    series = [
        Series("kept", "s1", [run.number["select"]["kept"] for run in done]),
        Series("rejected", "s5", [run.number["select"]["rejected"] for run in done]),
    ]
    return Figure(
        key="kept",
        title=title,
        says=says,
        chart=charts.bars(title, says, [run.name for run in done], series, x_label="candidates", stacked=True)
        if done
        else None,
        legend=charts.legend([(one.name, one.style) for one in series]) if done else None,
        header=("", *(run.name for run in runs)),
        rows=rows,
        open=True,
    )


def gains(runs: Sequence[Run]) -> Figure:
    """What traces gain in each run, by tier, beside the null: means with 95% intervals over documents."""
    title = "Gain by run and tier"
    rows, drawn, notes = [], [], []
    for place, run in enumerate(runs):
        selected = run.facts.stages["select"]
        notes += [f"{run.name}: {said}" for said in unvalued(selected)] if selected else []
        for found in selected.facts.get("account", []) if selected else []:
            gain = found.get("gains")
            if not gain:
                continue
            told = (in_words(gain[what]) if what in gain else "" for what in ("heldout_first", "heldout", "null_first"))
            rows.append((run.name, found["tier"], f"{gain['heldout_first']['segments']:,}", *told))
            low, high = gain["heldout_first"]["interval95"] or (None, None)
            label, style = f"{run.name}, {found['tier']}", f"s{1 + place % 7}"
            drawn.append(Interval(label, style, gain["heldout_first"]["mean"], low, high))
    if not rows:
        return Figure(key="gains", title=title, missing="No run has a trace with a measured gain.", notes=notes)
    says = (
        "Nats per segment that traces add to the text after it, beyond controls, with 95% intervals. Of all segments "
        "of a run: runs that think about other segments differ here for that alone. The next table has the same ones."
    )
    return Figure(
        key="gains",
        title=title,
        says=says,
        chart=marks.intervals(title, says, drawn, x_label="gain beyond controls, nats per segment"),
        header=("run", "tier", "segments", "all that passed", "kept", "null"),
        rows=rows,
        open=True,
        notes=notes,
    )


def costs(runs: Sequence[Run]) -> Figure:
    """What was generated and kept, what it cost, and how long the stages took."""
    rows = [
        _row("generated thinking tokens", runs, lambda run: _number(run, "augment", "thought_tokens")),
        _row("of these kept", runs, lambda run: _number(run, "select", "kept_thought_tokens")),
        _row("tokens of prompts", runs, lambda run: _number(run, "select", "prompt_tokens")),
        _row("dollars", runs, lambda run: _price(run, "dollars_per_million_tokens")),
        _row("GPU-hours", runs, lambda run: _price(run, "tokens_per_gpu_second")),
        _row("training tokens", runs, _training_tokens),
        _row("of these thoughts", runs, lambda run: _number(run, "pack", "tokens_thought")),
    ]
    for stage in ("score", "augment", "select", "pack"):
        rows.append(_row(f"{stage}, seconds", runs, lambda run, stage=stage: _seconds(run, stage)))  # type: ignore[misc]
    title, says = "Cost", "Thinking tokens that were generated, those found in a ledger included, and what they cost."
    made = [run for run in runs if run.facts.stages["augment"]]
    series = [
        Series("kept", "s1", [run.number["select"].get("kept_thought_tokens", 0) for run in made]),
        Series("generated", "s0", [run.number["augment"]["thought_tokens"] for run in made]),
    ]
    return Figure(
        key="cost",
        title=title,
        says=says,
        chart=charts.bars(title, says, [run.name for run in made], series, x_label="thinking tokens", stacked=False)
        if made
        else None,
        legend=charts.legend([(one.name, one.style) for one in series]) if made else None,
        header=("", *(run.name for run in runs)),
        rows=rows,
        open=True,
    )


# --- cells ------------------------------------------------------------------------------------------------------------


def _row(name: str, runs: Sequence[Run], cell: Callable[[Run], str]) -> Row:
    return (name, *(cell(run) for run in runs))


def _number(run: Run, stage: str, count: str) -> str:
    counts = run.number[stage]
    return f"{counts.get(count, 0):,}" if counts else ABSENT


def _share(run: Run, part: str, whole: str) -> str:
    counts = run.number["select"]
    return share(counts.get(part, 0), counts[whole]) if counts.get(whole) else ABSENT


def _names(runs: Sequence[Run], fact: str) -> list[str]:
    """Names of what a fact of the augment stage lists, in the order in which the runs bring them up."""
    made = [run.facts.stages["augment"] for run in runs]
    return list(dict.fromkeys(entry["name"] for stage in made if stage for entry in stage.facts[fact]))


def _augmented(run: Run) -> dict[str, Any]:
    augmented = run.facts.stages["augment"]
    return augmented.facts if augmented else {}


def _budget(run: Run) -> str:
    facts = _augmented(run)
    return amount(facts) if facts else ABSENT


def _planned(run: Run) -> str:
    facts = _augmented(run)
    return f"{facts['planned_tokens']:,.0f}" if facts else ABSENT


def _of_tier(run: Run, tier: str) -> str:
    return next((f"{one['segments']:,.0f}" for one in _augmented(run).get("tiers", []) if one["name"] == tier), ABSENT)


def _price(run: Run, price: str) -> str:
    """What was generated at the prices of its models; unknown where one that wrote anything has none."""
    tokens = tokens_by_model(run.facts)
    if not tokens:
        return ABSENT
    spent = list(_spent(run, tokens, price))
    if None in spent:
        return "unknown"
    total = sum(one for one in spent if one is not None)
    return f"{'$' * price.startswith('dollars')}{quantity(total)}"


def _spent(run: Run, tokens: dict[str, float], price: str) -> Iterator[float | None]:
    for model, count in tokens.items():
        of = run.facts.prices.get(model, {}).get(price)
        if of is None:
            yield None
        else:
            yield count * of / 1e6 if price.startswith("dollars") else count / of / 3600


def _training_tokens(run: Run) -> str:
    counts = run.number["pack"]
    kinds = ("source", "thought", "delimiter")
    return f"{sum(counts.get(f'tokens_{kind}', 0) for kind in kinds):,}" if counts else ABSENT


def _seconds(run: Run, stage: str) -> str:
    found = run.facts.stages[stage]
    return f"{found.elapsed_s:,.1f}" if found else ABSENT
