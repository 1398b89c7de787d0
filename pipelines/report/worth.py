"""What thinking is worth: gain against what it cost, and what nobody knows the worth of, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from augment.selection.account import in_words
from augment.selection.keeping import NOT_CHOSEN
from augment.selection.verdict import worth
from pipelines.report import marks
from pipelines.report.facts import Facts, Figure, missing_until, tokens_of_row
from pipelines.report.marks import Point
from pipelines.terminal import counted
from sharding.storage.manifest import Manifest

WHY_UNVALUED = {
    "too_few_controls": "too few other documents have traces of their tier to compare them with",
    "nothing_follows": "no text follows their segment to try them on, and no tail was held back "
    "(`select.gain.hold_back_tokens`)",
    "too_long": "with them, segment and continuation are longer than the scorer reads at once "
    "(`difficulty.context_tokens`, `select.gain.context_tokens`)",
    "shuffled": "they were shuffled: what was measured is of another segment",
}
"""Why a trace that passed the gates has no value, as the select stage counts it → in words."""


def unvalued(selected: Manifest) -> list[str]:
    """A sentence for each tier of which nothing is known, and for each reason that traces have no value for."""
    told = [
        f"Tier {row['tier']} is unmeasured: {_why(row, selected)}."
        for row in selected.facts.get("account", [])
        if row["candidates"] and not row.get("gains")
    ]
    for name, number in sorted(selected.counts.items()):
        if name.startswith("unvalued."):
            reason = name.removeprefix("unvalued.")
            traces = counted(number, "trace")
            why = WHY_UNVALUED.get(reason, reason.replace("_", " "))
            told.append(f"{traces} passed the gates and {'has' if number == 1 else 'have'} no value: {why}.")
    return told


def warnings_of(selected: Manifest) -> list[str]:
    """What is otherwise than the pilot promised, and which tiers are worth less than nothing; not of made-up traces."""
    account = selected.facts.get("account", [])
    bad = [said for said, is_bad in worth(account) if is_bad and not selected.rehearsal]
    return [*selected.facts.get("warnings", ()), *bad]


def _why(row: Mapping[str, Any], selected: Manifest) -> str:
    if selected.facts.get("value", "none") == "none":
        return "traces were not valued, as `select.value` is none or there is no scorer to ask"
    passed = row["kept"] + row["reasons"].get(NOT_CHOSEN, 0)
    if not passed:
        return f"none of its {counted(row['candidates'], 'trace')} passed the gates"
    if passed == 1:
        return "the one trace that passed the gates could not be valued, for the reason below"
    return f"none of the {passed:,} traces that passed the gates could be valued, for the reason below"


def gain_against_cost(facts: Facts) -> Figure:
    """What a kept thought gains, by tier, against the thinking tokens that were generated for it, all samples."""
    key, title = "worth", "Gain against cost"
    selected = facts.stages["select"]
    if selected is None:
        return Figure(key=key, title=title, missing=missing_until("select"))
    points, table, notes = [], [], []
    for row in sorted(selected.facts.get("account", []), key=_cheapest_first):
        gain = (row.get("gains") or {}).get("heldout")
        if gain is None or not row["kept"]:
            notes.append(f"Tier {row['tier']} isn't here: no kept thought of it has a measured gain.")
            continue
        tokens = row["thought_tokens"] / row["kept"]
        low, high = gain["interval95"] or (None, None)
        points.append(Point(row["tier"], facts.style_of(row["tier"]), tokens, gain["mean"], low, high))
        table.append((row["tier"], f"{row['kept']:,}", f"{tokens:,.0f}", *_price(facts, row, tokens), in_words(gain),
                      f"{1000 * gain['mean'] / tokens:+.2f}" if tokens else ""))  # fmt: skip
    if not points:
        return Figure(key=key, title=title, missing="No kept thought has a measured gain.", notes=notes)
    best = "; ".join(f"{row[0]} {row[-1]}" for row in table)
    return Figure(
        key=key,
        title=title,
        says="What a kept thought adds to the text after its segment, beyond controls, against all the thinking tokens "
        f"that were generated for one, rejected samples included. Nats per 1,000 of these tokens: {best}.",
        chart=marks.points(
            title, best, points, x_label="thinking tokens generated per kept thought", y_label="gain, nats"
        ),
        header=("tier", "kept", "tokens each", "dollars each", "GPU-seconds each", "gain, nats", "nats per 1,000"),
        rows=table,
        notes=notes,
    )


def _cheapest_first(row: Mapping[str, Any]) -> float:
    return float(row["thought_tokens"] / row["kept"]) if row["kept"] else float("inf")


def _price(facts: Facts, row: Mapping[str, Any], tokens: float) -> Iterator[str]:
    """Dollars and GPU-seconds of so many of a row's tokens, by the models that made them."""
    by_model = {model: number for model, number in tokens_of_row(facts, row).items() if number}
    share = tokens / max(row["thought_tokens"], 1)
    prices = [(number * share, facts.prices.get(model, {})) for model, number in by_model.items()]
    dollars = [(number, price.get("dollars_per_million_tokens")) for number, price in prices]
    rates = [(number, price.get("tokens_per_gpu_second")) for number, price in prices]
    is_priced, is_rated = (all(known is not None for _, known in found) for found in (dollars, rates))
    yield f"${sum(number * (price or 0.0) for number, price in dollars) / 1e6:,.3g}" if is_priced else "no price"
    yield f"{sum(number / (rate or 1.0) for number, rate in rates):,.3g}" if is_rated else "no rate"
