"""The control arms by name, and what makes a run's config that of an arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.joints import prices
from sharding.storage.output import Output

RAW = "raw"
LEARNED = "learned"


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes:
        about: what it is.
        derive: (config as a mapping, the run's config) → nothing; makes the mapping, which has the policy adaptive,
            that of the arm.
        needs: arms that must be made before, since this one goes by what they came to.
    """

    about: str
    derive: Callable[[dict[str, Any], MillConfig], None] = lambda tree, config: None
    needs: tuple[str, ...] = ()


def _raw(tree: dict[str, Any], config: MillConfig) -> None:
    skip = _skipping(config)
    tree["budget"] |= {"policy": "fixed", "fixed_tier": skip, "tiers": [{"name": skip}]}


def _uniform(tree: dict[str, Any], config: MillConfig) -> None:
    tree["budget"] |= {"policy": "uniform"}


def _learned(tree: dict[str, Any], config: MillConfig) -> None:
    tree["budget"] |= {"policy": LEARNED}


def _rephrase(tree: dict[str, Any], config: MillConfig) -> None:
    for tier in tree["budget"]["tiers"]:
        tier["prompt"] = tier["prompt"] and REPHRASE_PROMPT


def _shuffled(tree: dict[str, Any], config: MillConfig) -> None:
    tree["select"] |= {"shuffle": True}


def _dose(share: float, tree: dict[str, Any], config: MillConfig) -> None:
    """A share of the budget, all of it for one tier: with several, a segment's tier would change with the dose."""
    number = config.budget.key.removeprefix("budget.")
    told = tree["budget"][number] * share
    tree["budget"][number] = max(1, round(told)) if number == "thinking_tokens" else told
    costs = {tier.name: tier.cost(config.budget.unit, prices(config)) for tier in config.budget.tiers}
    dearest = max(costs, key=lambda name: costs[name])
    tiers = [tier for tier in tree["budget"]["tiers"] if tier["name"] == dearest]
    tree["budget"]["tiers"] = [{"name": _skipping(config)}, *tiers]


def _skipping(config: MillConfig) -> str:
    return next((tier.name for tier in config.budget.tiers if tier.skips), "skip")


ARMS = {
    RAW: Arm("the source alone", _raw),
    "uniform": Arm("the budget dealt out by lot", _uniform),
    "adaptive": Arm("the budget spent by difficulty"),
    "rephrase": Arm("as adaptive, with every prompt replaced by one that asks to rephrase", _rephrase),
    LEARNED: Arm("the budget spent by the gain that a pilot leads to expect", _learned),
    "uniform_matched": Arm("as uniform, with as many thought tokens as adaptive", _uniform, ("uniform", "adaptive")),
    "shuffled": Arm("as adaptive, each trace replaced by that of another document", _shuffled),
    **{
        f"dose_{share:g}": Arm(
            f"{share:g} of the budget by difficulty, all for the dearest tier", partial(_dose, share)
        )
        for share in (0.25, 0.5, 1.0, 2.0)
    },
}
"""The arms, in the order in which they are made. One more is a line here."""

DEFAULT_ARMS = (RAW, "uniform", "adaptive", "rephrase")

REPHRASE_PROMPT = "rephrase"


def arm_config(config: MillConfig, name: str, max_rows: Mapping[str, int] | None = None) -> MillConfig:
    """The config of an arm.

    Args:
        config: the run whose arm it is.
        name: one of `ARMS`.
        max_rows: sequences of each split to cut it to; None: as the config says.

    Raises:
        RequestError: the config can't have this arm.
    """
    tree = yaml_config.to_mapping(config)
    tree["output"] = Output(config.output).arm(name)
    tree["scored"] = config.scored or config.output
    tree["ledger"]["path"] = config.ledger_url
    tree["card"]["name"] = f"{config.card.name}, arm {name}"
    tree["budget"] |= {"policy": "adaptive", "fixed_tier": None, "pilot_segments": None}
    ARMS[name].derive(tree, config)
    if max_rows is not None:
        tree["pack"]["max_rows"] = dict(max_rows)
    return yaml_config.from_mapping(tree, f"arm {name}")
