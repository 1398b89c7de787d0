"""What the figures of the report are made from, and what a figure is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from difficulty.budget.allocation import Allocation
from pipelines.documents.sample import Sample
from sharding.storage.manifest import Manifest

Stages = Mapping[str, Manifest | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        key: its place in the page's address.
        says: one sentence with what it comes to.
        chart, legend: what is drawn; None where something is missing.
        header, rows: the same as a table.
        missing: what has to be run before it can be drawn; "" when it is there.
        open: the table stands beside the chart, for all to see.
        notes: what is left out of it, a sentence each.
    """

    key: str
    title: str
    says: str = ""
    chart: Markup | None = None
    legend: Markup | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    missing: str = ""
    open: bool = False
    notes: Sequence[str] = ()


def missing_until(stage: str) -> str:
    """What to say where a stage's result is missing."""
    return f"Not there yet: the {stage} stage has not finished. Run `thoughtmill {stage} CONFIG` first."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that figures are made from.

    Attributes:
        stages: by name, None where one hasn't finished.
        allocation: the plan, None before the augment stage has made one.
        prices: by model of the config, what the plan said of prices.
        sample: records of a few parts.
    """

    stages: Stages
    allocation: Allocation | None
    prices: Mapping[str, Mapping[str, Any]]
    sample: Sample

    def style_of(self, tier: str) -> str:
        """The colour of a tier: grey for the one that skips, else by its place in the order of prices."""
        names = self.tiers
        skips = [plan.name for plan in self.allocation.tiers if not plan.resolution] if self.allocation else []
        if tier in skips:
            return "s0"
        thinking = [name for name in names if name not in skips]
        return f"s{1 + thinking.index(tier) % 7}" if tier in thinking else "s0"

    @property
    def tiers(self) -> list[str]:
        """From the cheapest to the dearest; those that the plan can't choose come last."""
        if self.allocation is None:
            return []
        choices = list(self.allocation.choices)
        return [
            self.allocation.tiers[i].name
            for i in (*choices, *(i for i in range(len(self.allocation.tiers)) if i not in choices))
        ]

    @property
    def caps(self) -> dict[str, float]:
        """Cap on the tokens of a generation, by tier."""
        augmented = self.stages["augment"]
        tiers = augmented.config["budget"]["tiers"] if augmented else []
        return {tier["name"]: float(tier["max_tokens"]) for tier in tiers if tier.get("max_tokens")}


def tokens_of_row(facts: Facts, row: Mapping[str, Any]) -> dict[str, float]:
    """The generated tokens of a row of the account by model: of a recipe's, by the models that made its steps."""
    steps = row.get("steps", {})
    made = sum(step["thought_tokens"] for step in steps.values())
    if not made:
        return {row["model"]: float(row["thought_tokens"])}
    augmented = facts.stages["augment"]
    tiers = augmented.config["budget"]["tiers"] if augmented else []
    told: Mapping[str, Any] = next((tier.get("steps", {}) for tier in tiers if tier["name"] == row["tier"]), {})
    tokens: dict[str, float] = {}
    for name, step in steps.items():
        model = (told.get(name.partition(" ")[0]) or {}).get("model") or row["model"]
        # The account has all calls; those of runs that came to nothing are no part of the row's tokens.
        tokens[model] = tokens.get(model, 0.0) + step["thought_tokens"] * row["thought_tokens"] / made
    return tokens


def quantity(value: float) -> str:
    """An amount of money or hours in as many digits as it takes."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def share(part: float, whole: float) -> str:
    """A share in per cent."""
    return f"{part / whole:.1%}" if whole else "none"
