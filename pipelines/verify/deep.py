"""Deep: whether the shards hold what was scored and kept, as a Beam pipeline. The fifth, after score to pack.

    shards ─► items ─► by part of the scored documents ─┬─► each beside what was scored and kept ─► problems, counts
    scored, kept, contaminated parts ───────────────────┘   (`documents`)
                                                        └─► texts by content ─► in two splits? ─► problems
                                                            (`splits`; where there are two)

Only the items of the shards are shuffled; the parts are read where they lie. One part's documents are held in memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from secrets import token_hex
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.typehints import KV

from pipelines.beam_options import beam_options, local_shuffle
from pipelines.delivered import Corpus
from pipelines.pack import parts_of
from pipelines.running import run_pipeline
from pipelines.verify import documents, splits
from pipelines.verify.documents import FoundItem, Packing
from pipelines.verify.files import READ_ERRORS
from pipelines.verify.report import Problem, limited
from sharding import hashing, records, storage
from sharding.beam.counts import COUNTS, AddUpCounts
from sharding.beam.part_join import PartGroup, Parts, groups_of, joined_documents
from sharding.beam.part_names import part_count, part_of
from sharding.beam.parts import WriteOnce
from sharding.beam.shuffle import GroupBytes, GroupPartitions
from sharding.errors import MillError
from sharding.packing import epochs, mixing
from sharding.packing.config import config_of
from sharding.packing.recovery import items_of
from sharding.records.rows import Row
from sharding.shards.rows import split_named
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.private import private_folder

TEXTS = "texts"

BYTES_PER_PROCESS = 1 << 30
"""Without a word on workers, one process for so many bytes: it takes seconds to start."""


class Compared(msgspec.Struct):
    """What the pipeline found: the problems, and counts added up over all documents."""

    problems: list[Problem]
    counts: dict[str, int]


def compare(output: str, corpora: Sequence[Corpus], beam_args: Sequence[str]) -> Compared:
    """Compare every document in the shards with its records in the scored and kept parts.

    Args:
        output: the run's output folder.
        corpora: its first documents and its deliveries, with their manifests; all but augment's.
        beam_args: Beam options; a runner whose workers are elsewhere needs --temp_location, where they can write.

    Raises:
        MillError: the pipeline failed.
        RequestError: a Beam option is unknown.
    """
    options = beam_options(beam_args)
    try:
        groups = [groups_of(*_parts_of(corpus)) for corpus in corpora]
    except MillError as error:
        return Compared([Problem(output, f"cannot be compared: {error}")], {})
    local = tempfile.mkdtemp(prefix="verify-", dir=private_folder())
    folder = options.view_as(GoogleCloudOptions).temp_location or local
    url = storage.join(folder, f"verify-{token_hex(8)}.json")
    try:
        with local_shuffle(options, storage.join(local, "shuffle")):
            pipeline = beam.Pipeline(options=options)
            named = {
                _name(number, epoch): (groups[number], Packing.of(corpus.output, corpus.stages, epoch))
                for number, corpus in enumerate(corpora)
                for epoch in range(config_of(corpus.stages["pack"]).trace_per_epoch)
            }
            _build(pipeline, named, url)
            run_pipeline(pipeline, "verify")
        if not storage.exists(url):
            raise MillError(f"{url} was written by no worker: add --temp_location=, a folder that all workers reach")
        found = msgspec.json.decode(storage.read_bytes(url), type=Compared)
    finally:
        shutil.rmtree(local, ignore_errors=True)
        with contextlib.suppress(MillError):  # that it stays must not hide what went wrong
            storage.remove(url, folder)
    if not found.problems:  # a document that is wrong makes sums wrong
        for number, corpus in enumerate(corpora):
            packed = corpus.stages["pack"]
            of_corpus = _counts_of(_name(number), found.counts)
            found.problems += _wrong_counts(corpus.output, packed, of_corpus)
            for epoch in range(1, config_of(packed).trace_per_epoch):
                of_epoch = _counts_of(_name(number, epoch), found.counts)
                found.problems += _wrong_counts_of_epoch(corpus.output, packed, epoch, of_epoch)
                of_corpus["thoughts"] = of_corpus.get("thoughts", 0) + of_epoch.get("thoughts", 0)
            for name, count in of_corpus.items():
                found.counts[name] = found.counts.get(name, 0) + count
    return found


def _name(number: int, epoch: int = 0) -> str:
    """What the counts of the documents of a delivery, as an epoch shows them, are told apart by."""
    return f"{number} epoch {epoch}" if epoch else f"{number}"


def _counts_of(name: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {count.partition("/")[2]: n for count, n in counts.items() if count.startswith(f"{name}/")}


def _parts_of(corpus: Corpus) -> tuple[Parts, ...]:
    scored, selected, packed = (corpus.stages[stage] for stage in ("score", "select", "pack"))
    return parts_of(corpus.output, scored, selected, config_of(packed))


def _wrong_counts(output: str, packed: Manifest, counts: Mapping[str, int]) -> Iterator[Problem]:
    """Counts of the pack stage that aren't those of the documents."""
    rows_are_left_out = packed.counts.get("rows_left_out", 0) > 0
    names = [name for name in mixing.COUNTS if not name.startswith("rows_")]
    names += ["rows_left_out_documents"] if rows_are_left_out else ["thoughts", "thoughts_cut", "thoughts_dropped"]
    for name in names:
        said, found = packed.counts.get(name, 0), counts.get(name, 0)
        if said != found:
            yield Problem(manifest.manifest_url(output, "pack"), f"says {name} {said}, its documents come to {found}")


def _wrong_counts_of_epoch(output: str, packed: Manifest, epoch: int, counts: Mapping[str, int]) -> Iterator[Problem]:
    for name in ("thoughts", "thoughts_cut", "thoughts_dropped"):
        said, found = packed.counts.get(epochs.count_name(epoch, name), 0), counts.get(name, 0)
        if said != found:
            what = f"says {epochs.count_name(epoch, name)} {said}, its documents come to {found}"
            yield Problem(manifest.manifest_url(output, "pack"), what)


def local_workers(workers: int | None, size_bytes: int) -> list[str]:
    """The Beam options for so many processes on this machine.

    Args:
        workers: as many as there are processors when absent, where there is enough to do.
        size_bytes: what there is to do.
    """
    number = min(os.cpu_count() or 1, 1 + size_bytes // BYTES_PER_PROCESS) if workers is None else workers
    return [f"--direct_num_workers={number}", "--direct_running_mode=multi_processing"] if number > 1 else []


def _build(root: beam.Pipeline, corpora: Mapping[str, tuple[Sequence[PartGroup], Packing]], url: str) -> None:
    """Add the steps, a branch for each epoch of each delivery; the last one writes what was found to `url`."""
    found = [root | f"Corpus {name}" >> _Compare(name, *corpus) for name, corpus in corpora.items()]
    texts = tuple(each[TEXTS] for each in found) | "Texts" >> beam.Flatten()
    num_parts = sum(part_count(groups[0].scored.urls) for groups, _ in corpora.values() if groups) or 1
    same_text = texts | "Same text" >> GroupBytes(num_parts) | beam.FlatMapTuple(splits.shared_text)
    folder = next(iter(corpora.values()))[1].folder
    root | "Finish" >> WriteOnce(
        partial(_finish, url, folder),
        lists={
            "problems": tuple(each["problems"] for each in found) | "Problems" >> beam.Flatten(),
            "shared": same_text,
        },
        singles={"counts": tuple(each[COUNTS] for each in found) | "Counts" >> AddUpCounts()},
    )


class _Compare(beam.PTransform):
    """The documents of one delivery beside their items: problems, counts and, of several splits, texts."""

    def __init__(self, name: str, groups: Sequence[PartGroup], packing: Packing) -> None:
        super().__init__()
        self._name, self._groups, self._packing = name, groups, packing

    def expand(self, root: beam.Pipeline) -> dict[str, beam.PCollection]:
        compared = _compared(root, self._groups, self._packing)
        compared[TEXTS].element_type = KV[str, bytes]
        name = self._name
        counts = compared[COUNTS] | "Whose" >> beam.Map(lambda found: {f"{name}/{k}": n for k, n in found.items()})
        return {"problems": compared["problems"], TEXTS: compared[TEXTS], COUNTS: counts}


def _compared(root: beam.Pipeline, groups: Sequence[PartGroup], packing: Packing) -> Any:
    num_parts = part_count(groups[0].scored.urls if groups else ())
    items = (
        root
        | "Shards" >> beam.Create(packing.shards, reshuffle=False)
        | "To workers" >> beam.Reshuffle()
        | "Items" >> beam.FlatMap(_items, packing.folder, num_parts).with_output_types(KV[int, bytes])
    )
    # A part of which the shards hold nothing is compared as well.
    every_part = (
        root
        | "Every part" >> beam.Create(range(num_parts), reshuffle=False)
        | "Empty" >> beam.Map(_nothing).with_output_types(KV[int, bytes])
    )
    return (
        (items, every_part)
        | "By part" >> GroupPartitions()
        | "Compare" >> beam.ParDo(_CompareFn(groups, packing)).with_outputs(COUNTS, TEXTS, main="problems")
    )


def _finish(url: str, folder: str, problems: list[tuple[str, str]], shared: list[str], counts: dict[str, int]) -> None:
    told = [Problem(*problem) for problem in problems]
    told += limited((Problem(folder, what) for what in sorted(shared)), folder)
    storage.write_bytes(url, msgspec.json.encode(Compared(told, counts)))


def _items(shard: str, folder: str, num_parts: int) -> Iterator[tuple[int, bytes]]:
    """(part, `FoundItem`) of every item of a shard."""
    for number, row in enumerate(storage.read_records(storage.join(folder, shard), Row)):
        for item in items_of(row):
            found = FoundItem(item=item, shard=shard, row=number)
            yield hashing.partition_of(item.doc_id, num_parts), records.encode(found)


def _nothing(part: int) -> tuple[int, bytes]:
    return part, b""


class _CompareFn(beam.DoFn):
    def __init__(self, groups: Sequence[PartGroup], packing: Packing) -> None:
        self._groups = {part_of(group.scored.urls[0])[0]: group for group in groups}
        self._packing = packing
        self._several_splits = len(set(map(split_named, packing.shards))) > 1

    def process(self, part: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        number, values = part
        items: dict[str, list[FoundItem]] = {}
        for value in values:
            if value:
                found = records.decode(FoundItem, value)
                items.setdefault(found.item.doc_id, []).append(found)
        problems: list[Problem] = []
        counts = Counter[str]()
        group = self._groups.get(number)
        where = group.scored.urls[0] if group else self._packing.folder
        try:
            for document in joined_documents(group) if group else ():
                doc_id = document.scored.doc_id
                there = items.pop(doc_id, [])
                if self._packing.epoch and self._packing.config.validation_fraction and not there:
                    continue  # of the other split; that nothing else is missing, the totals tell
                counts["documents"] += 1
                problems += documents.compare(document, there, self._packing, where, counts)
                if self._several_splits:
                    for split in sorted({split_named(found.shard) for found in there}):
                        text = splits.text_record(doc_id, document.scored.input_ids, split)
                        yield beam.pvalue.TaggedOutput(TEXTS, text)
        except (*READ_ERRORS, AssertionError) as error:
            problems.append(Problem(where, f"cannot be compared: {error}"))
            items.clear()
        for strangers in items.values():
            problems.append(Problem(self._packing.at(strangers[0]), "no document of this id was scored"))
        yield from ((problem.where, problem.what) for problem in limited(problems, where))
        yield beam.pvalue.TaggedOutput(COUNTS, dict(counts))
