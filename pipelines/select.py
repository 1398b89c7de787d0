"""Stage 3, select: generations → kept traces and rejected ones, each with its reason.

segments ─┬─► what traces are judged by ─┬─► by request ─► gates ─┬─► valued, chosen ─► stages/select/kept-*.arrow
requests ─┘   └► contaminated-*.arrow    │                ▲       └─► controls ┘ └────► stages/select/rejected-*.arrow
                                  ledger ┘          judge ┘ of select.judge, whose verdicts go to the ledger
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from augment.feeding import worker
from augment.ledger.parts import ledger_parts
from augment.ledger.transforms import ReadLedger
from augment.selection.account import split_account
from augment.selection.alike.transforms import FindRepeats, MeasureDiversity
from augment.selection.benchmarks.index import index_digest, load_index
from augment.selection.candidates import ROW_COLUMNS, AskedSegment
from augment.selection.transforms import (
    AskSegments,
    ChooseCandidates,
    GradeCandidates,
    JudgeCandidates,
    PickControls,
    ShuffleTraces,
)
from augment.selection.values import needs_controls, value_digest
from augment.selection.verdict import check_kept, check_there
from pipelines.config import MillConfig
from pipelines.counts import contaminated_counts
from pipelines.documents.reader import read_allocation
from pipelines.joints import ScorerNats, asks_scorer, grading_of, holdback_of, judge_inputs, select_section
from pipelines.outcome import Built, Outcome
from pipelines.plan.drift import unlike_promised
from pipelines.plan.explored import of_plan
from pipelines.plan.measured import read_pilot
from pipelines.scorer_identity import difficulty_section, model_inputs
from pipelines.stage import Did, Stage
from pipelines.workers import loads_model
from sharding.beam.joins import GroupRecords, JoinParts
from sharding.beam.part_join import Parts
from sharding.beam.part_names import part_count
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import CONTAMINATED, KEPT, REJECTED, REQUESTS, SEGMENTS
from sharding.records.types import LedgerRow
from sharding.storage import clock, manifest
from sharding.storage.manifest import Manifest

SECONDS_PER_GENERATION = 2e-3
"""On one core: of a candidate of some 5,000 characters, docs/benchmarks.md, selection."""


class Select(Stage):
    """The select stage of a run."""

    name = "select"

    def __init__(self, config: MillConfig) -> None:
        self.config = config
        self.scored = manifest.require(config.output, "score")
        self.augmented = manifest.require(config.output, "augment")
        self.valued_tiers = holdback_of(config).valued_tiers
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.segments = Parts.of(config.output, self.scored, SEGMENTS, ("input_ids",))
        self.requests = Parts.of(config.output, self.augmented, REQUESTS)
        self.num_parts, self.vocab_size = part_count(self.segments.urls), self.tokenizer.vocab_size
        self.ask, self.threshold_nats = ScorerNats.of(config), config.difficulty.threshold_nats
        compared = bool(self.valued_tiers) and needs_controls(config.select.value_name)
        self.num_controls = config.select.gain.control_pool if compared else 0
        # A group has the traces of a part: enough to choose from, and one at a time fits into memory.
        self.num_groups = self.num_parts if config.select.shuffle else 0
        # Without a generation or a benchmark there is nothing to hold against the text.
        self.idle = not self.augmented.counts["generations"] and config.select.decontaminate is None
        self.work_s = SECONDS_PER_GENERATION * self.augmented.counts["generations"]
        self.loads_model = asks_scorer(config) and loads_model(config.gain_difficulty)
        self.grading = grading_of(config, 0.0)
        code = value_digest(config.select.value_name)
        super().__init__(
            config.output,
            sections={
                "tokenizer": config.tokenizer,
                "select": select_section(config),
                "scorer": difficulty_section(config.gain_difficulty) if self.valued_tiers else None,
            },
            inputs={
                "augment": manifest.digest(self.augmented),
                "tokenizer": self.tokenizer.fingerprint,
                **({"benchmarks": index_digest(config.select.decontaminate)} if config.select.decontaminate else {}),
                **({"value": code} if code else {}),
                **judge_inputs(self.grading),
                **(model_inputs(config.gain_difficulty) if asks_scorer(config) else {}),
            },
            earlier=(self.augmented,),
        )

    def run(self, **options: Any) -> tuple[Manifest, Did]:
        """See `Stage.run`. What was selected is published before it is found to be nothing.

        Raises:
            MillError: no segment keeps a thought.
        """
        made, did = super().run(**options)
        check_kept(made.counts, self.config.select.min_kept_share, self.output)
        return made, did

    def prepare(self, options: PipelineOptions) -> None:
        """The judge's run begins, by the clock of the ledger's store."""
        if self.grading is not None:
            self.grading = grading_of(self.config, clock.now_s(self.config.ledger_url))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        try:
            yield
        finally:
            worker.close_all()  # the judge's engine, where there is one

    def build(self, root: beam.Pipeline) -> Built:
        select, tokenizer, ledger = self.config.select, self.config.tokenizer, self.config.ledger_url
        documents = root | "Documents" >> JoinParts(self.segments, self.requests)
        found = documents | "Ask" >> AskSegments(select, tokenizer, self.valued_tiers)
        rows = root | "Ledger" >> ReadLedger(ledger_parts(ledger), ROW_COLUMNS)
        joined = {"asked": found["asked"], "rows": rows} | "By request" >> GroupRecords(
            self.num_parts, asked=AskedSegment, rows=LedgerRow
        )
        judged = joined | "Judge" >> JudgeCandidates(select, tokenizer)
        graded = judged["judged"] | "Grade" >> GradeCandidates(self.grading)
        controls = graded["graded"] | "Controls" >> PickControls(self.num_controls)
        cuts = graded["graded"] | "Repeats" >> FindRepeats(select.repeats)
        asked = (self.ask, self.threshold_nats, controls, cuts)
        chosen = graded["graded"] | "Choose" >> ChooseCandidates(select, tokenizer, *asked)
        diversity = chosen["kept"] | "Diversity" >> MeasureDiversity()
        kept = chosen["kept"] | "Shuffle" >> ShuffleTraces(self.num_groups)
        contaminated = found["contaminated"] | "Count contaminated" >> beam.Map(contaminated_counts)
        return Built(
            parts={KEPT: kept, REJECTED: chosen["rejected"], CONTAMINATED: found["contaminated"]},
            counts=(judged["counts"], graded["counts"], chosen["counts"], contaminated),
            facts={"diversity": diversity},
        )

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        counts, account = split_account(outcome.counts)
        check_there(counts, self.augmented.counts["failed"], self.config.ledger_url)
        decontaminate = self.config.select.decontaminate
        pilot, _ = read_pilot(self.config, self.scored)
        plan = read_allocation(self.output, self.scored)
        unlike = unlike_promised(of_plan(pilot, plan), account) if pilot is not None else []
        return counts, {
            **({"warnings": unlike} if unlike else {}),
            "account": account,
            **outcome.facts,
            "shuffled": self.config.select.shuffle,
            "value": self.config.select.value_name if self.valued_tiers else "none",
            "decontamination": decontaminate
            and {"action": decontaminate.action, "benchmarks": load_index(decontaminate).describe()},
        }
