"""Stage 4, pack: segments and kept thoughts → training sequences in Arrow shards, card, manifest, `_SUCCESS`.

segments ─┬─► by document ─► laid out as items ─► packed, shuffled, balanced ─► data/*.arrow
kept ─────┘                      └► counts                └► MANIFEST.json, README.md, _SUCCESS
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.typehints import KV

from pipelines import config as config_module
from pipelines.config import MillConfig
from pipelines.stage import StageRun, digest, run_stage
from sharding import card, manifest, order, records, shard_io
from sharding.layout import Delimiters, SegmentTokens, lay_out
from sharding.manifest import Manifest
from sharding.packing import PackConfig
from sharding.records import Candidate, FileEntry, Item, ScoredSegment
from sharding.tokenizer import TextTokenizer, load_tokenizer
from sharding.transforms import GroupRecords, PackShards, ReadParts, SumCountsCombineFn, WriteOnce

SEGMENT_COLUMNS = ("doc_id", "segment_index", "num_segments", "input_ids")
KEPT_COLUMNS = ("doc_id", "segment_index", "sample", "key", "input_ids")
COUNTS = "counts"


def pack(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Run the stage unless it is done; the manifest, and whether it ran now."""
    scored = manifest.require(config.output, "score")
    selected = manifest.require(config.output, "select")
    tokenizer = load_tokenizer(config.tokenizer)
    run = StageRun(
        config.output,
        "pack",
        sections={"tokenizer": config.tokenizer, "layout": config.layout, "pack": config.pack, "card": config.card},
        inputs={"score": digest(scored), "select": digest(selected), "tokenizer": tokenizer.fingerprint},
    )
    delimiters = encode_delimiters(config.pack, tokenizer)
    schema = records.row_schema(config.pack.sequence_length, tokenizer.vocab_size)

    def build(pipeline: beam.Pipeline) -> None:
        segments = pipeline | "Segments" >> ReadParts(
            manifest.file_urls(config.output, scored, "segments"), ScoredSegment, SEGMENT_COLUMNS
        )
        kept = pipeline | "Kept" >> ReadParts(
            manifest.file_urls(config.output, selected, "kept"), Candidate, KEPT_COLUMNS
        )
        documents = {
            "segments": segments
            | "Segment's document" >> beam.WithKeys(_doc_id).with_output_types(KV[str, ScoredSegment]),
            "thoughts": kept | "Thought's document" >> beam.WithKeys(_doc_id).with_output_types(KV[str, Candidate]),
        } | "By document" >> GroupRecords(segments=ScoredSegment, thoughts=Candidate)
        laid_out = documents | "Lay out" >> beam.ParDo(_LayOutFn(config, delimiters, tokenizer.dtype)).with_outputs(
            COUNTS, main="items"
        )
        laid_out["items"].element_type = Item
        shard_files = laid_out["items"] | "Shards" >> PackShards(
            run.folder, config.pack, split_shards(config.pack), schema, tokenizer.dtype
        )
        counts = laid_out[COUNTS] | "Add up" >> beam.CombineGlobally(SumCountsCombineFn())
        pipeline | "Finish" >> WriteOnce(
            finisher(run, config, tokenizer), lists={"shard_files": shard_files}, singles={"counts": counts}
        )

    return run_stage(run, build, beam_args=beam_args, replace=replace)


def _doc_id(record: ScoredSegment | Candidate) -> str:
    return record.doc_id


class _LayOutFn(beam.DoFn):
    def __init__(self, config: MillConfig, delimiters: Delimiters, dtype: np.dtype) -> None:
        self._pack, self._layout = config.pack, config.layout
        self._delimiters, self._dtype = delimiters, dtype

    def process(self, document: tuple[str, dict[str, list[Any]]]) -> Iterator[Any]:
        doc_id, groups = document
        raw = order.is_raw(self._pack.seed, doc_id, self._pack.raw_fraction)
        segments = join_thoughts(doc_id, groups["segments"], [] if raw else groups["thoughts"])
        items, counts = lay_out(
            doc_id, segments, self._layout, self._delimiters, self._pack.sequence_length, self._dtype
        )
        yield from items
        left_plain = len(groups["thoughts"]) if raw else 0
        split = order.split_of(doc_id, self._pack.validation_fraction)
        yield beam.pvalue.TaggedOutput(
            COUNTS,
            {
                **dataclasses.asdict(counts),
                "documents_raw": int(raw),
                "thoughts_left_out_of_raw": left_plain,
                f"documents_{split}": 1,
            },
        )


def join_thoughts(doc_id: str, segments: Sequence[ScoredSegment], thoughts: Sequence[Candidate]) -> list[SegmentTokens]:
    """A document's segments in order, each with its kept thoughts in the order of their samples.

    Raises:
        AssertionError: a segment is missing or double: the scored parts are not what their manifest says.
    """
    ordered = sorted(segments, key=lambda segment: segment.segment_index)
    indices = [segment.segment_index for segment in ordered]
    if not ordered or indices != list(range(ordered[0].num_segments)):
        raise AssertionError(f"document {doc_id!r} has segments {indices} of {ordered[:1]}")
    by_segment: dict[int, list[Candidate]] = {}
    for thought in sorted(thoughts, key=lambda t: (t.segment_index, t.sample, t.key)):
        by_segment.setdefault(thought.segment_index, []).append(thought)
    return [
        SegmentTokens(segment.input_ids, [t.input_ids for t in by_segment.get(segment.segment_index, [])])
        for segment in ordered
    ]


def encode_delimiters(config: PackConfig, tokenizer: TextTokenizer) -> Delimiters:
    """The delimiters of the config as token ids."""
    if config.document_end is None:
        document_end = np.array([tokenizer.end_of_text_id], tokenizer.dtype)
    else:
        document_end = tokenizer.encode_trusted(config.document_end)
    return Delimiters(
        thought_open=tokenizer.encode_trusted(config.thought_open),
        thought_close=tokenizer.encode_trusted(config.thought_close),
        document_end=document_end,
    )


def split_shards(config: PackConfig) -> dict[str, int]:
    """Name of each split → number of its shards; validation gets its share of them, at least one."""
    shards = {"train": config.num_shards}
    if config.validation_fraction > 0:
        shards["validation"] = max(1, round(config.num_shards * config.validation_fraction))
    return shards


def finisher(run: StageRun, config: MillConfig, tokenizer: TextTokenizer) -> Callable[..., None]:
    """What the last step does: card and config beside the shards, then the manifest, then `_SUCCESS`."""

    def finish(shard_files: list[FileEntry], counts: dict[str, int]) -> None:
        earlier = {stage: manifest.require(config.output, stage) for stage in manifest.STAGES[:-1]}
        totals = counts | {"rows": sum(entry.rows for entry in shard_files)}
        for entry in shard_files:
            for kind, number in entry.tokens.items():
                totals[f"tokens_{kind}"] = totals.get(f"tokens_{kind}", 0) + number
        expected = earlier["score"].counts["source_tokens"]
        if totals.get("tokens_source", 0) != expected:
            raise AssertionError(
                f"{totals.get('tokens_source', 0)} source tokens in the shards, {expected} were scored"
            )
        packed = run.manifest(
            files=[("shards", entry) for entry in shard_files],
            counts=totals,
            facts={
                "tokenizer_fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "document_end_ids": encode_delimiters(config.pack, tokenizer).document_end.tolist(),
            },
            rehearsal=any(stage.rehearsal for stage in earlier.values()),
        )
        shard_io.write_bytes(shard_io.join(config.output, "config.yaml"), config_module.dump(config).encode())
        shard_io.write_bytes(
            shard_io.join(config.output, "README.md"), card.render(earlier | {"pack": packed}).encode()
        )
        manifest.write(config.output, packed)
        shard_io.write_bytes(shard_io.join(config.output, manifest.SUCCESS_NAME), b"")

    return finish
