"""Stage 3, select: generations → kept traces and rejected ones, each with its reason.

segments ─┬─► what traces are judged by ─┬─► by request ─► gates ─┬─► valued, chosen ─► stages/select/kept-*.arrow
requests ─┘   └► contaminated-*.arrow    │                        └─► controls ┘ └────► stages/select/rejected-*.arrow
                                  ledger ┘
"""

from __future__ import annotations

from functools import partial
from typing import Any

import apache_beam as beam

from augment.ledger.parts import ledger_parts
from augment.ledger.transforms import ReadLedger
from augment.selection.account import split_account
from augment.selection.benchmarks.index import index_digest, load_index
from augment.selection.candidates import ROW_COLUMNS, AskedSegment
from augment.selection.transforms import AskSegments, ChooseCandidates, JudgeCandidates, PickControls
from augment.selection.values import needs_controls, value_digest
from pipelines.config import MillConfig
from pipelines.counts import contaminated_counts
from pipelines.joints import ScorerNats, asks_scorer, holdback_of
from pipelines.scorer_identity import difficulty_section, model_inputs
from pipelines.stage import Built, Outcome, Stage
from sharding.beam.joins import GroupRecords, JoinParts
from sharding.beam.part_join import Parts
from sharding.beam.part_names import part_count
from sharding.beam.parts import WriteParts
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import CONTAMINATED, KEPT, REJECTED, REQUESTS, SEGMENTS
from sharding.records.types import LedgerRow
from sharding.storage import manifest

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
        config, select, difficulty = self.config, self.config.select, self.config.difficulty
        segments = Parts.of(config.output, self.scored, SEGMENTS, ("input_ids",))
        num_parts = part_count(segments.urls)
        documents = root | "Documents" >> JoinParts(segments, Parts.of(config.output, self.augmented, REQUESTS))
        found = documents | "Ask" >> AskSegments(select, config.tokenizer, self.valued_tiers)
        rows = root | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url), ROW_COLUMNS)
        judged = (
            {"asked": found["asked"], "rows": rows}
            | "By request" >> GroupRecords(num_parts, asked=AskedSegment, rows=LedgerRow)
            | "Judge" >> JudgeCandidates(select, config.tokenizer)
        )
        compared = bool(self.valued_tiers) and needs_controls(select.value_name)
        controls = judged["judged"] | "Controls" >> PickControls(select.gain.control_pool if compared else 0)
        chosen = judged["judged"] | "Choose" >> ChooseCandidates(
            select, ScorerNats(difficulty), difficulty.threshold_nats, controls
        )
        contaminated = found["contaminated"]
        write = partial(WriteParts, self.folder, num_parts=num_parts, vocab_size=self.tokenizer.vocab_size)
        return Built(
            files={
                "kept": chosen["kept"] | "Write kept" >> write(KEPT),
                "rejected": chosen["rejected"] | "Write rejected" >> write(REJECTED),
                "contaminated": contaminated | "Write contaminated" >> write(CONTAMINATED),
            },
            counts=(
                judged["counts"],
                chosen["counts"],
                contaminated | "Count contaminated" >> beam.Map(contaminated_counts),
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
