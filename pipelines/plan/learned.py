"""`stages/gain/model.json`: what an exploring pilot taught, with what it was made from.

Written by `pipelines.plan.learning`; whoever spends by it reads it here, and gets it only where it speaks of the
config at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from difficulty.gain.model import GainModel
from pipelines.config import MillConfig
from pipelines.plan.measured import decides
from sharding import storage
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.json_files import MAX_BYTES, read_json
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

FORMAT = 1
"""Of the file."""

WAY_OUT = "`thoughtmill plan CONFIG --pilot 400 --explore` learns one"

_BY_NAME = ("tiers", "models", "prompts")
"""What of a config is held against the file entry by entry: tiers that were tried and are no longer wanted don't
matter."""


@dataclass(frozen=True, kw_only=True)
class TierCost:
    """What thinking about a segment with a tier takes on average, all its samples, as the pilot measured it.

    Attributes:
        thought_tokens: of the generator.
        gpu_seconds, dollars: at the rate and price that the config states, else at the pilot's rate; None where neither
            is known.
    """

    thought_tokens: float
    gpu_seconds: float | None = None
    dollars: float | None = None


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """The file."""

    format: int
    config: dict[str, Any]
    made_from: dict[str, Any]
    digest: str
    model: dict[str, Any]
    costs: dict[str, TierCost]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a pilot taught.

    Attributes:
        model: expected gain of each tier on a segment.
        costs: of each tier, by name.
        report: `difficulty.gain.report.LearningReport` as JSON.
        made_from: the scored parts by `digest`, and how much was tried: documents, segments, tries and those of them
            whose gain could be told.
    """

    model: GainModel
    costs: Mapping[str, TierCost]
    report: Mapping[str, Any]
    made_from: Mapping[str, Any]


def read_gain(config: MillConfig, scored: Manifest) -> GainModel:
    """The gain model that this config may spend by. It may know more tiers than the config has: go by their names.

    Raises:
        RequestError: there is none, or it was made with other tiers, models, prompts, selection or scores.
        MillError: it can't be read.
    """
    return read_learned(config, scored).model


def read_learned(config: MillConfig, scored: Manifest) -> Learned:
    """The same with its costs and report, of this output or else of that whose scores it uses.

    Args:
        scored: the manifest of the scored parts.

    Raises: as `read_gain`.
    """
    url = find_gain(config)
    if url is None:
        raise RequestError(f"{config.output} holds no model of gain, which budget.policy: learned goes by; {WAY_OUT}")
    stored = read_json(url, _Stored, "a model of gain", MAX_BYTES)
    if stored.format != FORMAT:
        raise RequestError(f"{url} has format {stored.format}, this version reads {FORMAT}; {WAY_OUT}")
    if differ := _differences(stored.config, _by_name(decides(config, scored))):
        raise RequestError(
            f"{url} was learned with another config ({', '.join(differ)} {'differs' if len(differ) == 1 else 'differ'})"
            f"; {WAY_OUT}"
        )
    model = GainModel.from_json(stored.model)
    return Learned(model=model, costs=stored.costs, report=stored.report, made_from=stored.made_from)


def find_gain(config: MillConfig) -> str | None:
    """The URL of the model of gain, of this output or of that whose scores it uses; None where there is none."""
    outputs = [config.output, *([config.scored] if config.scored is not None else [])]
    return next((url for url in (Output(output).gain for output in outputs) if storage.exists(url)), None)


def write_learned(config: MillConfig, scored: Manifest, learned: Learned) -> None:
    """Store it in this output."""
    content = {
        "format": FORMAT,
        "config": _by_name(decides(config, scored)),
        "made_from": {**learned.made_from, "scored": manifest.digest(scored)},
        "digest": learned.model.digest,
        "model": learned.model.to_json(),
        "costs": {name: asdict(cost) for name, cost in learned.costs.items()},
        "report": dict(learned.report),
    }
    storage.write_json(Output(config.output).gain, content)


def _by_name(decided: dict[str, Any]) -> dict[str, Any]:
    """`decides` with its tiers that think by their name."""
    thinking = {tier["name"]: tier for tier in decided["tiers"] if tier.get("model") is not None}
    return decided | {"tiers": thinking}


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What the stored model was made otherwise with, as the user calls it."""
    found = []
    for key, value in wanted.items():
        if key not in _BY_NAME:
            found += [] if stored.get(key) == value else [key]
            continue
        there = stored.get(key) or {}
        one = {"tiers": "tier", "models": "model", "prompts": "prompt"}[key]
        found += [f"{one} {name}" for name, entry in value.items() if there.get(name) != entry]
    return found
