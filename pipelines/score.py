"""Stage 1, score: raw text → segments with the nats of every training token.

files ─► documents ─► one id each ─► tokens, segments, nats ─► stages/score/segments-*.arrow
             └► quarantine                 └► histogram of difficulty, counts ─► MANIFEST.json
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from difficulty.budget.histogram import DifficultyHistogram
from difficulty.config import DifficultyConfig
from difficulty.memory.table import describe_memory
from difficulty.scorers import describe_scorer
from difficulty.surprisal import token_difficulty_nats
from difficulty.transforms import QUARANTINED, CountNgrams, DifficultyHistogramCombineFn, ScoreDocuments
from pipelines import accounts, yaml_config
from pipelines.config import MillConfig
from pipelines.stage import StageRun, run_stage
from sharding import sources, storage, tally
from sharding.beam.counts import AddUpCounts
from sharding.beam.parts import WriteOnce, WriteParts
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import QUARANTINE, SEGMENTS
from sharding.records.types import FileEntry, Quarantined, ScoredDocument
from sharding.sources.transforms import ReadDocuments
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

PART_SOURCE_BYTES = 16 << 20
"""A scored part holds about this much source, in bytes."""

MAX_PARTS = 16384
BYTES_PER_TOKEN = 4
"""Of text, about; decides only where the sampling of a large corpus's n-grams begins."""

MEMORY_NAME = "memory.arrow"
"""The n-gram memory, beside the scores; `difficulty.memory_path` of a later run may name it."""

ALWAYS_COUNTED = (
    "documents_in",
    "documents",
    "documents_duplicate",
    "duplicates_dropped",
    "quarantined",
    "segments",
    "source_tokens",
)
"""Counts that the manifest has even where they are 0."""

MICRO = 1_000_000
"""Nats are added up as whole millionths, so that the order of addition never shows."""


def score(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Run the stage unless it is done; the manifest, and whether it ran now."""
    resolved, listings = zip(*(sources.resolve(source) for source in config.all_sources), strict=True)
    size_bytes = sum(sources.text_bytes(files, s.config) for s, files in zip(resolved, listings, strict=True))
    tokenizer = load_tokenizer(config.tokenizer)
    run = StageRun(
        config.output,
        "score",
        sections={
            **source_sections(config),
            "tokenizer": config.tokenizer,
            "difficulty": what_decides(config.difficulty),
        },
        inputs={"source": sources.listing_digest(listings), "tokenizer": tokenizer.fingerprint},
    )
    num_parts = num_score_parts(size_bytes)
    scorer = describe_scorer(config.difficulty)

    def build(pipeline: beam.Pipeline) -> None:
        read = pipeline | "Source" >> ReadDocuments(resolved, listings, config.duplicates, num_parts)
        memory = build_memory(pipeline, read["documents"], config, memory_url(config, run), size_bytes)
        scored = read["documents"] | "Score" >> ScoreDocuments(config.difficulty, config.tokenizer, memory)
        quarantined = (read["quarantined"], scored[QUARANTINED]) | "All quarantined" >> beam.Flatten()

        segment_files = scored["scored"] | "Write segments" >> WriteParts(
            run.folder, SEGMENTS, num_parts, vocab_size=tokenizer.vocab_size
        )
        quarantine_files = quarantined | "Write quarantine" >> WriteParts(run.folder, QUARANTINE, num_parts)
        histogram = scored["scored"] | "Histogram" >> beam.CombineGlobally(DifficultyHistogramCombineFn())
        counts = (
            *read["counts"],
            scored["scored"] | "Count segments" >> beam.Map(document_counts, config.difficulty.threshold_nats),
            quarantined | "Count quarantined" >> beam.Map(quarantine_counts),
        ) | "Counts" >> AddUpCounts()
        pipeline | "Finish" >> WriteOnce(
            finisher(run, config, scorer, tokenizer.vocab_size),
            lists={"segment_files": segment_files, "quarantine_files": quarantine_files},
            singles={"histogram": histogram, "counts": counts},
        )

    return run_stage(run, build, beam_args=beam_args, replace=replace)


def source_sections(config: MillConfig) -> dict[str, Any]:
    """The parts of the config that say what the documents are."""
    if config.source is not None:
        return {"source": config.source, "duplicates": config.duplicates}
    return {"sources": [yaml_config.to_mapping(s) for s in config.sources], "duplicates": config.duplicates}


def what_decides(difficulty: DifficultyConfig) -> dict[str, Any]:
    """The parts of the section that can change a score: where its servers are, and how they are asked, can't."""
    plain = yaml_config.to_mapping(difficulty)
    return {
        key: value for key, value in plain.items() if key not in ("urls", "api_key_env", "timeout_s", "max_in_flight")
    }


def memory_url(config: MillConfig, run: StageRun) -> str:
    """Where the n-gram memory is or will be; "" without one."""
    if config.difficulty.memory is not None:
        return storage.join(run.folder, MEMORY_NAME)
    return config.difficulty.memory_path or ""


def build_memory(
    pipeline: beam.Pipeline, documents: beam.PCollection, config: MillConfig, url: str, size_bytes: int
) -> beam.PCollection:
    """A singleton of the memory's URL, there when the memory is: counted first, or there already, or "" for none."""
    if config.difficulty.memory is None:
        return pipeline | "Memory" >> beam.Create([url])
    return documents | "Memory" >> CountNgrams(
        config.difficulty.memory, config.tokenizer, url, corpus_tokens=size_bytes / BYTES_PER_TOKEN
    )


def document_counts(document: ScoredDocument, threshold_nats: float) -> dict[str, int]:
    """What one document adds to the stage's counts; nats in millionths."""
    nats = token_difficulty_nats(document.surprisal_nats, document.memory_nats)
    tally.add(documents=1, segments=len(document.segment_starts), tokens=len(document.input_ids))
    of_source = {"documents": 1, "tokens": len(document.input_ids)} if document.source else {}
    return {
        **{f"source.{document.source}.{name}": count for name, count in of_source.items()},
        "documents": 1,
        "segments": len(document.segment_starts),
        "source_tokens": len(document.input_ids),
        "hard_tokens": int(np.count_nonzero(nats > np.float64(threshold_nats))),
        "surprisal_micronats": round(float(document.surprisal_nats.sum(dtype=np.float64)) * MICRO),
        "entropy_micronats": round(float(document.entropy_nats.sum(dtype=np.float64)) * MICRO),
        "difficulty_micronats": round(float(document.segment_difficulty_nats.sum()) * MICRO),
    }


def quarantine_counts(refused: Quarantined) -> dict[str, int]:
    """What one refused record adds to the stage's counts."""
    return {"quarantined": 1, f"quarantined.{refused.reason}": 1}


def num_score_parts(size_bytes: int) -> int:
    """How many scored parts so much text gets; from its size alone, so that it is the same every time."""
    return min(MAX_PARTS, max(1, math.ceil(size_bytes / PART_SOURCE_BYTES)))


def finisher(run: StageRun, config: MillConfig, scorer: dict[str, Any], vocab_size: int) -> Callable[..., None]:
    """What the last step does: check the account of documents and publish the manifest."""

    def finish(
        segment_files: list[FileEntry],
        quarantine_files: list[FileEntry],
        histogram: DifficultyHistogram,
        counts: dict[str, int],
    ) -> None:
        totals = dict.fromkeys(ALWAYS_COUNTED, 0) | counts
        url = memory_url(config, run)
        scored = run.manifest(
            files=[("segments", f) for f in segment_files] + [("quarantine", f) for f in quarantine_files],
            counts=totals,
            facts={
                "histogram": histogram.to_json(),
                "scorer": scorer,
                "vocab_size": vocab_size,
                "memory": {"url": url, **describe_memory(url)} if url else None,
            },
            rehearsal=config.difficulty.scorer == "rehearsal",
        )
        accounts.check("score", {"score": scored})
        manifest.write(run.output, scored)

    return finish
