"""Stage 1, score: raw text → segments with the nats of every training token.

files ─► documents ─► one id each ─► tokens, segments, nats ─► stages/score/segments-*.arrow
             └► quarantine                 └► histogram of difficulty, counts
"""

from __future__ import annotations

import math
from typing import Any

import apache_beam as beam
import msgspec

from augment.selection.words import words_of
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.memory.table import describe_memory
from difficulty.scorers import describe_scorer
from difficulty.transforms import QUARANTINED, DifficultyHistogramCombineFn, ScoreDocuments
from pipelines.config import MillConfig
from pipelines.counts import document_counts, quarantine_counts
from pipelines.delivered import corpora
from pipelines.earlier_documents import EarlierDocuments
from pipelines.earlier_scores import EarlierScores
from pipelines.grown import FindKnown
from pipelines.leave_out_removed import LeaveOutRemoved
from pipelines.outcome import Built, Outcome
from pipelines.own_files import refuse_own_files
from pipelines.scored import check_shares, growth_since, memory_of, near_copies, score_inputs, score_sections
from pipelines.stage import Did, Stage
from pipelines.workers import bytes_to_score, loads_model
from sharding import sources, storage
from sharding.beam.counts import COUNTS
from sharding.models.stored_tokenizer import store_tokenizer
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import NEAR_COPIES, QUARANTINE, SEGMENTS
from sharding.sources.transforms import ReadDocuments
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

SECONDS_PER_BYTE = 0.2e-6
"""Of text, on one core, but for a model's time: docs/runners.md, Prism."""

PART_SOURCE_BYTES = 16 << 20
"""A scored part holds about this much source, in bytes."""

MAX_PARTS = 16384


class Score(Stage):
    """The score stage of a run."""

    name = "score"

    def __init__(self, config: MillConfig) -> None:
        self.config = config
        refuse_own_files(config)
        self.sources, self.listings = zip(*(sources.resolve(source) for source in config.all_sources), strict=True)
        self.size_bytes = sum(sources.text_bytes(f, s.config) for s, f in zip(self.sources, self.listings, strict=True))
        self.num_parts = min(MAX_PARTS, max(1, math.ceil(self.size_bytes / PART_SOURCE_BYTES)))
        self.work_s = SECONDS_PER_BYTE * self.size_bytes
        self.loads_model = loads_model(config.difficulty)
        self.worker_bytes = bytes_to_score(config.difficulty)
        near = config.near_copies
        self.near = None if near.action == "keep" else sources.NearCopies(near, words_of)
        self.vocab_size = load_tokenizer(config.tokenizer).vocab_size
        self.memory_url = (
            Output(config.output).memory if config.difficulty.memory else config.difficulty.memory_path or ""
        )
        self.earlier_scores = EarlierScores(config)
        # A delivery is held against all that was delivered before it, and against who was taken down from that.
        delivery = config.delivery
        self.corpus = config.output if delivery is None else delivery.of
        before = () if delivery is None else [part.output for part in corpora(delivery.of)]
        self.before = EarlierDocuments(before, config.tokenizer) if before else None
        super().__init__(
            config.output,
            sections=score_sections(config),
            inputs=score_inputs(config, self.listings, self.corpus),
            rehearsal=config.difficulty.scorer == "rehearsal",
        )

    def run(self, **options: Any) -> tuple[Manifest, Did]:
        """See `Stage.run`. What was scored is published before it is found to be too little of the source.

        Raises:
            MillError: more of a source went to quarantine than it allows.
        """
        if options.get("force"):
            self.earlier_scores.forget()
        made, did = super().run(**options)
        if did == Did.RAN:
            self.earlier_scores.remove()
        brings_nothing = not made.counts["documents"] and made.counts["documents_in"] > made.counts["quarantined"]
        if self.before is not None and brings_nothing:
            return made, did  # all of it was delivered before, which is no fault of the source
        check_shares(self.sources, made, f"{self.folder}/quarantine-*.arrow")
        return made, did

    def build(self, root: beam.Pipeline) -> Built:
        difficulty, tokenizer = self.config.difficulty, self.config.tokenizer
        copies = (self.config.duplicates, self.num_parts, self.near, self.before)
        read = root | "Source" >> ReadDocuments(self.sources, self.listings, *copies)
        staying = read["documents"] | "Removed" >> LeaveOutRemoved(self.corpus)
        known = staying["documents"] | "Known" >> FindKnown(self.earlier_scores.parts(), tokenizer, self.num_parts)
        memory = known["documents"] | "Memory" >> memory_of(self.config, self.memory_url, self.size_bytes)
        scored = known["documents"] | "Score" >> ScoreDocuments(difficulty, tokenizer, memory)
        refused = (read["quarantined"], scored[QUARANTINED]) | "All refused" >> beam.Flatten()
        histogram = scored["scored"] | "Histogram" >> beam.CombineGlobally(DifficultyHistogramCombineFn())
        counted = beam.Map(document_counts, difficulty.threshold_nats, difficulty.token_measure)
        documents = scored["scored"] | "Count documents" >> counted
        near = {} if self.near is None else {NEAR_COPIES: scored["scored"] | "Clusters" >> beam.FlatMap(near_copies)}
        refusals = refused | "Count refused" >> beam.Map(quarantine_counts)
        return Built(
            parts={SEGMENTS: scored["scored"], QUARANTINE: refused, **near},
            counts=(*read["counts"], staying[COUNTS], documents, refusals),
            facts={
                "histogram": histogram | "As JSON" >> beam.Map(DifficultyHistogram.to_json),
                **read["facts"],
                **known["facts"],
            },
        )

    def discard(self, finished: Manifest) -> None:
        if finished.stage != self.name or not self.earlier_scores.set_aside(finished):
            super().discard(finished)

    def write_beside(self, made: Manifest) -> None:
        """The tokenizer: whoever reads the output elsewhere need not have the model that the config names; and what the
        sources were, to know again what has only been added to.
        """
        store_tokenizer(load_tokenizer(self.config.tokenizer), self.at.tokenizer)
        if (listed := sources.listed(self.listings)) is not None:
            storage.write_json(self.at.listed, msgspec.to_builtins(listed))

    def growth(self, found: Manifest) -> sources.Growth | None:
        then = (self.sections, self.inputs, self.at.listed)
        return growth_since(found, *then, self.sources, self.listings)

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        url = self.memory_url
        return outcome.counts, {
            **outcome.facts,
            "scorer": describe_scorer(self.config.difficulty),
            "vocab_size": self.vocab_size,
            "memory": {"url": url, **describe_memory(url)} if url else None,
        }
