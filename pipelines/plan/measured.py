"""`pilot.json`: what a pilot has measured, tier by tier, and the forecast that was made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines import config as config_module
from pipelines.config import MillConfig
from pipelines.planning import what_decides_text
from sharding import shard_io
from sharding.errors import MillError

PILOT_NAME = "pilot.json"
"""In the output."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTier:
    """What the generations of one tier came to; parallel lists with an entry for each segment.

    Attributes:
        thought_tokens: of all samples of the segment, in the generator's tokens.
        prompt_tokens: of its prompt.
        generations: samples that were generated.
        accepted: of them, how many passed the gates.
        cut: of them, how many reached the cap before they had come to an end, whether a closing was forced or not.
        kept_tokens: training tokens of those that passed, on average; 0 where none did.
    """

    thought_tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    generations: tuple[int, ...]
    accepted: tuple[int, ...]
    cut: tuple[int, ...]
    kept_tokens: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """The measurements of all tiers, by their name, and tokens per second by the name of the model."""

    tiers: Mapping[str, MeasuredTier]
    tokens_per_second: Mapping[str, float | None]


def read_pilot(config: MillConfig) -> tuple[Pilot | None, list[str]]:
    """The pilot of this output, if it was made with the tiers, models and prompts of this config; and warnings.

    Raises:
        MillError: it can't be read.
    """
    url = shard_io.join(config.output, PILOT_NAME)
    if not shard_io.exists(url):
        return None, []
    try:
        found = json.loads(shard_io.read_bytes(url))
        if found["config"] != decides(config):
            differ = [key for key, value in decides(config).items() if found["config"].get(key) != value]
            return None, [f"{url} was measured with another config ({', '.join(differ)}): add --pilot to measure again"]
        tiers = {
            name: MeasuredTier(**{key: tuple(values) for key, values in tier.items()})
            for name, tier in found["tiers"].items()
        }
        return Pilot(tiers=tiers, tokens_per_second=found["tokens_per_second"]), []
    except (ValueError, KeyError, TypeError) as error:
        raise MillError(f"{url} is not what a pilot writes: {error!r}; remove it, or add --pilot") from error


def write_pilot(config: MillConfig, pilot: Pilot, forecast: Mapping[str, Any]) -> None:
    """Store a pilot with the forecast of thinking tokens for this config's budget."""
    content = {
        "config": decides(config),
        "budget": config_module.to_mapping(config.budget),
        "forecast": dict(forecast),
        "tiers": {name: asdict(tier) for name, tier in pilot.tiers.items()},
        "tokens_per_second": dict(pilot.tokens_per_second),
    }
    shard_io.write_json(shard_io.join(config.output, PILOT_NAME), content)


def decides(config: MillConfig) -> dict[str, Any]:
    """The parts of the config that the measurements depend on: not how much is spent, and not at which price."""
    plain = config_module.to_mapping(config.budget)
    expectations = ("expected_tokens", "expected_resolution")
    return {
        "tiers": [{k: v for k, v in tier.items() if k not in expectations} for tier in plain["tiers"]],
        "models": {name: what_decides_text(model) for name, model in sorted(config.models.items())},
        "sampling": config_module.to_mapping(config.sampling),
        "closing": config_module.to_mapping(config.closing),
        "gates": config_module.to_mapping(config.select.gates),
        "tokenizer": config.tokenizer,
    }


def forecast_for(output: str, budget: Mapping[str, Any]) -> dict[str, Any] | None:
    """The forecast of thinking tokens that a pilot made for this `budget` section; None where there is none."""
    url = shard_io.join(output, PILOT_NAME)
    if not shard_io.exists(url):
        return None
    try:
        found = json.loads(shard_io.read_bytes(url))
        return found["forecast"] if found["budget"] == budget else None
    except (ValueError, KeyError, TypeError):
        return None  # it is for people alone, and not worth a run
