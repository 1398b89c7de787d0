"""What the card says of generation: who wrote the thoughts, for which budget, and what was planned and came of it.

The summary of a run and the report say some of it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from augment.selection.account import in_words
from difficulty.budget.tiers import margin_in_words
from sharding.storage.manifest import Manifest


def of_generation(augmented: Manifest) -> dict[str, Any]:
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
        "contraction": contraction(augmented),
        "expected_gain": expected_gain(made),
        "cut_points": [f"{nats:,.1f}" for nats in made.get("cut_points_nats", [])],
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


def contraction(augmented: Manifest) -> str:
    """What contracting the documents came to; "" where no tier shows a contraction."""
    if not (asked := augmented.facts.get("contraction")):
        return ""
    calls, tokens = (
        sum(augmented.counts.get(f"{what}_{when}", 0) for when in ("found", "now"))
        for what in ("contractions", "contraction_tokens")
    )
    read = sum(augmented.counts.get(f"contraction_prompt_tokens_{when}", 0) for when in ("found", "now"))
    failed = augmented.counts.get("segments_without_contraction", 0)
    return (
        f"{calls:,} contractions by `{asked['contraction_model']}`, of at most {asked['contraction_tokens']:,} tokens "
        f"each: {tokens:,} tokens, which count in the budget and not among the thinking tokens"
        + (f", made from {read:,} tokens of prompts" if read else "")
        + (f"; {failed:,} segments went without a thought, since theirs failed" if failed else "")
    )


def contexts(augmented: Manifest, selected: Manifest) -> list[tuple[str, str, str, str]]:
    """(tier, what its prompts show beside the segment, tokens of prompts for a trace, held-out gain), to compare
    contexts; empty where all prompts show the document as it is.

    Of a recipe's trace the prompts of all its calls are counted; those of contractions are told beside (`contraction`),
    since they serve all tiers that show one.
    """
    shown = {tier["name"]: _shown(tier) for tier in augmented.config["budget"]["tiers"]}
    if set(shown.values()) == {"full"}:
        return []
    account = {row["tier"]: row for row in selected.facts["account"]}
    gains = {tier: row["gains"]["heldout"] for tier, row in account.items() if "heldout" in row.get("gains", {})}
    return [
        (
            tier["name"],
            shown[tier["name"]],
            prompts_of_a_trace(account.get(tier["name"], {})),
            in_words(gains[tier["name"]]) if tier["name"] in gains else "",
        )
        for tier in augmented.facts["tiers"]
        if tier["generations"]
    ]


def prompts_of_a_trace(row: Mapping[str, Any]) -> str:
    """Tokens of all prompts that were read for a trace, on average, from a row of the account; "" where not known."""
    if not row.get("candidates") or not row.get("prompt_tokens"):
        return ""
    return f"{row['prompt_tokens'] / row['candidates']:,.0f}"


def _shown(tier: Mapping[str, Any]) -> str:
    context = tier.get("context", "full")
    parts = [context] if isinstance(context, str) else list(context)
    return " and ".join(f"{tier['passages']} retrieved" if part == "retrieved" else part for part in parts)


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
