"""The facts of the card: a plain mapping, computed from the four manifests. The template puts them into words."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from augment.selection.account import SHOWN_GAINS, in_words, lengths_in_words
from difficulty.budget.tiers import margin_in_words
from pipelines.ablation.result import Ablation
from pipelines.ablation.show import ratio_rows, reached_rows, sentences
from pipelines.card.front_matter import has_loss_mask, splits
from pipelines.card.markdown import share
from sharding.storage.manifest import STAGES, Manifest

REHEARSAL_NOTICE = "rehearsal: not for training"

ABOUT = (
    "A pretraining corpus in which hard passages are followed by generated reasoning about them. Made with "
    "thoughtmill: every token of the source was scored for difficulty, one thinking budget was spent where the "
    "difficulty is, and the traces that passed the gates stand with their documents."
)

ENDINGS = {
    "natural": "ended by themselves",
    "forced": "reached their cap and were brought to an end by a closing call",
    "cut": "were cut off at their cap",
}
"""How a trace ended → what the card says of it."""

_BAR_WIDTH = 40
_KEY_BITS = 32


def facts_of(stages: Mapping[str, Manifest], ablation: Ablation | None = None) -> dict[str, Any]:
    """All that the template needs; rows of tables are tuples of cells.

    Args:
        stages: the four manifests.
        ablation: what students learned from the corpus, where they were trained.
    """
    scored, augmented, selected, packed = (stages[stage] for stage in STAGES)
    return {
        "about": ABOUT,
        "name": packed.config["card"]["name"],
        "generator_license": packed.config["card"].get("generator_license"),
        "rehearsal": REHEARSAL_NOTICE if packed.rehearsal else "",
        "numbers": list(_numbers(scored.counts, packed)),
        **_of_sources(scored),
        **_of_difficulty(scored),
        **_of_generation(augmented),
        **_of_selection(selected),
        "shuffled": selected.facts.get("shuffled", False),
        "ablation": ablation and _ablation(ablation),
        "decontamination": _decontamination(selected),
        "packing": list(_packing(packed)),
        "warnings": [*augmented.facts["warnings"], *packed.facts.get("warnings", [])],
        "columns": list(_columns(packed)),
        "first_split": (splits(packed) or ["train"])[0],
        "fingerprints": [(name, f"`{stages[name].fingerprint}`") for name in STAGES],
        "versions": [f"{name} {version}" for name, version in packed.facts.get("versions", {}).items()],
    }


def _ablation(ablation: Ablation) -> dict[str, Any]:
    (reached_header, reached), (ratio_header, ratios) = reached_rows(ablation), ratio_rows(ablation)
    return {
        "sentences": sentences(ablation),
        "reached_header": reached_header,
        "reached": reached,
        "ratio_header": ratio_header,
        "ratios": ratios,
    }


def amount(facts: Mapping[str, Any]) -> str:
    """A budget with its unit, from the facts of the augment stage."""
    unit = {"tokens": "thinking tokens", "dollars": "dollars", "gpu_hours": "GPU-hours"}[facts["unit"]]
    return f"{facts['target_spend']:,.{0 if facts['unit'] == 'tokens' else 2}f} {unit}"


def further_round(augmented: Manifest) -> str:
    """Which round of what a run is; empty of a first one."""
    found = augmented.facts.get("round")
    if not found:
        return ""
    return (
        f"Round {found['number']}: scored again with {found['scorer'].get('model') or found['scorer'].get('scorer')} "
        f"after {found['of']}, whose ledger it goes on with."
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


def _numbers(scored: Mapping[str, int], packed: Manifest) -> Iterator[tuple[str, str]]:
    """How much there is of everything; what is 0 is left out, but for the first ones of each kind."""
    counts = packed.counts
    always = {
        "documents": scored["documents"],
        "thoughts": counts.get("thoughts", 0),
        "source tokens": counts.get("tokens_source", 0),
        "thought tokens": counts.get("tokens_thought", 0),
    }
    names = {
        "documents": "",
        "documents left plain, without thoughts": "documents_raw",
        "documents left out: overlap with a benchmark": "documents_contaminated",
        "documents left out: weight of their source": "documents_left_out",
        "copies beyond the first": "document_copies",
        **dict.fromkeys(("thoughts", "source tokens", "thought tokens"), ""),
        "delimiter tokens": "tokens_delimiter",
        "padding tokens": "tokens_padding",
        "sequences left out to meet a number of rows": "rows_left_out",
        **{f"documents in {split}": f"documents_{split}" for split in splits(packed)},
    }
    for name, count in names.items():
        if name in always or counts.get(count, 0):
            yield name, f"{always.get(name) or counts.get(count, 0):,}"


def _of_sources(scored: Manifest) -> dict[str, Any]:
    config, counts = scored.config, scored.counts
    return {
        "scored": Counter(counts),
        "sources": [
            (
                source.get("name") or "",
                f"`{source['path']}`",
                source.get("format") or "by ending",
                *(
                    f"{counts[key]:,}" if (key := f"source.{source.get('name')}.{of}") in counts else ""
                    for of in ("documents", "tokens")
                ),
            )
            for source in config.get("sources") or [config.get("source")]
            if isinstance(source, Mapping) and source.get("path")
        ],
        "refused_because": ", ".join(f"{reason} {number:,}" for reason, number in _reasons(counts, "quarantined.")),
    }


def _of_difficulty(scored: Manifest) -> dict[str, Any]:
    counts, histogram = scored.counts, scored.facts["histogram"]
    tokens = max(1, counts["source_tokens"])
    return {
        "scorer": scored.facts["scorer"],
        "mean_surprisal_nats": counts.get("surprisal_micronats", 0) / 1e6 / tokens,
        "mean_entropy_nats": counts.get("entropy_micronats", 0) / 1e6 / tokens,
        "hard_share": share(counts.get("hard_tokens", 0), counts["source_tokens"]),
        "threshold_nats": scored.config["difficulty"]["threshold_nats"],
        "has_memory": bool(scored.facts.get("memory")),
        "quantiles": {
            f"{float(rank):.0%}": f"{nats:,.1f}" for rank, nats in histogram.get("quantiles_nats", {}).items()
        },
        "doublings": list(_doublings(histogram["by_difficulty"])),
    }


def _doublings(bins: Mapping[str, Any]) -> Iterator[tuple[int, int, str, int]]:
    """(from, to, bar, segments) of each doubling of the difficulty in nats."""
    counts = Counter[int]()
    key = 0
    for step, count in zip(bins["bin_steps"], bins["counts"], strict=True):
        key += step
        # A key is the upper half of a float64: its exponent is the power of two below the difficulty.
        (nats,) = struct.unpack("<d", struct.pack("<q", key << int(bins["shift"]) << _KEY_BITS))
        counts[int(nats).bit_length()] += count
    for power in range(min(counts, default=0), max(counts, default=-1) + 1):
        low, high = (0, 1) if power == 0 else (1 << power - 1, 1 << power)
        yield low, high, "█" * round(_BAR_WIDTH * counts[power] / max(counts.values())), counts[power]


def _of_generation(augmented: Manifest) -> dict[str, Any]:
    made, config = augmented.facts, augmented.config
    thinking = {name: model.get("thinking") for name, model in config.get("models", {}).items()}
    asked = {tier["name"]: tier for tier in config["budget"]["tiers"]}
    return {
        "augmented": Counter({name: n for name, n in augmented.counts.items() if isinstance(n, int)}),
        "generators": [
            (
                *(f"`{name}`", f"`{model['name']}`", f"`{model['revision']}`", model["engine"]),
                "as its template says" if thinking.get(name) is None else thinking[name],
            )
            for name, model in made["models"].items()
        ],
        "writers": [f"`{model['name']}`" for model in made["models"].values()],
        "prompts": [(f"`{name}`", f"`{version}`") for name, version in made["prompts"].items()],
        "sampling": config["sampling"],
        "budget": amount(made),
        "policy": config["budget"]["policy"],
        "planned_tokens": f"{made['planned_tokens']:,.0f}",
        "forecast": forecast(augmented),
        "further_round": further_round(augmented),
        "tiers": [
            (
                tier["name"],
                *(_cell(asked.get(tier["name"], {}).get(key)) for key in ("model", "prompt", "max_tokens")),
                *(f"{tier['segments']:,}", f"{tier['generations']:,}", f"{tier['planned_tokens']:,.0f}"),
            )
            for tier in made["tiers"]
        ],
        "expected_gain": expected_gain(made),
        "cut_points": [f"{nats:,.1f}" for nats in made.get("cut_points_nats", [])],
    }


def expected_gain(made: Mapping[str, Any]) -> str:
    """What a plan by expected gain promised; "" for other plans."""
    if not made.get("planned_gain_nats"):
        return ""
    by_tier = [
        f"{tier['name']} {_range(tier['planned_gain_nats'])}" for tier in made["tiers"] if tier["planned_tokens"] > 0
    ]
    return (
        f"{_range(made['planned_gain_nats'])} nats in all ({', '.join(by_tier)}); "
        f"{margin_in_words(made['unit'], made['marginal_gain_nats'])}"
    )


def _range(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:+,.1f} ({estimate['low']:+,.1f} to {estimate['high']:+,.1f})"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _of_selection(selected: Manifest) -> dict[str, Any]:
    counts, config = selected.counts, selected.config["select"]
    account = selected.facts.get("account") or []
    ends = {name: counts[f"closed.{name}"] for name in ENDINGS if f"closed.{name}" in counts}
    return {
        "unlike_promised": selected.facts.get("warnings", []),
        "selected": Counter(counts),
        "value": selected.facts.get("value", config.get("value")),
        "keep": config.get("keep", "first"),
        "rejections": [
            (reason, f"{number:,}", share(number, counts["candidates"]))
            for reason, number in _reasons(counts, "rejected.")
        ],
        "account": [
            (
                *(row["tier"], row["model"], row["prompt"]),
                *(f"{row.get(of, 0):,}" for of in ("candidates", "kept", "thought_tokens", "kept_thought_tokens")),
            )
            for row in account
        ],
        "gains": [
            (
                *(row["tier"], row["model"], row["prompt"], f"{gains['heldout_first']['segments']:,}"),
                *(in_words(gains[name]) if name in gains else "" for name in SHOWN_GAINS),
                *(lengths_in_words(row["lengths"].get(outcome)) for outcome in ("kept", "rejected")),
            )
            for row in account
            if (gains := row.get("gains"))
        ],
        "steps": [
            (
                *(row["tier"], step, f"{found['calls']:,}", f"{found['thought_tokens']:,}"),
                in_words(found["gain"]) if "gain" in found else "",
            )
            for row in account
            for step, found in row.get("steps", {}).items()
        ],
        "grades": [
            (row["tier"], f"{row['judge_rank']['mean']:+.2f}", f"{row['judge_rank']['segments']:,}")
            for row in account
            if "judge_rank" in row
        ],
        "trims": [
            (row["tier"], f"{trim['traces']:,}", f"{trim['tokens_saved']:,}", in_words(trim["change"]))
            for row in account
            if (trim := row.get("trim"))
        ],
        "candidates_ended": sum(ends.values()),
        "endings": [f"{share(number, sum(ends.values()))} {ENDINGS[name]}" for name, number in ends.items()],
    }


def _decontamination(selected: Manifest) -> dict[str, Any] | None:
    """What was compared with which benchmarks; None where nothing was."""
    found = selected.facts.get("decontamination")
    if not found:
        return None
    columns = list(next(iter(found["benchmarks"].values()), {}))
    return {
        "action": found["action"],
        "ngram_words": (selected.config["select"].get("decontaminate") or {}).get("ngram_words"),
        "columns": ["benchmark", *(column.replace("_", " ") for column in columns), "documents"],
        "benchmarks": [
            (
                name,
                *(f"{number:,}" for number in about.values()),
                f"{selected.counts.get(f'contaminated.{name}', 0):,}",
            )
            for name, about in found["benchmarks"].items()
        ],
    }


def _packing(packed: Manifest) -> Iterator[tuple[str, str]]:
    """Rows, padding, cuts, delimiters, loss mask and tokenizer."""
    counts, config = packed.counts, packed.config["pack"]
    total = max(1, counts["rows"] * config["sequence_length"])
    shards = packed.files.get("shards", [])
    masked = f"`{config.get('loss_mask')}`, in the column `loss_mask`"
    yield "sequences", f"{counts['rows']:,} of {config['sequence_length']:,} tokens, in {len(shards):,} shards"
    yield "bytes per token", f"{sum(entry.size_bytes for entry in shards) / total:.3f}"
    yield "padding", share(counts.get("tokens_padding", 0), total)
    yield "layout", f"`{packed.config['layout']}`"
    yield "before a thought", _text(config["thought_open"])
    yield "after a thought", _text(config["thought_close"])
    if starts := packed.facts.get("document_start_ids"):
        yield "before a document", _text(config["document_start"]) + f" as ids {starts}"
    yield "after a document", _text(config["document_end"]) + f" as ids {packed.facts['document_end_ids']}"
    yield "documents cut", _of(counts.get("documents_cut", 0), counts.get("documents", 0), "longer than a sequence")
    yield "thoughts cut", _of(counts.get("thoughts_cut", 0), counts.get("thoughts", 0), "lost their end")
    yield "thoughts without room", f"{counts.get('thoughts_dropped', 0):,}"
    yield "tokens in the loss", masked if has_loss_mask(packed) else "all but padding"
    without = counts.get("rows_without_labels", 0)
    yield "sequences without a label", _of(without, counts["rows"], "none of whose tokens counts in the loss")
    yield "tokenizer", f"`{packed.config['tokenizer']}`, {packed.facts['vocab_size']:,} entries"
    yield "tokenizer sha256", f"`{packed.facts['tokenizer_fingerprint']}`"


def _text(text: str | None) -> str:
    return "the tokenizer's end of text" if text is None else f"`{text!r}`" if text else "nothing"


def _of(part: int, whole: int, why: str) -> str:
    return f"{part:,} ({share(part, whole)}), {why}" if part else "none"


def _columns(packed: Manifest) -> Iterator[tuple[str, str]]:
    """What the columns hold."""
    length = packed.config["pack"]["sequence_length"]
    yield "`input_ids`", f"{length:,} token ids; padding is id 0"
    yield "`token_type`", "of each token: 0 padding, 1 source, 2 thought, 3 delimiter"
    yield "`seq_lengths`", "tokens of each document in the row, for variable-length attention; the rest is padding"
    yield "`doc_ids`", "the document of each of these"
    place = "place of its first source token in the document: orders the pieces of one that was cut"
    yield "`source_starts`", place
    if has_loss_mask(packed):
        yield "`loss_mask`", "whether each token counts as one to be predicted"


def _reasons(counts: Mapping[str, int], prefix: str) -> list[tuple[str, int]]:
    """(reason, number) of the counts that begin so."""
    return [(name.removeprefix(prefix), number) for name, number in sorted(counts.items()) if name.startswith(prefix)]
