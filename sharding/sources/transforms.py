"""The first step of the score stage: every document of the sources, once or as often as it is there, under its own id.

files ─► units ─► documents ─► by id ────────────────────► one id each ─► documents
              │             └► hash, id, origin ─► copies ─┘ dropped
              └► quarantine, tallies ─► not too much? ─────┘ else an error

Texts go through one shuffle. Exact copies are found among hashes, near-copies, where they are looked for, among
sketches, whatever the order of reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV

from sharding import records, sources
from sharding.beam.counts import COUNTS
from sharding.beam.shuffle import GroupBytes
from sharding.records.types import Document, Quarantined
from sharding.sources import NearCopies, ReadUnit, Source, SourceFile, near_copies, shares
from sharding.sources.duplicates import (
    DOCUMENT,
    EARLIER_RANK,
    EARLIER_SOURCE,
    copy_counts,
    distinct_documents,
    earlier_member,
    later_copies,
    text_key,
)

Duplicates = Literal["keep", "drop"]

TALLY = "tally"
"""The tag of what became of the records of each piece of a file."""

_tally_decoder = msgspec.msgpack.Decoder(shares.FileTally)


class ReadDocuments(beam.PTransform):
    """The documents of the sources with ids of their own; `quarantined`, `counts` and `facts` beside them.

    `counts` is a tuple of collections; of the facts, `sources` is what became of the files and records of each. No
    document comes out before all is read, and none when more of a source than its `max_quarantined` came to nothing.

    Args:
        resolved: the sources as `sources.resolve` gives them.
        listings: the files of each.
        duplicates: whether exact copies of a text stay. They are counted either way.
        num_partitions: see `GroupBytes`.
        near: how near-copies are looked for; None: not at all.
        earlier: a transform that gives the documents of earlier deliveries, of the source `EARLIER_SOURCE`, each with
            the cluster that its split was drawn by: they come before all others where copies are found, and are none
            of the documents that come out. None: this is the first.
    """

    def __init__(
        self,
        resolved: Sequence[Source],
        listings: Sequence[Sequence[SourceFile]],
        duplicates: Duplicates,
        num_partitions: int,
        near: NearCopies | None = None,
        earlier: beam.PTransform | None = None,
    ) -> None:
        super().__init__()
        self._near, self._earlier = near, earlier
        self._sources, self._duplicates, self._num_partitions = tuple(resolved), duplicates, num_partitions
        self._listing = [piece for i, files in enumerate(listings) for piece in sources.pack_listing(files, i)]

    def expand(self, pipeline: beam.Pipeline) -> dict[str, Any]:
        resolved, drop = self._sources, self._duplicates == "drop"
        ranks = {source.config.name: i for i, source in enumerate(resolved)} | {EARLIER_SOURCE: EARLIER_RANK}
        read = (
            pipeline
            | "Files" >> beam.Create(self._listing, reshuffle=False)
            | "Cut" >> beam.FlatMap(_units, resolved)
            | "To workers" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, resolved).with_outputs(TALLY, main="records")
        )
        raw = read["records"]
        read[TALLY].element_type = KV[str, bytes]
        tallies = (
            read[TALLY]
            | "By file" >> beam.CombinePerKey(_of_file)
            | "By source" >> beam.CombineGlobally(_SourceTalliesCombineFn(len(resolved)))
            | "Shares" >> beam.Map(_checked, resolved)
        )
        good = raw | "Good" >> beam.Filter(lambda r: isinstance(r, Document)).with_output_types(Document)
        bad = raw | "Bad" >> beam.Filter(lambda r: isinstance(r, Quarantined)).with_output_types(Quarantined)
        known: tuple[beam.PCollection, ...] = ()
        compared = good
        if self._earlier is not None:
            before = pipeline | "Earlier" >> self._earlier
            known = (before | "By their ids" >> beam.Map(earlier_member).with_output_types(KV[str, bytes]),)
            compared = (good, before) | "With earlier" >> beam.Flatten()
        copies = (
            compared
            | "By text" >> beam.Map(text_key, ranks).with_output_types(KV[str, bytes])
            | "Group texts" >> GroupBytes(self._num_partitions)
            | "Copies" >> beam.FlatMap(later_copies).with_output_types(KV[str, bytes])
        )
        keyed = good | "By id" >> beam.Map(lambda d: (d.doc_id, DOCUMENT + records.encode(d))).with_output_types(
            KV[str, bytes]
        )
        near = (
            None
            if self._near is None
            else compared | "Near-copies" >> FindNearCopies(self._near, ranks, self._num_partitions)
        )
        distinct = (
            (keyed, *known, *((copies,) if drop else ()), *((near["marks"],) if near else ()))
            | "Group" >> GroupBytes(self._num_partitions)
            | "One id each"
            >> beam.FlatMap(
                _distinct_once_checked,
                ranks,
                self._near is not None and self._near.config.action == "drop",
                beam.pvalue.AsSingleton(tallies),
            ).with_outputs(COUNTS, main="documents")
        )
        documents = distinct["documents"]
        documents.element_type = Document
        counts = (
            raw | "Count read" >> beam.Map(lambda _: {"documents_in": 1}),
            copies | "Count copies" >> beam.Map(copy_counts, drops=drop),
            *((distinct[COUNTS],) if near or known else ()),
            *((near[COUNTS],) if near else ()),
        )
        return {"documents": documents, "quarantined": bad, "counts": counts, "facts": {"sources": tallies}}


def _units(piece: bytes, resolved: Sequence[Source]) -> Iterator[ReadUnit]:
    number, files = sources.unpack_listing(piece)
    for file in files:
        yield from sources.units_of(file, resolved[number].config, number)


def _read(unit: ReadUnit, resolved: Sequence[Source]) -> Iterator[Document | Quarantined | beam.pvalue.TaggedOutput]:
    name = unit.url if unit.shard is None else f"{unit.url}#{unit.shard}"
    tally = shares.FileTally(source=unit.source, file=name)
    documents = 0
    for record in sources.read_documents(unit, resolved[unit.source]):
        if isinstance(record, Document):
            documents += 1
        else:
            tally = shares.with_refused(tally, record)
        yield record
    tally = msgspec.structs.replace(tally, documents=documents)
    yield beam.pvalue.TaggedOutput(TALLY, (f"{unit.source} {name}", msgspec.msgpack.encode(tally)))


def _of_file(pieces: Iterable[bytes]) -> bytes:
    return msgspec.msgpack.encode(shares.of_file(map(_tally_decoder.decode, pieces)))


class _SourceTalliesCombineFn(beam.CombineFn):
    """(file, its tally) to the tallies of all sources, in their order."""

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources

    def create_accumulator(self) -> list[shares.SourceTally]:
        return [shares.SourceTally() for _ in range(self._num_sources)]

    def add_input(self, tallies: list[shares.SourceTally], file: tuple[str, bytes]) -> list[shares.SourceTally]:
        tally = _tally_decoder.decode(file[1])
        shares.add_file(tallies[tally.source], tally)
        return tallies

    def merge_accumulators(self, parts: Iterable[list[shares.SourceTally]]) -> list[shares.SourceTally]:
        merged = self.create_accumulator()
        for part in parts:
            for total, more in zip(merged, part, strict=True):
                shares.add_up(total, more)
        return merged

    def extract_output(self, tallies: list[shares.SourceTally]) -> list[shares.SourceTally]:
        return tallies


def _checked(tallies: Sequence[shares.SourceTally], resolved: Sequence[Source]) -> list[dict[str, Any]]:
    told = [shares.described(tally) for tally in tallies]
    for source, tally in zip(resolved, told, strict=True):
        shares.check_read(source, tally)
    return [msgspec.to_builtins(tally) for tally in told]


def _distinct_once_checked(
    group: tuple[str, Iterable[bytes]], ranks: Mapping[str, int], drop_near: bool, checked: Sequence[Any]
) -> Iterator[Document | beam.pvalue.TaggedOutput]:
    """See `distinct_documents`; what is `checked` is only waited for."""
    counts = Counter[str]()
    yield from distinct_documents(group, ranks, drop_near=drop_near, counts=counts)
    if counts:
        yield beam.pvalue.TaggedOutput(COUNTS, dict(counts))


class FindNearCopies(beam.PTransform):
    """Documents → `marks` for `distinct_documents`, as (id, mark), and `counts`: see `sharding.sources.near_copies`.

    Args:
        near: how they are looked for.
        ranks: the place of each source among the sources, by name.
        num_partitions: see `GroupBytes`.
    """

    def __init__(self, near: NearCopies, ranks: Mapping[str, int], num_partitions: int) -> None:
        super().__init__()
        self._near, self._ranks, self._num_partitions = near, ranks, num_partitions

    def expand(self, documents: beam.PCollection) -> Any:
        links = (
            documents
            | "Bands" >> beam.FlatMap(near_copies.banded, self._ranks, self._near).with_output_types(KV[str, bytes])
            | "Meet" >> GroupBytes(self._num_partitions)
            | "Compare"
            >> beam.FlatMap(near_copies.linked, self._near.config.similarity).with_output_types(KV[str, bytes])
        )
        for number in range(near_copies.ROUNDS):
            links = self._seen_both_ways(links, f"Seen {number}") | f"Large stars {number}" >> _links(
                near_copies.large_star
            )
            links = links | f"By later {number}" >> GroupBytes(self._num_partitions)
            links = links | f"Small stars {number}" >> _links(near_copies.small_star)
        found = self._seen_both_ways(links, "Seen at last") | "Settle" >> beam.FlatMap(_settled).with_outputs(
            COUNTS, main="marks"
        )
        found["marks"].element_type = KV[str, bytes]
        return found

    def _seen_both_ways(self, links: beam.PCollection, name: str) -> beam.PCollection:
        """Each document with its neighbours."""
        ways = links | f"{name}, both ways" >> beam.FlatMap(near_copies.both_ways).with_output_types(KV[str, bytes])
        return ways | name >> GroupBytes(self._num_partitions)


def _links(star: Callable[..., Iterator[tuple[str, bytes]]]) -> beam.PTransform:
    return beam.FlatMap(star).with_output_types(KV[str, bytes])


def _settled(group: tuple[str, Iterable[bytes]]) -> Iterator[Any]:
    for found in near_copies.settled(group):
        yield beam.pvalue.TaggedOutput(COUNTS, found) if isinstance(found, dict) else found
