"""`pilot.json`: what a pilot has measured, tier by tier, and the forecast that was made of it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from augment.selection.benchmarks.index import index_digest
from augment.selection.values import value_digest
from difficulty.budget.tiers import BudgetConfig
from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.joints import (
    CONTRACTION_KEYS,
    asks_scorer,
    grading_of,
    holdback_of,
    index_inputs,
    judge_inputs,
    plain_contraction,
    plain_tiers,
    recipe_inputs,
    select_section,
    trace_planner,
)
from pipelines.scorer_identity import model_inputs
from sharding import storage
from sharding.errors import MillError
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output


@dataclass(frozen=True, kw_only=True)
class MeasuredTier:
    """What the generations of one tier came to; parallel lists with an entry for each segment.

    Attributes:
        thought_tokens: of all samples of the segment, in the generator's tokens.
        prompt_tokens: of its prompts, a sample, on average; of a recipe those of all calls of a run.
        generations: samples that were generated.
        accepted: of them, how many passed the gates.
        cut: of them, how many reached the cap before they had come to an end, whether a closing was forced or not.
        kept: of them, how many selection keeps.
        kept_tokens: training tokens of those that it keeps.
        heldout_nats: what the kept one gains beyond controls on text that the choice didn't look at; None where none
            is kept, or none was valued.
        document: the document that it is of, by a number; without, each is of another.

    Of an exploring pilot alone:
        segment, difficulty_nats: its id and difficulty.
        weight: how many of the corpus it stands for, but for a factor that all share.
        gain_nats: what thinking about it brings the corpus: as `heldout_nats`, but 0 where no trace passes the gates;
            None where it can't be told.
        null_nats: the same with a control's traces in place of its own, of which the truth is 0.
        expected_nats: of every tier that thinks, in the order of the config, as learned from other documents.
        learned_nats: the same of the model that the run goes by, which has seen this segment.
        request_key: of what was asked for.
    """

    thought_tokens: tuple[int, ...]
    prompt_tokens: tuple[float, ...]
    generations: tuple[int, ...]
    accepted: tuple[int, ...]
    cut: tuple[int, ...]
    kept: tuple[int, ...]
    kept_tokens: tuple[int, ...]
    heldout_nats: tuple[float | None, ...]
    document: tuple[int, ...] = ()
    segment: tuple[str, ...] = ()
    difficulty_nats: tuple[float, ...] = ()
    weight: tuple[float, ...] = ()
    gain_nats: tuple[float | None, ...] = ()
    null_nats: tuple[float | None, ...] = ()
    expected_nats: tuple[tuple[float, ...], ...] = ()
    learned_nats: tuple[tuple[float, ...], ...] = ()
    request_key: tuple[str, ...] = ()

    @property
    def weights(self) -> np.ndarray | None:
        """(segments,) float64; None where all count the same."""
        return np.array(self.weight) if self.weight else None

    def where(self, chosen: np.ndarray) -> MeasuredTier:
        """The entries at these places, (n,) int64."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return MeasuredTier(**{name: tuple(c[i] for i in chosen) if c else () for name, c in columns.items()})

    @property
    def documents(self) -> np.ndarray:
        """(segments,) int64, equal for segments of one document."""
        return np.array(self.document or range(len(self.generations)))


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What a pilot came to.

    Attributes:
        tiers: the measurements of all tiers, by their name.
        tokens_per_second: by the name of the model.
        counts: as those of the select stage; empty of a pilot that an earlier version made.
    """

    tiers: Mapping[str, MeasuredTier]
    tokens_per_second: Mapping[str, float | None]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def explored(self) -> bool:
        """Whether it tried tiers at random, whatever the plan would give a segment."""
        return any(tier.segment for tier in self.tiers.values())

    @property
    def segments(self) -> int:
        """How many segments it looked at."""
        if self.explored:
            return len({name for tier in self.tiers.values() for name in tier.segment})
        return sum(len(tier.generations) for tier in self.tiers.values())


def read_pilot(config: MillConfig, scored: Manifest | None) -> tuple[Pilot | None, list[str]]:
    """The pilot of this output, if it was made with the tiers, models, prompts and selection of this config; warnings.

    Args:
        scored: the manifest of the scored parts, None where there are none of this config.

    Raises:
        MillError: it can't be read.
    """
    url = Output(config.output).pilot
    if not storage.exists(url):
        return None, []
    try:
        found = json.loads(storage.read_bytes(url))
        if differ := [key for key, value in decides(config, scored).items() if found["config"].get(key) != value]:
            return None, [f"{url} was measured with another config ({', '.join(differ)}): add --pilot to measure again"]
        tiers = {
            name: MeasuredTier(**{key: tuple(values) for key, values in tier.items()})
            for name, tier in found["tiers"].items()
        }
        counts = {str(name): int(count) for name, count in found.get("counts", {}).items()}
        return Pilot(tiers=tiers, tokens_per_second=found["tokens_per_second"], counts=counts), []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MillError(f"{url} is not what a pilot writes: {error!r}; remove it, or add --pilot") from error


def write_pilot(config: MillConfig, scored: Manifest, pilot: Pilot, forecast: Mapping[str, Any]) -> None:
    """Store a pilot with the forecast of thinking tokens for this config's budget."""
    content = {
        "config": decides(config, scored),
        "budget": budget_section(config.budget),
        "forecast": dict(forecast),
        "tiers": {name: asdict(tier) for name, tier in pilot.tiers.items()},
        "tokens_per_second": dict(pilot.tokens_per_second),
        "counts": dict(pilot.counts),
    }
    storage.write_json(Output(config.output).pilot, content)


def budget_section(budget: BudgetConfig) -> dict[str, Any]:
    """The parts of the section that decide what is asked for; when to stop asking is none of them."""
    left_out = ("stop_if", *(CONTRACTION_KEYS if budget.contraction_model is None else ()))
    plain = {key: value for key, value in yaml_config.to_mapping(budget).items() if key not in left_out}
    return plain | {"tiers": plain_tiers(budget)}


def decides(config: MillConfig, scored: Manifest | None) -> dict[str, Any]:
    """What the measurements depend on: not how much is spent, and not at which price."""
    shown, planner = holdback_of(config), trace_planner(config)
    expectations = ("expected_tokens", "expected_resolution")
    return {
        "tiers": [{k: v for k, v in tier.items() if k not in expectations} for tier in plain_tiers(config.budget)],
        **plain_contraction(config.budget),
        **(index_inputs(config) if scored is not None else {}),
        "models": {name: planner.decides(name) for name in planner.models},
        "prompts": planner.prompt_versions(),
        "sampling": yaml_config.to_mapping(config.sampling),
        "closing": yaml_config.to_mapping(config.closing),
        "select": select_section(config),
        "value's code": value_digest(config.select.value_name) if shown.valued_tiers else "",
        "layout": "at_hard_span" if shown.at_hard_span else "",
        "tokenizer": config.tokenizer,
        "difficulty": scored.config["difficulty"] if scored is not None else None,
        **{f"the content of the {name}": digest for name, digest in _named(config).items()},
        **{f"the {name} of the scores": scored.inputs[name] for name in _OF_SCORES if scored and name in scored.inputs},
    }


_OF_SCORES = ("tokenizer", "scorer", "reference", "memory")
"""What decides how hard a segment is found, and so which ones a tier gets."""


def _named(config: MillConfig) -> dict[str, str]:
    """What is behind the names in the config, as name → digest: it may change while they stay.

    What can't be had here, such as the scorer where one generates, is left out, and held against nothing.
    """
    decontaminate = config.select.decontaminate
    asked: list[Callable[[], Mapping[str, str]]] = [
        lambda: recipe_inputs(config),
        lambda: judge_inputs(grading_of(config, time.time())),
        lambda: model_inputs(config.gain_difficulty) if asks_scorer(config) else {},
        lambda: {"benchmarks": index_digest(decontaminate)} if decontaminate is not None else {},
    ]
    found: dict[str, str] = {}
    for told in asked:
        with contextlib.suppress(MillError):
            found |= told()
    return found


def forecast_for(output: str, budget: Mapping[str, Any]) -> dict[str, Any] | None:
    """The forecast of thinking tokens that a pilot made for this `budget` section; None where there is none."""
    url = Output(output).pilot
    if not storage.exists(url):
        return None
    try:
        found = json.loads(storage.read_bytes(url))
        return (found["forecast"] or None) if found["budget"] == budget else None
    except (ValueError, KeyError, TypeError):
        return None  # it is for people alone, and not worth a run
