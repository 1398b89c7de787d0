"""The first step of the score stage: every document of the sources, once or as often as it is there, under its own id.

files ─► units ─► documents ─► by id ────────────────────► one id each ─► documents
              └► quarantine └► hash, id, origin ─► copies ─┘ dropped

Texts go through one shuffle. Exact copies are found among hashes, whatever the order of reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import apache_beam as beam
from apache_beam.typehints import KV

from sharding import records, sources
from sharding.beam.shuffle import GroupBytes
from sharding.records.types import Document, Quarantined
from sharding.sources import ReadUnit, Source, SourceFile
from sharding.sources.duplicates import DOCUMENT, distinct_documents, later_copies, text_key

Duplicates = Literal["keep", "drop"]


class ReadDocuments(beam.PTransform):
    """The documents of the sources with ids of their own; `quarantined`, and `counts`, a tuple, beside them.

    Args:
        resolved: the sources as `sources.resolve` gives them.
        listings: the files of each.
        duplicates: whether exact copies of a text stay. They are counted either way.
        num_partitions: see `GroupBytes`.
    """

    def __init__(
        self,
        resolved: Sequence[Source],
        listings: Sequence[Sequence[SourceFile]],
        duplicates: Duplicates,
        num_partitions: int,
    ) -> None:
        super().__init__()
        self._sources, self._duplicates, self._num_partitions = tuple(resolved), duplicates, num_partitions
        self._listing = [piece for i, files in enumerate(listings) for piece in sources.pack_listing(files, i)]

    def expand(self, pipeline: beam.Pipeline) -> dict[str, Any]:
        resolved, drop = self._sources, self._duplicates == "drop"
        ranks = {source.config.name: i for i, source in enumerate(resolved)}
        raw = (
            pipeline
            | "Files" >> beam.Create(self._listing, reshuffle=False)
            | "Cut" >> beam.FlatMap(_units, resolved)
            | "To workers" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, resolved)
        )
        good = raw | "Good" >> beam.Filter(lambda r: isinstance(r, Document)).with_output_types(Document)
        bad = raw | "Bad" >> beam.Filter(lambda r: isinstance(r, Quarantined)).with_output_types(Quarantined)
        copies = (
            good
            | "By text" >> beam.Map(text_key, ranks).with_output_types(KV[str, bytes])
            | "Group texts" >> GroupBytes(self._num_partitions)
            | "Copies" >> beam.FlatMap(later_copies).with_output_types(KV[str, bytes])
        )
        keyed = good | "By id" >> beam.Map(lambda d: (d.doc_id, DOCUMENT + records.encode(d))).with_output_types(
            KV[str, bytes]
        )
        documents = (
            ((keyed, copies) if drop else (keyed,))
            | "Group" >> GroupBytes(self._num_partitions)
            | "One id each" >> beam.FlatMap(distinct_documents, ranks).with_output_types(Document)
        )
        names = ("documents_duplicate", *(("duplicates_dropped",) if drop else ()))
        counts = (
            raw | "Count read" >> beam.Map(lambda _: {"documents_in": 1}),
            copies | "Count copies" >> beam.Map(lambda _: dict.fromkeys(names, 1)),
        )
        return {"documents": documents, "quarantined": bad, "counts": counts}


def _units(piece: bytes, resolved: Sequence[Source]) -> Iterator[ReadUnit]:
    number, files = sources.unpack_listing(piece)
    for file in files:
        yield from sources.units_of(file, resolved[number].config, number)


def _read(unit: ReadUnit, resolved: Sequence[Source]) -> Iterator[Document | Quarantined]:
    return sources.read_documents(unit, resolved[unit.source])
