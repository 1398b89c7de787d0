"""The plan of the documents that a delivery joins, carried over to the delivery's: see `difficulty.budget.carrying`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from difficulty.budget.allocation import Allocation
from difficulty.budget.carrying import carry_over
from difficulty.budget.histogram import DifficultyHistogram
from pipelines.config import MillConfig
from pipelines.joints.budget import prices
from sharding import hashing, storage
from sharding.errors import MillError
from sharding.storage import manifest
from sharding.storage.json_files import read_json
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output


@dataclass(frozen=True)
class CarriedBudget:
    """A plan that is carried over.

    Attributes:
        allocation: for the documents of the delivery.
        digest: of all that decides the tier of a segment.
    """

    allocation: Allocation
    digest: str


class _Spending(msgspec.Struct):
    allocation: dict[str, Any]


def first_allocation(output: str) -> Allocation:
    """The plan that the first documents of an output were milled by.

    Raises:
        MillError: the file is absent, something else, or not that of the augment stage's manifest.
    """
    url, augmented = Output(output).difficulty, manifest.require(output, "augment")
    if not storage.exists(url):
        raise MillError(
            f"{url} is missing: the cut points of the first documents are in it; give the delivery a plan "
            "of its own (--own-plan)"
        )
    made = Allocation.from_json(read_json(url, _Spending, "the plan of a budget").allocation)
    cuts = [nats for nats in made.cut_points_nats if nats != float("inf")]
    if (made.planned_spend, cuts) != (augmented.facts.get("planned_spend"), augmented.facts.get("cut_points_nats", [])):
        raise MillError(f"{url} is not the plan that {manifest.manifest_url(output, 'augment')} tells of")
    return made


def carried_budget(config: MillConfig, scored: Manifest) -> CarriedBudget | None:
    """What a delivery spends by that goes by the plan of the documents it joins; None of every other run.

    Args:
        scored: the manifest of the delivery's scores.

    Raises:
        RequestError: the plan can't be carried over.
        MillError: it isn't there.
    """
    if config.delivery is None or config.delivery.allocation == "own":
        return None
    made = first_allocation(config.delivery.of)
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    shared = None if made.shared_bin is None else [made.shared_bin.bin, made.shared_bin.step, made.shared_bin.share]
    decides = [made.policy, made.axis, made.shift, made.choices, made.cuts, shared]
    return CarriedBudget(
        carry_over(made, histogram, config.budget, prices(config)), hashing.fingerprint([json.dumps(decides)])
    )
