"""Stage 3, select: generations → kept traces and rejected ones, each with its reason.

requests ─┬─► by request ─► candidates ─┬─► by document ─► gates ─┬─► valued, chosen ─► stages/select/kept-*.arrow
ledger ───┘                 segments ───┘                         ├─► controls ┘   └──► stages/select/rejected-*.arrow
                                                                  └─► stages/select/contaminated-*.arrow
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.typehints import KV

from augment.ledger.parts import ledger_parts
from augment.ledger.transforms import ReadLedger
from augment.selection.account import split_account
from augment.selection.benchmarks.index import index_digest, load_index
from augment.selection.transforms import ChooseCandidates, JudgeCandidates, MakeCandidates, PickControls
from augment.selection.values import needs_controls, value_digest
from difficulty.config import DifficultyConfig
from difficulty.transforms import shared_scorer
from pipelines import accounts
from pipelines.config import MillConfig
from pipelines.score import what_decides
from pipelines.shown import shown_of
from pipelines.stage import StageRun, run_stage
from sharding.beam.counts import AddUpCounts
from sharding.beam.joins import GroupRecords
from sharding.beam.part_join import part_count
from sharding.beam.parts import ReadParts, WriteOnce, WriteParts
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import CONTAMINATED, KEPT, REJECTED
from sharding.records.types import Candidate, ContaminatedDocument, FileEntry, LedgerRow, Request, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest, digest

SEGMENT_COLUMNS = ("doc_id", "segment_index", "input_ids")


def select(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Run the stage unless it is done; the manifest, and whether it ran now."""
    scored = manifest.require(config.output, "score")
    augmented = manifest.require(config.output, "augment")
    tokenizer = load_tokenizer(config.tokenizer)
    valued_tiers = shown_of(config).valued_tiers
    run = StageRun(
        config.output,
        "select",
        sections={
            "tokenizer": config.tokenizer,
            "select": config.select,
            "scorer": what_decides(config.difficulty) if valued_tiers else None,
        },
        inputs=_inputs(config, augmented, tokenizer.fingerprint),
    )
    segment_urls = manifest.file_urls(config.output, scored, "segments")
    num_parts = part_count(segment_urls)
    finish = finisher(run, config, augmented)

    def build(pipeline: beam.Pipeline) -> None:
        requests = (
            pipeline
            | "Requests" >> ReadParts(manifest.file_urls(config.output, augmented, "requests"), Request)
            | "Request's key" >> beam.WithKeys(lambda request: request.request_key).with_output_types(KV[str, Request])
        )
        rows = pipeline | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url))
        made = (
            {"requests": requests, "rows": rows}
            | "By request" >> GroupRecords(num_parts, requests=Request, rows=LedgerRow)
            | "Candidates" >> MakeCandidates(config.tokenizer)
        )
        segments = pipeline | "Segments" >> ReadParts(segment_urls, ScoredSegment, SEGMENT_COLUMNS)
        judged = (
            {
                "segments": segments | "Segment's document" >> by_document(ScoredSegment),
                "candidates": made["candidates"] | "Candidate's document" >> by_document(Candidate),
            }
            | "By document" >> GroupRecords(num_parts, segments=ScoredSegment, candidates=Candidate)
            | "Judge" >> JudgeCandidates(config.select, config.tokenizer, valued_tiers)
        )
        if valued_tiers and needs_controls(config.select.value_name):
            controls = judged["judged"] | "Controls" >> PickControls(config.select.gain.control_pool)
        else:
            controls = pipeline | "No controls" >> beam.Create([])
        chosen = judged["judged"] | "Choose" >> ChooseCandidates(
            config.select, ScorerNats(config.difficulty), config.difficulty.threshold_nats, controls
        )
        files = {
            f"{family.name}_files": chosen["candidates"]
            | f"Are {family.name}"
            >> beam.Filter(lambda c, wanted=wanted: c.kept == wanted).with_output_types(Candidate)
            | f"Write {family.name}" >> WriteParts(run.folder, family, num_parts, vocab_size=tokenizer.vocab_size)
            for family, wanted in ((KEPT, True), (REJECTED, False))
        }
        files["contaminated_files"] = judged["contaminated"] | "Write contaminated" >> WriteParts(
            run.folder, CONTAMINATED, num_parts
        )
        counts = (
            made["counts"],
            chosen["counts"],
            judged["contaminated"] | "Count contaminated" >> beam.Map(contaminated_counts),
        ) | "Counts" >> AddUpCounts()
        pipeline | "Finish" >> WriteOnce(finish, lists=files, singles={"counts": counts})

    # Without a generation or a benchmark there is nothing to hold against the text.
    idle = not augmented.counts["generations"] and config.select.decontaminate is None
    without_work = partial(finish, [], [], [], {}) if idle else None
    return run_stage(run, build, without_work=without_work, beam_args=beam_args, replace=replace)


def by_document(kind: type[Any]) -> beam.PTransform:
    """Records under the id of their document."""
    return beam.WithKeys(lambda record: record.doc_id).with_output_types(KV[str, kind])


def _inputs(config: MillConfig, augmented: Manifest, tokenizer_fingerprint: str) -> dict[str, str]:
    """What the stage reads beside its config, by name → digest."""
    inputs = {"augment": digest(augmented), "tokenizer": tokenizer_fingerprint}
    if config.select.decontaminate is not None:
        inputs["benchmarks"] = index_digest(config.select.decontaminate)
    code = value_digest(config.select.value_name)
    return inputs | ({"value": code} if code else {})


@dataclass(frozen=True)
class ScorerNats:
    """Asks the scorer of the first stage, which is loaded with the first question: what joins values and difficulty."""

    difficulty: DifficultyConfig

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int) -> np.ndarray:
        return shared_scorer(self.difficulty).nats_after(prefixes, text, skipped)


def contaminated_counts(document: ContaminatedDocument) -> dict[str, int]:
    """What one contaminated document adds to the stage's counts."""
    counts = {"documents_contaminated": 1, "source_tokens_contaminated": document.source_tokens}
    return counts | {f"contaminated.{benchmark}": 1 for benchmark in document.benchmarks}


def finisher(run: StageRun, config: MillConfig, augmented: Manifest) -> Callable[..., None]:
    """What the last step does: check the account of candidates and publish the manifest."""

    def finish(
        kept_files: list[FileEntry],
        rejected_files: list[FileEntry],
        contaminated_files: list[FileEntry],
        counts: dict[str, int],
    ) -> None:
        names = ("requested", "candidates", "missing", "kept", "rejected", "thought_tokens", "kept_thought_tokens")
        plain, account = split_account(counts)
        totals = dict.fromkeys(names, 0) | plain
        families = {"kept": kept_files, "rejected": rejected_files, "contaminated": contaminated_files}
        decontaminate = config.select.decontaminate
        selected = run.manifest(
            files=[(family, entry) for family, files in families.items() for entry in files],
            counts=totals,
            facts={
                "account": account,
                "value": config.select.value_name if shown_of(config).valued_tiers else "none",
                "decontamination": decontaminate
                and {"action": decontaminate.action, "benchmarks": load_index(decontaminate).describe()},
            },
            rehearsal=augmented.rehearsal,
        )
        accounts.check("select", {"augment": augmented, "select": selected})
        manifest.write(run.output, selected)

    return finish
