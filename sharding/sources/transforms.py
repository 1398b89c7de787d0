"""The first step of the score stage: every document of the sources, once or as often as it is there, under its own id.

files ─► units ─► documents ─► by id ────────────────────► one id each ─► documents
              └► quarantine └► hash, id, origin ─► copies ─┘ dropped

Texts go through one shuffle. Exact copies are found among hashes, whatever the order of reading.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV

from sharding import records, sources
from sharding.beam.shuffle import GroupBytes
from sharding.hashing import content_id
from sharding.records.types import Document, Quarantined
from sharding.sources import ReadUnit, Source, SourceFile

Duplicates = Literal["keep", "drop"]

NUMBERED = re.compile(r"~\d+$")
"""How the ids end that tell documents of one id apart."""

DOCUMENT, DROPPED = b"d", b"x"


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
            | "Spread" >> beam.Reshuffle()
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


def text_key(document: Document, ranks: Mapping[str, int]) -> tuple[str, bytes]:
    """(hash of the text, where it is): what meets the document's exact copies.

    Args:
        document: any.
        ranks: the place of each source among the sources, by name.
    """
    return content_id(document.text), msgspec.msgpack.encode((ranks[document.source], document.doc_id, document.origin))


def later_copies(group: tuple[str, Iterable[bytes]]) -> Iterator[tuple[str, bytes]]:
    """All documents of one text but the first, as (id, mark for `distinct_documents`).

    The first is that of the source named first, then of the smallest id, then of the smallest origin.
    """
    # Two passes instead of a sorted list: a text may be there a hundred million times.
    places = group[1]
    first = min(_place(data) for data in places)
    for data in places:
        place = _place(data)
        if place != first:
            rank, doc_id, origin = place
            yield doc_id, DROPPED + msgspec.msgpack.encode((rank, origin))


_place_decoder = msgspec.msgpack.Decoder(tuple[int, str, str])
_mark_decoder = msgspec.msgpack.Decoder(tuple[int, str])


def _only(members: Iterable[bytes]) -> bytes | None:
    """The only member of a group of one, which nearly all are."""
    first_two = list(itertools.islice(members, 2))
    return first_two[0] if len(first_two) == 1 else None


def _place(data: bytes) -> tuple[int, str, str]:
    return _place_decoder.decode(data)


def distinct_documents(group: tuple[str, Iterable[bytes]], ranks: Mapping[str, int]) -> Iterator[Document]:
    """Documents that carry one id, without those that are marked as dropped, each with an id of its own.

    The first keeps the id, the others get "~2", "~3", ... A source's own id that looks like that gets "~1" behind it,
    so that no two documents of a run share an id. The order is that of the sources, then of the texts' hashes, then of
    the origins, so the outcome doesn't depend on the order of reading.

    Args:
        group: the id, and documents and marks in any order.
        ranks: the place of each source among the sources, by name.
    """
    doc_id, members = group
    only = _only(members)
    if only is not None and only[:1] == DOCUMENT and NUMBERED.search(doc_id) is None:
        yield records.decode(Document, only[1:])
        return
    dropped: set[tuple[int, str]] = set()
    places: list[tuple[int, str, str]] = []
    # Two passes: only places are held, not the texts.
    for data in members:
        if data[:1] == DROPPED:
            dropped.add(_mark_decoder.decode(data[1:]))
        else:
            document = records.decode(Document, data[1:])
            places.append((ranks[document.source], content_id(document.text), document.origin))
    staying = sorted(place for place in places if (place[0], place[2]) not in dropped)
    copy_of = {(rank, origin): copy for copy, (rank, _, origin) in enumerate(staying, start=1)}
    looks_numbered = NUMBERED.search(doc_id) is not None
    for data in members:
        if data[:1] == DOCUMENT:
            document = records.decode(Document, data[1:])
            copy = copy_of.get((ranks[document.source], document.origin))
            if copy is not None:
                numbered = copy > 1 or looks_numbered
                yield msgspec.structs.replace(document, doc_id=f"{doc_id}~{copy}") if numbered else document
