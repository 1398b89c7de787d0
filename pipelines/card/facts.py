"""The facts of the card: a plain mapping, computed from the four manifests. The template puts them into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from augment.selection.account import SHOWN_GAINS, in_words, lengths_in_words
from pipelines.ablation.result import Ablation
from pipelines.ablation.show import ratio_rows, reached_rows, sentences
from pipelines.card.difficulty import of_difficulty
from pipelines.card.front_matter import epochs_of, splits
from pipelines.card.generation import contexts, of_generation
from pipelines.card.markdown import share
from pipelines.card.packing import column_rows, packing_rows
from pipelines.card.training_content import training_content
from pipelines.delivered import deliveries_of
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
        "deliveries": list(_deliveries(packed)),
        **of_difficulty(scored),
        **of_generation(augmented),
        "contexts": contexts(augmented, selected),
        **_of_selection(selected),
        "shuffled": selected.facts.get("shuffled", False),
        "ablation": ablation and _ablation(ablation),
        "decontamination": _decontamination(selected),
        "training_content": list(training_content(stages)),
        "packing": list(packing_rows(packed)),
        "warnings": [*augmented.facts["warnings"], *packed.facts.get("warnings", [])],
        "columns": list(column_rows(packed)),
        "epochs": len(epochs_of(packed)),
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


def _deliveries(packed: Manifest) -> Iterator[tuple[str, ...]]:
    """What each later delivery brought, and what of it was in the corpus already."""
    for delivery in deliveries_of(packed):
        names = (
            *("score/documents", "score/source_tokens", "augment/generations", "select/kept", "pack/rows"),
            *("score/documents_delivered_before", "score/duplicates_of_earlier", "score/near_copies_of_earlier"),
        )
        yield str(delivery.number), *(f"{delivery.told.get(name, 0):,}" for name in names)


def _of_sources(scored: Manifest) -> dict[str, Any]:
    config, counts = scored.config, scored.counts
    return {
        "scored": Counter(counts),
        "near_copies": config.get("near_copies") or {},
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
                f"{row['prompt_tokens']:,}" if "prompt_tokens" in row else "",
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
                f"{found['prompt_tokens']:,}" if "prompt_tokens" in found else "",
                in_words(found["gain"]) if "gain" in found else "",
            )
            for row in account
            for step, found in row.get("steps", {}).items()
        ],
        "diversity": selected.facts.get("diversity"),
        "alike": [
            (
                *(tier, f"{found['sampled']:,}", f"{found['opening']} ({found['opening_share']:.0%})"),
                *(f"{found['shape']} ({found['shape_share']:.0%})", f"{found['near_copy_share']:.1%}"),
            )
            for tier, found in (selected.facts.get("diversity") or {"tiers": {}})["tiers"].items()
        ],
        "grades": [
            (
                row["tier"],
                *((f"{rank['mean']:+.2f}", f"{rank['segments']:,}") if (rank := row.get("judge_rank")) else ("", "")),
                f"{orders['agreed']:,} of {orders['compared']:,}" if (orders := row.get("judge_orders")) else "",
            )
            for row in account
            if "judge_rank" in row or "judge_orders" in row
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


def _reasons(counts: Mapping[str, int], prefix: str) -> list[tuple[str, int]]:
    """(reason, number) of the counts that begin so."""
    return [(name.removeprefix(prefix), number) for name, number in sorted(counts.items()) if name.startswith(prefix)]
