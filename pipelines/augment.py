"""Stage 2, augment: segments → tiers → requests → generations in the ledger.

segments ─► tier ─► prompt ─► request ─┬─► stages/augment/requests-*.arrow
                                       └─► without those the ledger has ─► generate, a branch per model ─► ledger
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV

from augment.feeding import worker
from augment.feeding.heartbeat import clear_beats
from augment.feeding.worker import WorkOrder
from augment.ledger.parts import ledger_parts
from augment.ledger.transforms import FOUND_COLUMNS, FindMissing, ReadLedger
from augment.transforms import FAILED, GenerateMissing, MakeRequests
from pipelines.config import MillConfig
from pipelines.counts import request_counts, tier_facts
from pipelines.joints import Focus, holdback_of, plan_budget, trace_planner
from pipelines.plan.measured import forecast_for
from pipelines.stage import Built, Outcome, Stage
from pipelines.watch.status import plan_of, planned_generations
from sharding import storage
from sharding.beam.part_names import part_count
from sharding.beam.parts import WriteParts
from sharding.errors import MillError
from sharding.records.families import QUARANTINE, REQUESTS
from sharding.records.types import Request
from sharding.storage import manifest

ALWAYS_COUNTED = (
    *("requests", "generations", "found", "generated", "failed"),
    *("thought_tokens_found", "thought_tokens_now"),
)


class Augment(Stage):
    """The augment stage of a run."""

    name = "augment"

    def __init__(self, config: MillConfig) -> None:
        self.config = config
        self.scored = manifest.require(config.output, "score")
        self.planner = trace_planner(config)
        self.holdback = holdback_of(config)
        self.allocation = plan_budget(config, self.scored)
        self.idle = not self.planner.models  # every tier skips
        prompts = {f"prompt {name}": version for name, version in self.planner.prompt_versions().items()}
        super().__init__(
            config.output,
            sections={
                "budget": config.budget,
                "models": {name: self.planner.decides(name) for name in self.planner.models},
                "sampling": config.sampling,
                "closing": config.closing,
                "holdback": self.holdback,
            },
            inputs={"score": manifest.digest(self.scored), **prompts},
            earlier=(self.scored,),
            rehearsal=any(model.engine == "rehearsal" for model in self.planner.models.values()),
        )

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        plan = plan_of(
            self.config, self.allocation, self.planner, began_at=self.started_at, rehearsal=self.rehearsal
        )  # for `thoughtmill status`
        storage.write_json(self.at.plan, plan)
        spending = {"histogram": self.scored.facts["histogram"], "allocation": self.allocation.to_json()}
        storage.write_json(self.at.difficulty, spending)
        try:
            yield
        finally:
            # An engine of this process would hold its memory through the stages that don't generate.
            worker.close_all()
            clear_beats(self.at.alive)

    def build(self, root: beam.Pipeline) -> Built:
        config, planner = self.config, self.planner
        segments = manifest.file_urls(config.output, self.scored, "segments")
        num_parts = part_count(segments)
        focus = Focus(config.tokenizer, config.difficulty.threshold_nats)
        made = root | "Requests" >> MakeRequests(
            segments, planner, tier_of=self.allocation.tier_of, shown_of=self.holdback, focus_of=focus
        )
        requests = made["requests"]
        stored = requests | "Without prompts" >> beam.Map(without_prompt).with_output_types(Request)
        rows = root | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url), FOUND_COLUMNS)
        keyed = requests | "Request's key" >> beam.WithKeys(lambda r: r.request_key).with_output_types(KV[str, Request])
        missing = {"requests": keyed, "rows": rows} | "Missing" >> FindMissing(num_parts)
        generated = missing["requests"] | "Generate" >> GenerateMissing(planner, config.feeding, self._work_order())
        failed = (made[FAILED], generated[FAILED]) | "All failed" >> beam.Flatten()
        return Built(
            files={
                "requests": stored | "Write requests" >> WriteParts(self.folder, REQUESTS, num_parts),
                "quarantine": failed | "Write quarantine" >> WriteParts(self.folder, QUARANTINE, num_parts),
            },
            counts=(
                missing["counts"],
                requests | "Count requests" >> beam.Map(request_counts),
                generated["counts"],
            ),
        )

    def _work_order(self) -> WorkOrder:
        """What the worker processes need to know of this run."""
        config = self.config
        return WorkOrder(
            run_id=secrets.token_hex(8),
            began_ms=int(self.started_at * 1000),
            ledger_url=config.ledger_url,
            flush_rows=config.ledger.flush_rows,
            flush_seconds=config.ledger.flush_seconds,
            planned_generations=math.ceil(sum(planned_generations(config, self.allocation).values())),
            max_failed_fraction=config.ledger.max_failed_fraction,
            beats_url=self.at.alive,
        )

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        allocation, planner = self.allocation, self.planner
        counts = dict.fromkeys(ALWAYS_COUNTED, 0) | outcome.counts
        counts["thought_tokens"] = counts["thought_tokens_found"] + counts["thought_tokens_now"]
        allowed = self.config.ledger.max_failed_fraction
        if counts["failed"] > allowed * counts["generations"]:
            raise MillError(
                f"{counts['failed']} of {counts['generations']} generations failed, more than "
                f"ledger.max_failed_fraction={allowed}: see {self.folder}/quarantine-*.arrow; what was generated is in "
                "the ledger, run again to try the rest"
            )
        return counts, {
            "models": planner.describe(),
            "prompts": planner.prompt_versions(),
            "tiers": tier_facts(allocation, counts, self.scored.counts["segments"]),
            "target_spend": allocation.target_spend,
            "planned_spend": allocation.planned_spend,
            "unit": allocation.unit,
            "planned_tokens": allocation.planned_tokens,
            "cut_points_nats": [nats for nats in allocation.cut_points_nats if nats != float("inf")],
            "forecast": forecast_for(self.output, self.sections["budget"]),
            "warnings": list(allocation.warnings) + planner.warnings(),
        }


def without_prompt(request: Request) -> Request:
    """The request as it is stored; its prompt is most of it, and would be shuffled to be left out."""
    return msgspec.structs.replace(request, prompt_token_ids=request.prompt_token_ids[:0])
