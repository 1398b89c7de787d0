"""Stage 3, select: generations → kept traces and rejected ones, each with its reason.

requests ─┬─► by request ─► candidates ─┬─► by document ─► gates ─┬─► valued, chosen ─► stages/select/kept-*.arrow
ledger ───┘                 segments ───┘                         ├─► controls ┘   └──► stages/select/rejected-*.arrow
                                                                  └─► stages/select/contaminated-*.arrow
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.typehints import KV

from augment.ledger.parts import ledger_parts
from augment.ledger.transforms import ReadLedger
from augment.selection.account import split_account
from augment.selection.benchmarks.index import index_digest, load_index
from augment.selection.transforms import ChooseCandidates, JudgeCandidates, MakeCandidates, PickControls
from augment.selection.values import needs_controls, value_digest
from pipelines.config import MillConfig
from pipelines.counts import contaminated_counts
from pipelines.joints import ScorerNats, asks_scorer, holdback_of
from pipelines.scorer_identity import difficulty_section, model_inputs
from pipelines.stage import Built, Outcome, Stage
from sharding.beam.joins import GroupRecords
from sharding.beam.part_names import part_count
from sharding.beam.parts import ReadParts, WriteParts
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import CONTAMINATED, KEPT, REJECTED
from sharding.records.types import Candidate, LedgerRow, Request, ScoredSegment
from sharding.storage import manifest

SEGMENT_COLUMNS = ("doc_id", "segment_index", "input_ids")
ALWAYS_COUNTED = ("requested", "candidates", "missing", "kept", "rejected", "thought_tokens", "kept_thought_tokens")


class Select(Stage):
    """The select stage of a run."""

    name = "select"

    def __init__(self, config: MillConfig) -> None:
        self.config = config
        self.scored = manifest.require(config.output, "score")
        self.augmented = manifest.require(config.output, "augment")
        self.valued_tiers = holdback_of(config).valued_tiers
        self.tokenizer = load_tokenizer(config.tokenizer)
        # Without a generation or a benchmark there is nothing to hold against the text.
        self.idle = not self.augmented.counts["generations"] and config.select.decontaminate is None
        code = value_digest(config.select.value_name)
        super().__init__(
            config.output,
            sections={
                "tokenizer": config.tokenizer,
                "select": config.select,
                "scorer": difficulty_section(config.difficulty) if self.valued_tiers else None,
            },
            inputs={
                "augment": manifest.digest(self.augmented),
                "tokenizer": self.tokenizer.fingerprint,
                **({"benchmarks": index_digest(config.select.decontaminate)} if config.select.decontaminate else {}),
                **({"value": code} if code else {}),
                **(model_inputs(config.difficulty) if asks_scorer(config) else {}),
            },
            earlier=(self.augmented,),
        )

    def build(self, root: beam.Pipeline) -> Built:
        config, chosen_by, difficulty = self.config, self.config.select, self.config.difficulty
        segment_urls = manifest.file_urls(config.output, self.scored, "segments")
        num_parts = part_count(segment_urls)
        requests = (
            root
            | "Requests" >> ReadParts(manifest.file_urls(config.output, self.augmented, "requests"), Request)
            | "Request's key" >> beam.WithKeys(lambda request: request.request_key).with_output_types(KV[str, Request])
        )
        rows = root | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url))
        made = (
            {"requests": requests, "rows": rows}
            | "By request" >> GroupRecords(num_parts, requests=Request, rows=LedgerRow)
            | "Candidates" >> MakeCandidates(config.tokenizer)
        )
        segments = root | "Segments" >> ReadParts(segment_urls, ScoredSegment, SEGMENT_COLUMNS)
        judged = (
            {
                "segments": segments | "Segment's document" >> by_document(ScoredSegment),
                "candidates": made["candidates"] | "Candidate's document" >> by_document(Candidate),
            }
            | "By document" >> GroupRecords(num_parts, segments=ScoredSegment, candidates=Candidate)
            | "Judge" >> JudgeCandidates(chosen_by, config.tokenizer, self.valued_tiers)
        )
        if self.valued_tiers and needs_controls(chosen_by.value_name):
            controls = judged["judged"] | "Controls" >> PickControls(chosen_by.gain.control_pool)
        else:
            controls = root | "No controls" >> beam.Create([])
        chosen = judged["judged"] | "Choose" >> ChooseCandidates(
            chosen_by, ScorerNats(difficulty), difficulty.threshold_nats, controls
        )
        files = {
            family.name: chosen["candidates"]
            | f"Are {family.name}"
            >> beam.Filter(lambda c, wanted=wanted: c.kept == wanted).with_output_types(Candidate)
            | f"Write {family.name}" >> WriteParts(self.folder, family, num_parts, vocab_size=self.tokenizer.vocab_size)
            for family, wanted in ((KEPT, True), (REJECTED, False))
        }
        files["contaminated"] = judged["contaminated"] | "Write contaminated" >> WriteParts(
            self.folder, CONTAMINATED, num_parts
        )
        return Built(
            files=files,
            counts=(
                made["counts"],
                chosen["counts"],
                judged["contaminated"] | "Count contaminated" >> beam.Map(contaminated_counts),
            ),
        )

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        counts, account = split_account(outcome.counts)
        decontaminate = self.config.select.decontaminate
        return dict.fromkeys(ALWAYS_COUNTED, 0) | counts, {
            "account": account,
            "value": self.config.select.value_name if self.valued_tiers else "none",
            "decontamination": decontaminate
            and {"action": decontaminate.action, "benchmarks": load_index(decontaminate).describe()},
        }


def by_document(kind: type[Any]) -> beam.PTransform:
    """Records under the id of their document."""
    return beam.WithKeys(lambda record: record.doc_id).with_output_types(KV[str, kind])
