"""Stage 3, select: generations → kept traces and rejected ones, each with its reason.

requests ─┬─► by request ─► parsed, gated, chosen ─► stages/select/kept-*.arrow
ledger ───┘                                     └──► stages/select/rejected-*.arrow
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.typehints import KV

from augment.ledger import ledger_parts
from augment.transforms import ReadLedger, SelectCandidates
from pipelines.config import MillConfig
from pipelines.stage import StageRun, digest, run_stage
from sharding import manifest, records
from sharding.manifest import Manifest
from sharding.records import Candidate, FileEntry, LedgerRow, Request
from sharding.tokenizer import load_tokenizer
from sharding.transforms import GroupRecords, ReadParts, SumCountsCombineFn, WriteOnce, WriteParts


def select(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Run the stage unless it is done; the manifest, and whether it ran now."""
    augmented = manifest.require(config.output, "augment")
    tokenizer = load_tokenizer(config.tokenizer)
    run = StageRun(
        config.output,
        "select",
        sections={"tokenizer": config.tokenizer, "select": config.select},
        inputs={"augment": digest(augmented), "tokenizer": tokenizer.fingerprint},
    )
    num_parts = max(1, len(augmented.files.get("requests", [])))

    def build(pipeline: beam.Pipeline) -> None:
        requests = (
            pipeline
            | "Requests" >> ReadParts(manifest.file_urls(config.output, augmented, "requests"), Request)
            | "Request's key" >> beam.WithKeys(lambda request: request.request_key).with_output_types(KV[str, Request])
        )
        rows = pipeline | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url))
        selected = (
            {"requests": requests, "rows": rows}
            | "By request" >> GroupRecords(requests=Request, rows=LedgerRow)
            | "Select" >> SelectCandidates(config.select.gates, config.tokenizer)
        )
        files = {}
        for family, wanted in (("kept", True), ("rejected", False)):
            files[f"{family}_files"] = (
                selected["candidates"]
                | f"Are {family}" >> beam.Filter(lambda c, wanted=wanted: c.kept == wanted).with_output_types(Candidate)
                | f"Write {family}"
                >> WriteParts(
                    run.folder,
                    family,
                    records.candidate_schema(tokenizer.vocab_size),
                    kind=Candidate,
                    num_parts=num_parts,
                    partition_key=lambda candidate: candidate.doc_id,
                    sort_key=lambda candidate: (candidate.doc_id, candidate.segment_index, candidate.sample),
                )
            )
        counts = selected["counts"] | "Add up" >> beam.CombineGlobally(SumCountsCombineFn())
        pipeline | "Finish" >> WriteOnce(finisher(run, augmented), lists=files, singles={"counts": counts})

    return run_stage(run, build, beam_args=beam_args, replace=replace)


def finisher(run: StageRun, augmented: Manifest) -> Callable[..., None]:
    """What the last step does: check the account of candidates and publish the manifest."""

    def finish(kept_files: list[FileEntry], rejected_files: list[FileEntry], counts: dict[str, int]) -> None:
        totals = dict.fromkeys(("requested", "candidates", "missing", "kept", "rejected"), 0) | counts
        written = {
            "kept": sum(entry.rows for entry in kept_files),
            "rejected": sum(entry.rows for entry in rejected_files),
        }
        if any(written[name] != totals[name] for name in written) or totals["candidates"] != sum(written.values()):
            raise AssertionError(f"candidates in do not equal kept and rejected: {totals}, written {written}")
        # Not compared by number: segments of one text share a generation, and its failure.
        if totals["missing"] and not augmented.counts["failed"]:
            raise AssertionError(f"{totals['missing']} generations are missing from the ledger, though none had failed")
        selected = run.manifest(
            files=[("kept", entry) for entry in kept_files] + [("rejected", entry) for entry in rejected_files],
            counts=totals,
            facts={},
            rehearsal=augmented.rehearsal,
        )
        manifest.write(run.output, selected)

    return finish
