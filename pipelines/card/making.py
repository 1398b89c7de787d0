"""The sections that tell how the corpus was made: sources, difficulty, generation, selection, decontamination."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipelines.card.markdown import listing, section, share, table
from sharding.storage.manifest import Manifest

ACCOUNTED = ("candidates", "kept", "thought_tokens", "kept_thought_tokens")
"""What the account of selection says of each tier, model and prompt."""

COUNTED = ("documents", "tokens")
"""What is counted of each source that has a name."""

_BAR_WIDTH = 40
_KEY_BITS = 32


def sources(scored: Manifest) -> str:
    """Where the text came from, and what could not be read."""
    config, counts = scored.config, scored.counts
    named = config.get("sources") or [config.get("source")]
    lines = [
        (
            source.get("name") or "",
            f"`{source['path']}`",
            source.get("format") or "by ending",
            *(f"{counts[key]:,}" if (key := f"source.{source.get('name')}.{of}") in counts else "" for of in COUNTED),
        )
        for source in named
        if isinstance(source, Mapping) and source.get("path")
    ]
    quarantined, why = counts["quarantined"], _reasons(counts, "quarantined.")
    return section(
        "Sources",
        table(lines, ("name", "path", "format", *COUNTED)) if lines else "",
        f"{counts['documents_in']:,} records gave {counts['documents']:,} documents in {counts['segments']:,} "
        f"segments; {f'{quarantined:,} could not be taken in ({why})' if quarantined else 'none was refused'}.",
        f"{counts['documents_duplicate']:,} exact copies of a text were found, {counts.get('duplicates_dropped', 0):,} "
        "of them dropped."
        if counts.get("documents_duplicate")
        else "",
    )


def difficulty(scored: Manifest) -> str:
    """The scorer, and how difficulty is spread over segments."""
    counts, config, histogram = scored.counts, scored.config["difficulty"], scored.facts["histogram"]
    memory = scored.facts.get("memory")
    quantiles = histogram.get("quantiles_nats", {})
    return section(
        "Difficulty",
        f"Scorer: {listing(scored.facts['scorer'])}. Mean surprisal {_mean_nats(counts, 'surprisal')} nats per token, "
        f"mean entropy {_mean_nats(counts, 'entropy')}. {share(counts.get('hard_tokens', 0), counts['source_tokens'])} "
        f"of the tokens are harder than {config['threshold_nats']:g} nats; a segment's difficulty is the sum of its "
        "nats above that threshold.",
        "What an n-gram memory of the corpus predicts was not counted as hard." if memory else "",
        table([[f"{nats:,.1f}" for nats in quantiles.values()]], [f"{float(rank):.0%}" for rank in quantiles])
        + "\n\nDifficulty of segments in nats, by quantile."
        if quantiles
        else "",
        _picture(histogram),
    )


def _mean_nats(counts: Mapping[str, int], what: str) -> str:
    return f"{counts.get(f'{what}_micronats', 0) / 1e6 / max(1, counts['source_tokens']):.3f}"


def _picture(histogram: Mapping[str, Any]) -> str:
    """Segments by difficulty as text: a line for each doubling of the nats."""
    bins, counts = histogram["by_difficulty"], Counter[int]()
    key = 0
    for step, count in zip(bins["bin_steps"], bins["counts"], strict=True):
        key += step
        # A key is the upper half of a float64: its exponent is the power of two below the difficulty.
        (nats,) = struct.unpack("<d", struct.pack("<q", key << int(bins["shift"]) << _KEY_BITS))
        counts[int(nats).bit_length()] += count
    if not counts:
        return ""
    most = max(counts.values())
    lines = []
    for power in range(min(counts), max(counts) + 1):
        low, high = (0, 1) if power == 0 else (1 << power - 1, 1 << power)
        bar = "█" * round(_BAR_WIDTH * counts[power] / most)
        lines.append(f"{low:>8,} to {high:<8,} {bar} {counts[power]:,}")
    return "```text\nnats                 segments\n" + "\n".join(lines) + "\n```"


def generation(augmented: Manifest) -> str:
    """Generators, prompts, decoding, budget and tiers."""
    facts, config, counts = augmented.facts, augmented.config, augmented.counts
    models = [
        (f"`{name}`", f"`{model['name']}`", f"`{model['revision']}`", model["engine"], _thinking(config, name))
        for name, model in facts["models"].items()
    ]
    caps = {tier["name"]: tier for tier in config["budget"]["tiers"]}
    tiers = [
        (
            tier["name"],
            _cap(caps.get(tier["name"], {}), "model"),
            _cap(caps.get(tier["name"], {}), "prompt"),
            _cap(caps.get(tier["name"], {}), "max_tokens"),
            f"{tier['segments']:,}",
            f"{tier['generations']:,}",
            f"{tier['planned_tokens']:,.0f}",
        )
        for tier in facts["tiers"]
    ]
    prompts = [(f"`{name}`", f"`{version}`") for name, version in facts["prompts"].items()]
    header = ("tier", "model", "prompt", "token cap", "segments", "generations", "tokens planned")
    spent = f"{facts['planned_tokens']:,.0f} thinking tokens planned, {counts['thought_tokens']:,} generated"
    return section(
        "Generation",
        table(models, ("model", "generator", "revision", "engine", "thinking mode")) if models else "No generator.",
        table(prompts, ("prompt", "version")) if prompts else "",
        f"Decoding: {listing(config['sampling'])}.",
        f"Budget: {amount(facts)}, spread {config['budget']['policy']}; {spent}"
        + (f"; {counts['failed']:,} generations failed." if counts.get("failed") else "."),
        forecast(augmented),
        table(tiers, header),
        _cut_points(facts),
    )


def forecast(augmented: Manifest) -> str:
    """What a pilot had forecast of the thinking tokens against what they came to; empty without a pilot."""
    found = augmented.facts.get("forecast")
    if not found:
        return ""
    said, actual = found["thought_tokens"], augmented.counts["thought_tokens"]
    off = f" ({actual / said['value'] - 1:+.1%})" if said["value"] else ""
    return (
        f"Forecast by a pilot: {said['value']:,.0f} thinking tokens ({said['low']:,.0f} to {said['high']:,.0f} with "
        f"90% confidence); generated: {actual:,}{off}."
    )


def _cap(tier: Mapping[str, Any], key: str) -> str:
    value = tier.get(key)
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _thinking(config: Mapping[str, Any], name: str) -> str:
    thinking = config.get("models", {}).get(name, {}).get("thinking")
    return "as its template says" if thinking is None else str(thinking)


def _cut_points(facts: Mapping[str, Any]) -> str:
    cuts = ", ".join(f"{nats:,.1f}" for nats in facts.get("cut_points_nats", []))
    return f"A segment takes the next tier from these difficulties on: {cuts} nats." if cuts else ""


def amount(facts: Mapping[str, Any]) -> str:
    """A budget with its unit, from the facts of the augment stage."""
    unit = {"tokens": "thinking tokens", "dollars": "dollars", "gpu_hours": "GPU-hours"}[facts["unit"]]
    return f"{facts['target_spend']:,.{0 if facts['unit'] == 'tokens' else 2}f} {unit}"


def selection(selected: Manifest) -> str:
    """Kept and rejected by reason, what the kept ones are worth, and how many traces were cut off."""
    counts, config = selected.counts, selected.config["select"]
    reasons = [
        (name.removeprefix("rejected."), f"{number:,}", share(number, counts["candidates"]))
        for name, number in sorted(counts.items())
        if name.startswith("rejected.")
    ]
    value = selected.facts.get("value", config.get("value"))
    return section(
        "Selection",
        f"{counts['candidates']:,} candidates: {counts['kept']:,} kept, {counts['rejected']:,} rejected. "
        f"Valued by {value or 'nothing'}; kept: {config.get('keep', 'first')}.",
        table(reasons, ("rejected because (the first reason)", "candidates", "share")) if reasons else "",
        _account(selected.facts.get("account") or []),
        _gains(selected.facts.get("account") or []),
        _truncation(counts),
    )


def _account(account: list[dict[str, Any]]) -> str:
    lines = [
        (row["tier"], row["model"], row["prompt"], *(f"{row.get(name, 0):,}" for name in ACCOUNTED)) for row in account
    ]
    header = ("tier", "model", "prompt", "candidates", "kept", "tokens generated", "of kept ones")
    return table(lines, header) if lines else ""


def _gains(account: list[dict[str, Any]]) -> str:
    """What kept thoughts add, in nats per segment on text that the choice among candidates didn't look at."""
    lines = []
    for row in account:
        if gains := row.get("gains"):
            per_thousand = gains.get("heldout_nats_per_1000_thought_tokens")
            cells = [_mean(gains[name]) for name in ("heldout", "heldout_first", "gain", "control")]
            lines.append((row["tier"], row["model"], row["prompt"], f"{gains['segments']:,}", *cells, per_thousand))
    if not lines:
        return ""
    header = ("tier", "model", "prompt", "segments", "kept", "first that passed", "raw gain", "of control traces")
    return (
        "What a kept thought is worth, in nats per segment (mean and 95% interval), beyond control traces, on text "
        "that the choice did not look at:\n\n" + table(lines, (*header, "nats per 1,000 tokens"))
    )


def _mean(of: Mapping[str, Any]) -> str:
    interval = of.get("interval95")
    return f"{of['mean']:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")


def _truncation(counts: Mapping[str, int]) -> str:
    ends = {name.removeprefix("closed."): number for name, number in counts.items() if name.startswith("closed.")}
    if not ends:
        return ""
    total = sum(ends.values())
    said = "; ".join(
        f"{share(ends[name], total)} {how}"
        for name, how in (
            ("natural", "ended by themselves"),
            ("forced", "reached their cap and were brought to an end by a closing call"),
            ("cut", "were cut off at their cap"),
        )
        if name in ends
    )
    return f"Trace truncation: of the {total:,} candidates {said}."


def decontamination(selected: Manifest) -> str:
    """Whether documents and traces were compared with benchmarks, and what was found."""
    facts, counts = selected.facts.get("decontamination"), selected.counts
    if not facts:
        return section("Decontamination", "Neither documents nor traces were compared with any benchmark.")
    words = (selected.config["select"].get("decontaminate") or {}).get("ngram_words")
    lines = [
        (name, *(f"{about.get(what, 0):,}" for what in about), f"{counts.get(f'contaminated.{name}', 0):,}")
        for name, about in facts["benchmarks"].items()
    ]
    columns = list(next(iter(facts["benchmarks"].values()), {}))
    documents, traces = (counts.get(f"{what}_contaminated", 0) for what in ("documents", "candidates"))
    done = "were left out" if facts["action"] == "remove" else "were kept and are marked"
    return section(
        "Decontamination",
        f"Documents and traces were compared with benchmarks by n-grams of {words} words; those that overlap {done}: "
        f"{documents:,} documents and {traces:,} traces.",
        table(lines, ("benchmark", *(column.replace("_", " ") for column in columns), "documents")) if lines else "",
    )


def _reasons(counts: Mapping[str, int], prefix: str) -> str:
    return ", ".join(
        f"{name.removeprefix(prefix)} {n:,}" for name, n in sorted(counts.items()) if name.startswith(prefix)
    )
