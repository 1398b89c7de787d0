"""Stage 2, augment: segments → tiers → requests → generations in the ledger.

segments ─► tier ─► context ─► prompt ─► request ─┬─► stages/augment/requests-*.arrow
                                                  └─► what the ledger lacks ─► generate, a branch per model ─► ledger
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from augment.contexts.transforms import ContractDocuments
from augment.feeding import worker
from augment.feeding.heartbeat import clear_beats
from augment.feeding.lengths import measured_in
from augment.feeding.worker import WorkOrder
from augment.ledger.dropping import drops
from augment.ledger.parts import PARTIAL_PART, ledger_parts
from augment.ledger.transforms import FOUND_COLUMNS, FindMissing, ReadLedger
from augment.transforms import FAILED, SEGMENT_COLUMNS, GenerateMissing, MakeRequests
from difficulty.budget.allocation import Allocation
from pipelines.config import MillConfig
from pipelines.counts import request_counts
from pipelines.generated import (
    asked_for_dropped,
    augment_inputs,
    augment_sections,
    check_generated,
    generation_facts,
    tell_plan,
    without_prompt,
)
from pipelines.joints import Choices, holdback_of, plan_budget, trace_planner, with_index, work_order
from pipelines.joints.carried import carried_budget
from pipelines.outcome import Built, Outcome
from pipelines.passages import build_index
from pipelines.plan.corpus_steps import corpus_steps
from pipelines.plan.drift_watch import held_against_pilot
from pipelines.plan.expected_gain import GAIN_COLUMNS, expected_gain
from pipelines.plan.measured import budget_section
from pipelines.stage import Stage
from pipelines.stopping import draining, on_notice
from pipelines.watch.planned import planned_generations
from sharding import storage
from sharding.beam.joins import JoinParts
from sharding.beam.part_join import Parts
from sharding.beam.part_names import part_count
from sharding.records.families import QUARANTINE, REQUESTS, SEGMENTS
from sharding.records.types import Request
from sharding.storage import clock, manifest
from sharding.storage.manifest import Manifest

SECONDS_PER_GENERATION = 0.15e-3
"""On one core, but for the engine's time: docs/benchmarks.md, resume."""


class Augment(Stage):
    """The augment stage of a run."""

    name = "augment"
    order: WorkOrder

    def __init__(self, config: MillConfig) -> None:
        asked, self.scored = config, manifest.require(config.output, "score")
        self.expected = expected_gain(config, self.scored)
        self.config = config = asked if self.expected is None else self.expected.config
        self.planner = with_index(trace_planner(config), config)
        self.holdback = holdback_of(config)
        self.idle = not self.planner.models  # every tier skips
        columns = (*SEGMENT_COLUMNS, *(GAIN_COLUMNS if self.expected is not None else ()))
        self.segments = Parts.of(config.output, self.scored, SEGMENTS, columns)
        self.num_parts = part_count(self.segments.urls)
        self.drops = drops(config.ledger_url)  # before its parts are listed
        carried = carried_budget(config, self.scored)
        super().__init__(
            config.output,
            sections=augment_sections(config, budget_section(asked.budget), self.planner, self.holdback),
            inputs={
                "score": manifest.digest(self.scored),
                **augment_inputs(config, self.planner),
                **({"gain": self.expected.digest} if self.expected is not None else {}),
                **({"allocation": carried.digest} if carried is not None else {}),
            },
            earlier=(self.scored,),
            rehearsal=any(model.engine == "rehearsal" for model in self.planner.models.values()),
        )
        if self.expected is None:
            self._spend_by(plan_budget(config, self.scored) if carried is None else carried.allocation)

    def prepare(self, options: PipelineOptions) -> None:
        """Where the plan goes by expected gain it takes a look at every segment, and is refused before it costs; where
        tiers show passages, these are indexed. What the ledger has says how long generations are, and its store when
        this run began."""
        if self.expected is not None:
            steps = corpus_steps(self.expected, self.scored, options, self.output)
            self._spend_by(plan_budget(self.config, self.scored, (self.expected.gains, steps)))
        if self.planner.index is not None:
            build_index(self.config, self.planner.index, options)
        ledger = self.config.ledger_url
        self.order = dataclasses.replace(self.order, lengths=measured_in(ledger), began_ms=clock.now_ms(ledger))

    def _spend_by(self, allocation: Allocation) -> None:
        self.allocation = allocation
        self.choices = Choices(allocation, self.holdback, self.expected.gains if self.expected is not None else None)
        generations = math.ceil(sum(planned_generations(self.config, allocation).values()))
        self.work_s = SECONDS_PER_GENERATION * generations
        self.order = work_order(self.config, self.started_at, planned_generations=generations, beats_url=self.at.alive)

    def revised(self, found: Manifest) -> Manifest | None:
        """None where generations that this stage asked for were dropped from the ledger since it was made."""
        fresh = set(self.drops) - set(found.facts.get("drops", ()))
        if fresh and asked_for_dropped(self.config, found, fresh):
            return None
        return super().revised(found)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        storage.sweep(self.config.ledger_url)
        allocation, began = self.allocation, self.started_at
        tell_plan(self.config, self.scored, self.planner, allocation, began_at=began, rehearsal=self.rehearsal)
        try:
            watched = held_against_pilot(self.config, self.scored, self.planner, self.order, allocation)
            with watched, draining(self.order.drain_s):
                yield
        finally:
            # An engine of this process would hold its memory through the stages that don't generate.
            worker.close_all(drain=on_notice())
            clear_beats(self.at.alive, self.output)

    def build(self, root: beam.Pipeline) -> Built:
        feeding, ledger, planner = self.config.feeding, self.config.ledger_url, self.planner
        documents = root | "Documents" >> JoinParts(self.segments)
        rows = root | "Ledger" >> ReadLedger(ledger_parts(ledger), FOUND_COLUMNS)
        contract = ContractDocuments(planner, self.choices, feeding, self.order, self.num_parts)
        contracted = {"documents": documents, "rows": rows} | "Contract" >> contract
        made = contracted["documents"] | "Requests" >> MakeRequests(planner, self.choices)
        begun = root | "Interrupted" >> ReadLedger(ledger_parts(ledger, kind=PARTIAL_PART))
        wanted = {"requests": made["requests"], "rows": rows, "begun": begun}
        missing = wanted | "Missing" >> FindMissing(self.num_parts)
        generated = missing["requests"] | "Generate" >> GenerateMissing(planner, feeding, self.order, self.num_parts)
        failed = (made[FAILED], generated[FAILED]) | "All failed" >> beam.Flatten()
        requests = made["requests"] | "Without prompts" >> beam.Map(without_prompt).with_output_types(Request)
        return Built(
            parts={REQUESTS: requests, QUARANTINE: failed},
            counts=(
                *(contracted["counts"], missing["counts"], generated["counts"]),
                requests | "Count requests" >> beam.Map(request_counts),
            ),
        )

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        counts = outcome.counts
        counts |= {"thought_tokens": counts["thought_tokens_found"] + counts["thought_tokens_now"]}
        check_generated(counts, self.config, self.folder)
        spent_by = self.sections["budget"]
        return counts, generation_facts(
            self.config, self.scored, self.planner, self.allocation, counts, spent_by, self.drops
        )
