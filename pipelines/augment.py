"""Stage 2, augment: segments → tiers → requests → generations in the ledger.

segments ─► tier ─► prompt ─► request ─┬─► stages/augment/requests-*.arrow
                                       └─► without those the ledger has ─► generate, a branch per model ─► ledger
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV

from augment.feeding import worker
from augment.feeding.heartbeat import clear_beats
from augment.feeding.worker import WorkOrder
from augment.ledger.parts import ledger_parts
from augment.ledger.transforms import FOUND_COLUMNS, FindMissing, ReadLedger
from augment.requests.planner import TracePlanner
from augment.transforms import FAILED, GenerateMissing, MakeRequests
from difficulty.budget.allocation import Allocation
from pipelines.config import LedgerConfig, MillConfig
from pipelines.plan.measured import forecast_for
from pipelines.planning import Focus, plan_budget, trace_planner
from pipelines.shown import shown_of
from pipelines.stage import StageRun, run_stage
from pipelines.watch.status import PLAN_NAME, beats_url, plan_of, planned_generations
from sharding import records, storage
from sharding.beam.counts import AddUpCounts
from sharding.beam.part_join import part_count
from sharding.beam.parts import WriteOnce, WriteParts, write_quarantine
from sharding.errors import MillError
from sharding.records.types import FileEntry, Request
from sharding.storage import manifest
from sharding.storage.manifest import Manifest, digest

DIFFICULTY_NAME = "difficulty.json"
"""In the output: histogram and quantiles of difficulty, cut points, and what each tier is expected to spend."""


def augment(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Run the stage unless it is done; the manifest, and whether it ran now."""
    scored = manifest.require(config.output, "score")
    planner = trace_planner(config)
    shown = shown_of(config)
    prompts = {f"prompt {name}": version for name, version in planner.prompt_versions().items()}
    run = StageRun(
        config.output,
        "augment",
        sections={
            "budget": config.budget,
            "models": {name: planner.decides(name) for name in planner.models},
            "sampling": config.sampling,
            "closing": config.closing,
            "shown": shown,
        },
        inputs={"score": digest(scored), **prompts},
    )
    allocation = plan_budget(config, scored)
    order = work_order(run, config, allocation)
    segment_urls = manifest.file_urls(config.output, scored, "segments")
    num_parts = part_count(segment_urls)

    finish = finisher(run, config.ledger, allocation, planner, scored)

    def every_tier_skips() -> None:
        write_plan(run, config, scored, allocation, planner)
        finish([], [], {})

    def build(pipeline: beam.Pipeline) -> None:
        write_plan(run, config, scored, allocation, planner)
        made = pipeline | "Requests" >> MakeRequests(
            segment_urls,
            planner,
            tier_of=allocation.tier_of,
            shown_of=shown,
            focus_of=Focus(config.tokenizer, config.difficulty.threshold_nats),
        )
        requests = made["requests"]
        stored = requests | "Without prompts" >> beam.Map(without_prompt).with_output_types(Request)
        request_files = stored | "Write requests" >> WriteParts(
            run.folder,
            "requests",
            records.REQUEST_SCHEMA,
            kind=Request,
            num_parts=num_parts,
            partition_key=lambda request: request.doc_id,
            sort_key=lambda request: (request.doc_id, request.segment_index),
        )
        missing = {
            "requests": requests
            | "Request's key" >> beam.WithKeys(lambda request: request.request_key).with_output_types(KV[str, Request]),
            "rows": pipeline | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url), FOUND_COLUMNS),
        } | "Missing" >> FindMissing(num_parts)
        generated = missing["requests"] | "Generate" >> GenerateMissing(planner, config.feeding, order)
        failed = (made[FAILED], generated[FAILED])
        quarantine_files = (
            failed | "All failed" >> beam.Flatten() | "Write quarantine" >> write_quarantine(run.folder, num_parts)
        )
        totals = (
            missing["counts"],
            requests | "Count requests" >> beam.Map(request_counts),
            generated["counts"],
        ) | "Counts" >> AddUpCounts()
        pipeline | "Finish" >> WriteOnce(
            finish,
            lists={"request_files": request_files, "quarantine_files": quarantine_files},
            singles={"counts": totals},
        )

    try:
        without_work = None if planner.models else every_tier_skips
        return run_stage(run, build, without_work=without_work, beam_args=beam_args, replace=replace)
    finally:
        # An engine of this process would hold its memory through the stages that don't generate.
        worker.close_all()
        clear_beats(beats_url(config.output))


def work_order(run: StageRun, config: MillConfig, allocation: Allocation) -> WorkOrder:
    """What the worker processes need to know of this run."""
    return WorkOrder(
        run_id=secrets.token_hex(8),
        began_ms=int(run.started_at * 1000),
        ledger_url=config.ledger_url,
        flush_rows=config.ledger.flush_rows,
        flush_seconds=config.ledger.flush_seconds,
        planned_generations=math.ceil(sum(planned_generations(config, allocation).values())),
        max_failed_fraction=config.ledger.max_failed_fraction,
        beats_url=beats_url(config.output),
    )


def write_plan(
    run: StageRun, config: MillConfig, scored: Manifest, allocation: Allocation, planner: TracePlanner
) -> None:
    """What is about to be generated, for `thoughtmill status`; and the difficulty with the plan that spends on it."""
    plan = plan_of(config, allocation, planner, began_at=run.started_at, rehearsal=_is_rehearsal(scored, planner))
    storage.write_json(storage.join(run.folder, PLAN_NAME), plan)
    storage.write_json(
        storage.join(config.output, DIFFICULTY_NAME),
        {"histogram": scored.facts["histogram"], "allocation": allocation.to_json()},
    )


def without_prompt(request: Request) -> Request:
    """The request as it is stored; its prompt is most of it, and would be shuffled to be left out."""
    return msgspec.structs.replace(request, prompt_token_ids=request.prompt_token_ids[:0])


def request_counts(request: Request) -> dict[str, int]:
    """What one request adds to the stage's counts."""
    return {"requests": 1, f"tier.{request.tier}.requests": 1, f"tier.{request.tier}.samples": request.samples}


def finisher(
    run: StageRun, ledger: LedgerConfig, allocation: Allocation, planner: TracePlanner, scored: Manifest
) -> Callable[..., None]:
    """What the last step does: check that few enough requests failed and publish the manifest."""

    def finish(request_files: list[FileEntry], quarantine_files: list[FileEntry], counts: dict[str, int]) -> None:
        names = (
            "requests",
            "generations",
            "found",
            "generated",
            "failed",
            "thought_tokens_found",
            "thought_tokens_now",
        )
        totals = dict.fromkeys(names, 0) | counts
        if (written := sum(entry.rows for entry in request_files)) != totals["requests"]:
            raise AssertionError(f"{written} requests were written, of {totals['requests']}")
        if totals["generations"] != totals["found"] + totals["generated"] + totals["failed"]:
            raise AssertionError(f"generations wanted do not equal those found, made and failed: {totals}")
        if totals["failed"] > ledger.max_failed_fraction * totals["generations"]:
            raise MillError(
                f"{totals['failed']} of {totals['generations']} generations failed, more than "
                f"ledger.max_failed_fraction={ledger.max_failed_fraction}: see {run.folder}/quarantine-*.arrow; what "
                "was generated is in the ledger, run again to try the rest"
            )
        totals["thought_tokens"] = totals["thought_tokens_found"] + totals["thought_tokens_now"]
        augmented = run.manifest(
            files=[("requests", entry) for entry in request_files]
            + [("quarantine", entry) for entry in quarantine_files],
            counts=totals,
            facts={
                "models": planner.describe(),
                "prompts": planner.prompt_versions(),
                "tiers": _tier_facts(allocation, totals, scored.counts["segments"]),
                "target_spend": allocation.target_spend,
                "planned_spend": allocation.planned_spend,
                "unit": allocation.unit,
                "planned_tokens": allocation.planned_tokens,
                "cut_points_nats": [nats for nats in allocation.cut_points_nats if nats != float("inf")],
                "forecast": forecast_for(run.output, run.config["budget"]),
                "warnings": list(allocation.warnings) + planner.warnings(),
            },
            rehearsal=_is_rehearsal(scored, planner),
        )
        manifest.write(run.output, augmented)

    return finish


def _tier_facts(allocation: Allocation, counts: dict[str, int], num_segments: int) -> list[dict[str, Any]]:
    """What each tier was to get and got; the segments that made no request are those of the tier that skips."""
    facts = [
        {
            "name": tier.name,
            "segments": counts.get(f"tier.{tier.name}.requests", 0),
            "generations": counts.get(f"tier.{tier.name}.samples", 0),
            "planned_segments": tier.segments,
            "planned_tokens": tier.tokens,
        }
        for tier in allocation.tiers
    ]
    for tier, fact in zip(allocation.tiers, facts, strict=True):
        if tier.tokens == 0 and tier.resolution == 0:
            fact["segments"] = num_segments - counts["requests"]
    return facts


def _is_rehearsal(scored: Manifest, planner: TracePlanner) -> bool:
    return scored.rehearsal or any(model.engine == "rehearsal" for model in planner.models.values())
