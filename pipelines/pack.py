"""Stage 4, pack: segments and kept thoughts → training sequences in Arrow shards, card, manifest, `_SUCCESS`.

segments ─────┐
kept ─────────┼─► by document ─► left out, or laid out as items ─► packed, shuffled, balanced ─► data/*.arrow
contaminated ─┘                      └► counts                            └► MANIFEST.json, README.md, _SUCCESS
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
import numpy as np

from pipelines import accounts, card, yaml_config
from pipelines.card import markdown, versions
from pipelines.config import MillConfig
from pipelines.stage import StageRun, run_stage
from sharding import storage, tally
from sharding.beam.counts import COUNTS, AddUpCounts
from sharding.beam.part_join import JoinedDocument, PartGroup, joined_documents, part_groups
from sharding.beam.parts import WriteOnce
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing import mixing, order
from sharding.packing.config import PackConfig
from sharding.packing.layout import Delimiters, LayoutCounts, SegmentTokens, lay_out, lay_out_plain
from sharding.packing.transforms import PackShards
from sharding.records.families import ROWS
from sharding.records.rows import Item, Split
from sharding.records.types import Candidate, FileEntry, ScoredSegment
from sharding.shards.strays import stray_shards
from sharding.storage import manifest
from sharding.storage.manifest import Manifest, digest


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
    tokenizer_facts = {
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "document_end_ids": delimiters.document_end.tolist(),
    }
    schema = ROWS.schema(
        vocab_size=tokenizer.vocab_size,
        sequence_length=config.pack.sequence_length,
        with_loss_mask=config.pack.loss_mask != "all",
    )

    def build(pipeline: beam.Pipeline) -> None:
        groups = part_groups(
            manifest.file_urls(config.output, scored, "segments"),
            manifest.file_urls(config.output, selected, "kept"),
            contaminated_urls(config.output, selected),
        )
        laid_out = (
            pipeline
            | "Parts" >> beam.Create(groups, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Lay out" >> beam.ParDo(_LayOutFn(config, delimiters, tokenizer.dtype)).with_outputs(COUNTS, main="items")
        )
        laid_out["items"].element_type = Item
        shards = laid_out["items"] | "Shards" >> PackShards(
            run.folder, config.pack, split_shards(config.pack), schema, tokenizer.dtype
        )
        counts = (laid_out[COUNTS], shards["counts"]) | "Counts" >> AddUpCounts()
        pipeline | "Finish" >> WriteOnce(
            finisher(run, config, tokenizer_facts), lists={"shard_files": shards["files"]}, singles={"counts": counts}
        )

    return run_stage(run, build, beam_args=beam_args, replace=replace)


def contaminated_urls(output: str, selected: Manifest) -> list[str]:
    """The parts that name the documents to leave out because they overlap with a benchmark; none where they stay in."""
    decontamination = selected.facts.get("decontamination") or {}
    return manifest.file_urls(output, selected, "contaminated") if decontamination.get("action") == "remove" else []


class _LayOutFn(beam.DoFn):
    def __init__(self, config: MillConfig, delimiters: Delimiters, dtype: np.dtype) -> None:
        self._pack, self._layout = config.pack, config.layout
        self._tokenizer_name = config.tokenizer
        self._delimiters, self._dtype = delimiters, dtype

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._tokenizer_name)

    def process(self, group: PartGroup) -> Iterator[Any]:
        counts = Counter[str]()
        for document in joined_documents(group):
            yield from self._items(document, counts)
        yield beam.pvalue.TaggedOutput(COUNTS, dict(counts))

    def _items(self, document: JoinedDocument, counts: Counter[str]) -> Iterator[Item]:
        doc_id, thoughts = document.doc_id, document.thoughts
        share = mixing.share_of(doc_id, document.source, self._pack, contaminated=document.contaminated)
        counts.update(mixing.share_counts(share, len(document.input_ids), len(thoughts)))
        tally.add(documents=1, tokens=len(document.input_ids))
        if not share.copies:
            return
        if share.raw or not thoughts:
            items, laid_out = lay_out_plain(
                doc_id, document.input_ids, document.segment_starts, self._delimiters,
                self._pack.sequence_length, self._dtype,
            )  # fmt: skip
        else:
            joined = join_thoughts(doc_id, document.segments(), thoughts)
            items, laid_out = lay_out(
                doc_id, joined, self._layout, self._delimiters, self._pack.sequence_length, self._dtype
            )
        split = self._split_of(document)
        for copy in range(share.copies):
            yield from (msgspec.structs.replace(item, copy=copy, split=split) for item in items)
        # Documents count once, however often they are there; their items, thoughts and tokens as often as they are.
        for name, count in laid_out.nonzero().items():
            counts[name] += count if name.startswith("documents") else share.copies * count
        counts[f"documents_{split}"] += 1

    def _split_of(self, document: JoinedDocument) -> Split:
        fraction = self._pack.validation_fraction
        return order.split_of(self._tokenizer.decode(document.input_ids), fraction) if fraction else "train"


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
    return [segment_tokens(segment, by_segment.get(segment.segment_index, [])) for segment in ordered]


def segment_tokens(segment: ScoredSegment, thoughts: Sequence[Candidate]) -> SegmentTokens:
    """A segment with its thoughts as the layout takes it.

    Raises:
        AssertionError: the generators of its thoughts saw different amounts of it.
    """
    shown = {thought.shown_tokens for thought in thoughts} or {len(segment.input_ids)}
    if len(shown) > 1:
        raise AssertionError(f"segment {segment.segment_id!r} has thoughts behind {sorted(shown)} of its tokens")
    return SegmentTokens(segment.input_ids, [thought.input_ids for thought in thoughts], shown.pop())


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


def split_shards(config: PackConfig) -> dict[Split, int]:
    """Name of each split → number of its shards; validation gets its share of them, at least one."""
    shards: dict[Split, int] = {"train": config.num_shards}
    if config.validation_fraction > 0:
        shards["validation"] = max(1, round(config.num_shards * config.validation_fraction))
    return shards


def finisher(run: StageRun, config: MillConfig, tokenizer_facts: dict[str, Any]) -> Callable[..., None]:
    """What the last step does: card and config beside the shards, then the manifest, then `_SUCCESS`."""

    def finish(shard_files: list[FileEntry], counts: dict[str, int]) -> None:
        earlier = {stage: manifest.require(config.output, stage) for stage in manifest.STAGES[:-1]}
        names = (*mixing.COUNTS, *(count.name for count in dataclasses.fields(LayoutCounts)))
        totals = dict.fromkeys(names, 0) | counts | {"rows": sum(entry.rows for entry in shard_files)}
        for entry in shard_files:
            for kind, number in entry.tokens.items():
                totals[f"tokens_{kind}"] = totals.get(f"tokens_{kind}", 0) + number
        packed = run.manifest(
            files=[("shards", entry) for entry in shard_files],
            counts=totals,
            facts={**tokenizer_facts, "versions": versions.installed()},
            rehearsal=any(stage.rehearsal for stage in earlier.values()),
        )
        accounts.check("pack", earlier | {"pack": packed})
        for stray in stray_shards(config.output, packed):  # of a run that was killed
            storage.remove(stray)
        resolved = markdown.redacted(yaml_config.dump(config))
        storage.write_bytes(storage.join(config.output, "config.yaml"), resolved.encode())
        card.write(config.output, earlier | {"pack": packed})
        manifest.write(config.output, packed)
        storage.write_bytes(storage.join(config.output, manifest.SUCCESS_NAME), b"")

    return finish
