"""Stage 1, score: raw text → segments with the nats of every training token.

files ─► documents ─► one id each ─► tokens, segments, nats ─► stages/score/segments-*.arrow
             └► quarantine                 └► histogram of difficulty, counts ─► MANIFEST.json
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.typehints import KV

from difficulty.config import DifficultyConfig
from difficulty.histogram import DifficultyHistogram
from difficulty.memory import NgramMemory
from difficulty.scorers import describe_scorer
from difficulty.surprisal import token_difficulty_nats
from difficulty.transforms import QUARANTINED, CountNgrams, DifficultyHistogramCombineFn, ScoreDocuments
from pipelines import config as config_module
from pipelines.config import MillConfig
from pipelines.stage import StageRun, run_stage
from sharding import corpus, manifest, records, shard_io
from sharding.manifest import Manifest
from sharding.records import Document, FileEntry, Quarantined, ScoredSegment
from sharding.tokenizer import load_tokenizer
from sharding.transforms import SumCountsCombineFn, WriteOnce, WriteParts, write_quarantine

PART_SOURCE_BYTES = 64 << 20
"""A scored part holds about this much source, in bytes."""

MAX_PARTS = 4096
COMPRESSION_RATIO = 4
"""What a compressed byte of text is taken to hold when the number of parts is chosen."""

BYTES_PER_TOKEN = 4
"""Of text, about; decides only where the sampling of a large corpus's n-grams begins."""

MEMORY_NAME = "memory.arrow"
"""The n-gram memory, beside the scores; `difficulty.memory_path` of a later run may name it."""

MICRO = 1_000_000
"""Nats are added up as whole millionths, so that the order of addition never shows."""


def score(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Run the stage unless it is done; the manifest, and whether it ran now."""
    files = corpus.list_files(config.source)
    tokenizer = load_tokenizer(config.tokenizer)
    run = StageRun(
        config.output,
        "score",
        sections={
            "source": config.source,
            "tokenizer": config.tokenizer,
            "difficulty": what_decides(config.difficulty),
        },
        inputs={"source": _listing_digest(files), "tokenizer": tokenizer.fingerprint},
    )
    num_parts = num_score_parts(files)
    scorer = describe_scorer(config.difficulty)

    def build(pipeline: beam.Pipeline) -> None:
        read = pipeline | "Source" >> ReadDocuments(config, corpus.read_units(files))
        memory = build_memory(pipeline, read["documents"], config, memory_url(config, run), source_bytes(files))
        scored = read["documents"] | "Score" >> ScoreDocuments(config.difficulty, config.tokenizer, memory)
        quarantined = (read["quarantined"], scored[QUARANTINED]) | "All quarantined" >> beam.Flatten()

        segment_files = scored["segments"] | "Write segments" >> WriteParts(
            run.folder,
            "segments",
            records.segment_schema(tokenizer.vocab_size),
            kind=ScoredSegment,
            num_parts=num_parts,
            partition_key=lambda segment: segment.doc_id,
            sort_key=lambda segment: (segment.doc_id, segment.segment_index),
        )
        quarantine_files = quarantined | "Write quarantine" >> write_quarantine(run.folder, num_parts)
        histogram = scored["segments"] | "Histogram" >> beam.CombineGlobally(DifficultyHistogramCombineFn())
        counts = (
            (
                read["counts"],
                scored["segments"] | "Count segments" >> beam.Map(segment_counts, config.difficulty.threshold_nats),
                quarantined | "Count quarantined" >> beam.Map(quarantine_counts),
            )
            | "All counts" >> beam.Flatten()
            | "Add up" >> beam.CombineGlobally(SumCountsCombineFn())
        )
        pipeline | "Finish" >> WriteOnce(
            finisher(run, config, scorer, tokenizer.vocab_size),
            lists={"segment_files": segment_files, "quarantine_files": quarantine_files},
            singles={"histogram": histogram, "counts": counts},
        )

    return run_stage(run, build, beam_args=beam_args, replace=replace)


def what_decides(difficulty: DifficultyConfig) -> dict[str, Any]:
    """The parts of the section that can change a score: where its servers are, and how they are asked, can't."""
    plain = config_module.to_mapping(difficulty)
    return {
        key: value for key, value in plain.items() if key not in ("urls", "api_key_env", "timeout_s", "max_in_flight")
    }


def memory_url(config: MillConfig, run: StageRun) -> str:
    """Where the n-gram memory is or will be; "" without one."""
    if config.difficulty.memory is not None:
        return shard_io.join(run.folder, MEMORY_NAME)
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


class ReadDocuments(beam.PTransform):
    """The documents of the source with ids of their own; `quarantined` and `counts` beside them."""

    def __init__(self, config: MillConfig, units: Sequence[corpus.ReadUnit]) -> None:
        super().__init__()
        self._source, self._units = config.source, list(units)

    def expand(self, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        source = self._source
        raw = (
            pipeline
            | "Units" >> beam.Create(self._units, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(corpus.read_documents, source)
        )
        good = raw | "Good" >> beam.Filter(lambda r: isinstance(r, Document)).with_output_types(Document)
        bad = raw | "Bad" >> beam.Filter(lambda r: isinstance(r, Quarantined)).with_output_types(Quarantined)
        documents = (
            good
            | "By id" >> beam.WithKeys(lambda document: document.doc_id).with_output_types(KV[str, Document])
            | "Group" >> beam.GroupByKey()
            | "One id each" >> beam.FlatMap(distinct_ids).with_output_types(Document)
        )
        counts = raw | "Count read" >> beam.Map(lambda _: {"documents_in": 1})
        return {"documents": documents, "quarantined": bad, "counts": counts}


def distinct_ids(group: tuple[str, Iterable[Document]]) -> Iterable[Document]:
    """Documents that carry one id, each with an id of its own: the first keeps it, the others get "~2", "~3", ...

    The order is that of their texts' hashes, so the outcome doesn't depend on the order of reading.
    """
    doc_id, documents = group
    ranked = sorted(
        documents, key=lambda d: (hashlib.blake2b(d.text.encode(errors="surrogatepass")).digest(), d.origin)
    )
    for copy, document in enumerate(ranked, start=1):
        yield (
            document
            if copy == 1
            else Document(
                doc_id=f"{doc_id}~{copy}", text=document.text, origin=document.origin, metadata=document.metadata
            )
        )


def segment_counts(segment: ScoredSegment, threshold_nats: float) -> dict[str, int]:
    """What one segment adds to the stage's counts; nats in millionths."""
    surprisal = segment.surprisal_nats.astype(np.float64)
    entropy = segment.entropy_nats.astype(np.float64)
    return {
        "documents": int(segment.segment_index == 0),
        "segments": 1,
        "source_tokens": len(segment.input_ids),
        "hard_tokens": int((token_difficulty_nats(surprisal, segment.memory_nats) > threshold_nats).sum()),
        "surprisal_micronats": round(float(surprisal.sum()) * MICRO),
        "entropy_micronats": round(float(entropy.sum()) * MICRO),
        "difficulty_micronats": round(segment.difficulty_nats * MICRO),
    }


def quarantine_counts(refused: Quarantined) -> dict[str, int]:
    """What one refused record adds to the stage's counts."""
    return {"quarantined": 1, f"quarantined.{refused.reason}": 1}


def num_score_parts(files: Sequence[tuple[str, int, str]]) -> int:
    """How many scored parts a source of these files gets; from their sizes alone, so that it is the same every time."""
    return min(MAX_PARTS, max(1, math.ceil(source_bytes(files) / PART_SOURCE_BYTES)))


def source_bytes(files: Sequence[tuple[str, int, str]]) -> int:
    """About how many bytes of text the files hold."""
    return sum(size * (COMPRESSION_RATIO if url.endswith((".gz", ".zst")) else 1) for url, size, _ in files)


def finisher(run: StageRun, config: MillConfig, scorer: dict[str, Any], vocab_size: int) -> Callable[..., None]:
    """What the last step does: check the account of documents and publish the manifest."""

    def finish(
        segment_files: list[FileEntry],
        quarantine_files: list[FileEntry],
        histogram: DifficultyHistogram,
        counts: dict[str, int],
    ) -> None:
        totals = dict.fromkeys(("documents_in", "documents", "segments", "source_tokens", "quarantined"), 0) | counts
        if totals["documents_in"] != totals["documents"] + totals["quarantined"]:
            raise AssertionError(f"documents in do not equal documents out and quarantined: {totals}")
        url = memory_url(config, run)
        scored = run.manifest(
            files=[("segments", f) for f in segment_files] + [("quarantine", f) for f in quarantine_files],
            counts=totals,
            facts={
                "histogram": histogram.to_json(),
                "scorer": scorer,
                "vocab_size": vocab_size,
                "memory": {"url": url, **NgramMemory.load(url).to_json()} if url else None,
            },
            rehearsal=config.difficulty.scorer == "rehearsal",
        )
        manifest.write(run.output, scored)

    return finish


def _listing_digest(files: Sequence[tuple[str, int, str]]) -> str:
    lines = "\n".join(f"{url} {version}" for url, _, version in files)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()
