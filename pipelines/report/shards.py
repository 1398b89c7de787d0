"""Figures of what came out: the tokens in the shards, and what they cost."""

from __future__ import annotations

from pipelines.card.generation import forecast
from pipelines.report import charts
from pipelines.report.charts import Series
from pipelines.report.facts import Facts, Figure, missing_until, quantity, share, tokens_of_row
from pipelines.terminal import counted

KINDS = (("source", "k1"), ("thought", "k2"), ("delimiter", "k3"), ("padding", "k0"))


def packing(facts: Facts) -> Figure:
    """What the shards' tokens are, by split."""
    key, title = "packing", "Packing and padding"
    packed = facts.stages["pack"]
    if packed is None:
        return Figure(key=key, title=title, missing=missing_until("pack"))
    splits: dict[str, dict[str, int]] = {}
    for entry in packed.files.get("shards", []):
        split = splits.setdefault(entry.name.rsplit("/", 1)[-1].split("-")[0], dict.fromkeys((k for k, _ in KINDS), 0))
        for kind, tokens in entry.tokens.items():
            split[kind] = split.get(kind, 0) + tokens
    if not splits:
        return Figure(key=key, title=title, missing="There are no shards.")
    names = sorted(splits, key=lambda name: (name != "train", name))
    series = [Series(kind, style, [splits[name][kind] for name in names]) for kind, style in KINDS]
    counts = packed.counts
    total = sum(sum(split.values()) for split in splits.values())
    says = (
        f"{counted(counts['rows'], 'sequence')} of {packed.config['pack']['sequence_length']:,} tokens; "
        f"{share(counts.get('tokens_padding', 0), total)} padding, "
        f"{share(counts.get('tokens_thought', 0), total)} thoughts. Longer than a sequence and cut: "
        f"{counts.get('documents_cut', 0):,} of {counted(counts.get('documents', 0), 'document')}; "
        f"{counted(counts.get('thoughts_cut', 0), 'thought')} lost an end."
    )
    return Figure(
        key=key,
        title=title,
        says=says,
        chart=charts.bars(title, says, names, series, x_label="tokens in the shards", stacked=True),
        legend=charts.legend(list(KINDS)),
        header=("split", *(kind for kind, _ in KINDS), "padding share"),
        rows=[
            (
                name,
                *(f"{splits[name][kind]:,}" for kind, _ in KINDS),
                share(splits[name]["padding"], sum(splits[name].values())),
            )
            for name in names
        ],
    )


def cost(facts: Facts) -> Figure:
    """Budget, plan and what was generated, in the budget's unit and in all others that have a price."""
    key, title = "cost", "Cost"
    augmented, allocation = facts.stages["augment"], facts.allocation
    if allocation is None:
        return Figure(key=key, title=title, missing=missing_until("augment"))
    by_model = tokens_by_model(facts)
    rows: list[tuple[str, ...]] = []
    for model, tokens in by_model.items():
        price = facts.prices.get(model, {})
        dollars, rate = price.get("dollars_per_million_tokens"), price.get("tokens_per_gpu_second")
        rows.append(
            (
                f"{model}, generated",
                f"{tokens:,.0f}",
                "no price" if dollars is None else f"${quantity(tokens * dollars / 1e6)}",
                "no rate" if rate is None else quantity(tokens / rate / 3600),
            )
        )
    unit = {"tokens": "tokens", "dollars": "dollars", "gpu_hours": "GPU-hours"}[allocation.unit]
    values = [
        ("budget", allocation.target_spend if allocation.unit == "tokens" else None),
        ("planned", allocation.planned_tokens),
    ]
    if augmented is not None:
        if said := augmented.facts.get("forecast"):
            values.append(("forecast", said["thought_tokens"]["value"]))
        values.append(("generated", augmented.counts.get("thought_tokens", 0)))
    if facts.stages["select"] is not None:
        values.append(("kept", facts.stages["select"].counts.get("kept_thought_tokens", 0)))
    shown = [(name, float(value)) for name, value in values if value is not None]
    digits = 0 if allocation.unit == "tokens" else 2
    says = (
        f"Budget: {allocation.target_spend:,.{digits}f} {unit}; planned: {allocation.planned_spend:,.{digits}f} {unit}."
    )
    if augmented is not None:
        says += f" {augmented.counts.get('thought_tokens', 0):,} thinking tokens were generated."
        if (selected := facts.stages["select"]) is not None and (read := selected.counts.get("prompt_tokens", 0)):
            says += f" {read:,} tokens of prompts were read for the traces, those of all calls together."
        says += f" {forecast(augmented)}".rstrip()
    else:
        says += " Generation hasn't finished: `thoughtmill status` tells how far it is."
    chart = charts.bars(
        title,
        says,
        [n for n, _ in shown],
        [Series("tokens", "s2", [v for _, v in shown])],
        x_label="thinking tokens",
        stacked=True,
    )
    seconds = [
        (f"stage {name}, seconds", f"{stage.elapsed_s:,.1f}", "", "") for name, stage in facts.stages.items() if stage
    ]
    return Figure(
        key=key,
        title=title,
        says=says,
        chart=chart,
        open=True,
        header=("what", "tokens or seconds", "dollars", "GPU-hours"),
        rows=[*((name, f"{value:,.0f}", "", "") for name, value in shown), *rows, *seconds],
    )


def tokens_by_model(facts: Facts) -> dict[str, float]:
    """Generated tokens by model, in the proportions of the account of selection; of all models together before that.

    The account has candidates, and those of segments with one text share what was generated once.
    """
    tokens: dict[str, float] = {}
    selected, augmented = facts.stages["select"], facts.stages["augment"]
    for row in selected.facts.get("account", []) if selected else []:
        for model, number in tokens_of_row(facts, row).items():
            tokens[model] = tokens.get(model, 0.0) + number
    models = list(augmented.facts["models"]) if augmented else []
    if not tokens and augmented and len(models) == 1:
        tokens[models[0]] = augmented.counts.get("thought_tokens", 0)
    total = sum(tokens.values())
    generated = augmented.counts.get("thought_tokens", 0) if augmented else 0
    return {model: count * generated / total for model, count in tokens.items()} if total else tokens
