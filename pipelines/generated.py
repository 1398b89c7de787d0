"""What the augment stage says of what was generated, and when it is not good enough; beside the stage's chain."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from augment.feeding import worker
from augment.ledger.dropping import dropped_rows
from augment.requests.planner import TracePlanner
from difficulty.budget.allocation import Allocation
from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.counts import gain_facts, tier_facts
from pipelines.joints import Holdback, index_inputs, plain_contraction, recipe_inputs
from pipelines.plan.explored import bought_beside
from pipelines.plan.measured import forecast_for, read_pilot
from pipelines.rounds import round_facts
from pipelines.watch.planned import plan_of
from sharding import storage
from sharding.errors import MillError
from sharding.records.families import REQUESTS
from sharding.records.types import Request
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

logger = logging.getLogger(__name__)


def check_generated(counts: Mapping[str, int], config: MillConfig, folder: str) -> None:
    """Refuse a stage of whose generations too many failed, or have no text.

    Args:
        counts: of the augment stage.
        folder: of the stage.

    Raises:
        MillError: says how many, and the way out.
    """
    allowed = config.ledger.max_failed_fraction
    if counts["failed"] > allowed * counts["generations"]:
        raise MillError(
            f"{counts['failed']} of {counts['generations']} generations failed, more than "
            f"ledger.max_failed_fraction={allowed}: see {folder}/quarantine-*.arrow; "
            f"{worker.way_out(counts['failed'], counts.get('failed_for_good', 0))}"
        )
    without = counts.get("segments_without_contraction", 0)
    if without > allowed * (counts["requests"] + without):
        raise MillError(
            f"{without} segments have no thought, since what precedes them could not be contracted, which is more than "
            f"ledger.max_failed_fraction={allowed} allows: see {folder}/quarantine-*.arrow; what was made is in the "
            "ledger, run again to try the rest"
        )
    empty_allowed = config.ledger.max_empty_fraction
    if counts["empty"] > empty_allowed * counts["generations"]:
        raise worker.too_many_empty(counts["empty"], counts["generations"], empty_allowed, config.ledger_url)


def generation_facts(
    config: MillConfig,
    scored: Manifest,
    planner: TracePlanner,
    allocation: Allocation,
    counts: Mapping[str, int],
    budget: dict[str, Any],
    drops: Sequence[str],
) -> dict[str, Any]:
    """The facts of the stage's manifest.

    Args:
        budget: the section that the manifest records.
        drops: files of what was taken out of the ledger, as they were when the stage began.
    """
    return {
        "models": planner.describe(),
        "prompts": planner.prompt_versions(),
        "tiers": tier_facts(allocation, counts, scored.counts["segments"]),
        "target_spend": allocation.target_spend,
        "planned_spend": allocation.planned_spend,
        "unit": allocation.unit,
        "planned_tokens": allocation.planned_tokens,
        **gain_facts(allocation),
        "cut_points_nats": [nats for nats in allocation.cut_points_nats if nats != float("inf")],
        "forecast": forecast_for(config.output, budget),
        "warnings": list(allocation.warnings) + planner.warnings(),
        **({"contraction": plain_contraction(config.budget)} if config.budget.contraction_model else {}),
        **({"drops": list(drops)} if drops else {}),
        **({"round": further} if (further := round_facts(config, scored)) else {}),
    }


def augment_sections(
    config: MillConfig, budget: dict[str, Any], planner: TracePlanner, holdback: Holdback
) -> dict[str, Any]:
    """The parts of the config that decide what is generated.

    Args:
        budget: as the manifest records it.
    """
    return {
        "budget": budget,
        "models": {name: planner.decides(name) for name in planner.models},
        "sampling": config.sampling,
        "closing": config.closing,
        # The measure is among what the scores were made with.
        "holdback": {name: value for name, value in yaml_config.to_mapping(holdback).items() if name != "measure"},
    }


def augment_inputs(config: MillConfig, planner: TracePlanner) -> dict[str, str]:
    """What texts are made from beside the segments: prompts, recipes, passages, by content."""
    prompts = {f"prompt {name}": version for name, version in planner.prompt_versions().items()}
    return {**prompts, **recipe_inputs(config), **index_inputs(config)}


def tell_plan(
    config: MillConfig,
    scored: Manifest,
    planner: TracePlanner,
    allocation: Allocation,
    *,
    began_at: float,
    rehearsal: bool,
) -> None:
    """Write what is about to be generated, for `thoughtmill status` and the report; what drifted before is gone."""
    at = Output(config.output)
    for warning in planner.unknown_dialects():
        logger.warning("%s", warning)
    pilot, _ = read_pilot(config, scored)
    beside = bought_beside(pilot, allocation) if pilot is not None else ()
    plan = plan_of(config, allocation, planner, began_at=began_at, rehearsal=rehearsal, beside=beside)
    storage.write_json(at.plan, plan)
    storage.write_json(at.difficulty, {"histogram": scored.facts["histogram"], "allocation": allocation.to_json()})
    storage.remove(at.drift, config.output)


def without_prompt(request: Request) -> Request:
    """The request as it is stored; its prompt is most of it, and would be shuffled to be left out."""
    return msgspec.structs.replace(
        request, prompt_token_ids=request.prompt_token_ids[:0], text="", context="", focus=[], known=[], begun=[]
    )


def asked_for_dropped(config: MillConfig, found: Manifest, fresh: Iterable[str]) -> bool:
    """Whether a finished stage asked for something that was taken out of the ledger since.

    Args:
        found: the stage's manifest.
        fresh: the files of what was taken out since.
    """
    gone = set(dropped_rows(config.ledger_url, fresh, "request_key"))
    urls = manifest.file_urls(config.output, found, REQUESTS.name) if gone else []
    return any(
        request.request_key in gone for url in urls for request in storage.read_records(url, Request, ["request_key"])
    )
