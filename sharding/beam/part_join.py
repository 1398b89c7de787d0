"""A merge of part families: scored documents with what other stages say of them. Pure; `JoinParts` runs it.

    segments-00003-of-00016  ─┐
    requests-00003-of-00016  ─┼─► merged by document id ─► documents, one at a time
    kept-00003-of-00016, ... ─┘

No record is shuffled, since what belongs together already lies in files of one number, in one order. That holds where

- every family was dealt out by `hashing.partition_of` of the document id,
- to the same number of parts,
- and every part is sorted by document.

The number is compared before anything is read, the others are checked with every document: a family from another run
must not be taken for one without anything to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from sharding import hashing, storage
from sharding.beam.part_names import part_count, part_of
from sharding.errors import MillError
from sharding.records.families import SEGMENTS, Family
from sharding.records.types import ScoredDocument, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

_SEGMENT_KEYS = ("doc_id", "segment_index", "num_segments")
_PER_TOKEN = ("input_ids", "surprisal_nats", "entropy_nats", "memory_nats")


@dataclass(frozen=True)
class Parts:
    """The parts of one family.

    Attributes:
        stage: which stage wrote them.
        family: from `sharding.records.families`; partitioned and sorted by document.
        urls: those that have records.
        columns: the columns wanted; all when None.
    """

    stage: str
    family: Family
    urls: tuple[str, ...]
    columns: tuple[str, ...] | None = None

    @classmethod
    def of(cls, output: str, made: Manifest, family: Family, columns: Sequence[str] | None = None) -> Parts:
        """A family of a finished stage of an output."""
        urls = manifest.file_urls(output, made, family.name)
        return cls(made.stage, family, tuple(urls), None if columns is None else tuple(columns))


@dataclass(frozen=True)
class PartGroup:
    """The parts of one number.

    Attributes:
        scored: the scored part: a `Parts` of one URL.
        beside: those of the other families, each of one URL at most.
    """

    scored: Parts
    beside: tuple[Parts, ...]


@dataclass(frozen=True, slots=True)
class JoinedDocument:
    """A scored document with what other families say of it.

    Attributes:
        scored: the document; arrays of columns that weren't asked for are empty.
        beside: name of each family → its records of this document, in the order of their part.
    """

    scored: ScoredDocument
    beside: Mapping[str, list[Any]]


def groups_of(scored: Parts, *beside: Parts) -> list[PartGroup]:
    """The scored parts, each with the parts of its number of the other families.

    Args:
        scored: of the family "segments".
        beside: of any other families that are partitioned and sorted by document.

    Raises:
        MillError: two stages dealt out to different numbers of parts, something is said of a part without documents, or
            a file's name doesn't say which part it is.
    """
    numbers = {part_of(url)[0] for url in scored.urls}
    for parts in (scored, *beside):
        if (parts.family.partition_by, *parts.family.sort_by[:1]) != ("doc_id", "doc_id"):
            raise ValueError(f"parts of the family {parts.family.name!r} are not partitioned and sorted by document")
        for url in parts.urls:
            if part_of(url)[1] != part_count(scored.urls):
                raise MillError(
                    f"{url}: the stage {parts.stage} wrote {part_of(url)[1]} parts, the stage {scored.stage} "
                    f"{part_count(scored.urls)}: they are not of one run; {_again(parts.stage)}"
                )
            if part_of(url)[0] not in numbers:
                raise MillError(
                    f"{url}: the stage {scored.stage} has no documents in the part of this number, the stage "
                    f"{parts.stage} has: they are not of one run; {_again(parts.stage)}"
                )
    # By number, once: a corpus has thousands of parts.
    places = [(parts, {part_of(url)[0]: url for url in parts.urls}) for parts in (scored, *beside)]
    groups = []
    for number in sorted(numbers):
        of_scored, *others = (replace(parts, urls=(urls[number],) if number in urls else ()) for parts, urls in places)
        groups.append(PartGroup(of_scored, tuple(others)))
    return groups


def _again(stage: str) -> str:
    return f"make the stage anew: thoughtmill {stage} --replace"


def joined_documents(group: PartGroup) -> Iterator[JoinedDocument]:
    """The documents of one scored part, by document id. One of them is held, and a record batch of every file.

    Raises:
        MillError: a file is unreadable; a document lacks segments; a part is not sorted, or holds documents of another
            part; or something is said of a document that was not scored.
    """
    families = {parts.family.name: _Beside(parts, group.scored.stage) for parts in group.beside}
    [url] = group.scored.urls
    in_order = _InOrder(url, group.scored.stage)
    for document in scored_documents(url, group.scored.columns):
        in_order.check(document.doc_id)
        yield JoinedDocument(document, {name: family.of(document.doc_id) for name, family in families.items()})
    for family in families.values():
        family.end()


class _InOrder:
    """Checks that the documents of a part ascend and are of it."""

    def __init__(self, url: str, stage: str) -> None:
        self._url, self._stage = url, stage
        self._index, self._count = part_of(url)
        self._last = ""

    def check(self, doc_id: str) -> None:
        if doc_id < self._last:
            raise MillError(
                f"{self._url}: document {doc_id!r} comes behind {self._last!r}, the part is not sorted; "
                f"{_again(self._stage)}"
            )
        if (belongs := hashing.partition_of(doc_id, self._count)) != self._index:
            raise MillError(
                f"{self._url}: document {doc_id!r} belongs to part {belongs}, it is not a part of this run; "
                f"{_again(self._stage)}"
            )
        self._last = doc_id


class _Beside:
    """The records of a part, asked for by ascending document id."""

    def __init__(self, parts: Parts, scored_stage: str) -> None:
        self._stage, self._scored_stage = parts.stage, scored_stage
        self._url = parts.urls[0] if parts.urls else ""
        self._groups: Iterator[tuple[str, Iterator[Any]]] = iter(())
        if parts.urls:
            columns = None if parts.columns is None else {"doc_id", *parts.columns}
            records = storage.read_records(self._url, parts.family.kind, None if columns is None else tuple(columns))
            self._groups = groupby(records, key=lambda record: record.doc_id)
            self._in_order = _InOrder(self._url, self._stage)
        self._next()

    def of(self, doc_id: str) -> list[Any]:
        if self._doc_id is None or self._doc_id > doc_id:
            return []
        self._check(doc_id)
        records = self._records
        self._next()
        return records

    def end(self) -> None:
        self._check(None)

    def _next(self) -> None:
        group = next(self._groups, None)
        self._doc_id = group[0] if group else None
        self._records = list(group[1]) if group else []
        if group:
            self._in_order.check(group[0])

    def _check(self, doc_id: str | None) -> None:
        if self._doc_id != doc_id:
            raise MillError(
                f"{self._url}: the stage {self._stage} says something of document {self._doc_id!r}, which the stage "
                f"{self._scored_stage} did not score; {_again(self._stage)}"
            )


def scored_documents(url: str, columns: Iterable[str] | None = None) -> Iterator[ScoredDocument]:
    """The documents of a scored part, in its order, put together from their segments.

    Args:
        url: the part.
        columns: the segments' columns wanted beside their keys; all when None. Arrays of the others are empty, except
            that token ids, which say where segments begin, are always read.

    Raises:
        MillError: the file is unreadable, or a document has other segments than it says.
    """
    wanted = SEGMENTS.schema(vocab_size=1).names if columns is None else {*_SEGMENT_KEYS, "input_ids", *columns}
    open_document: list[dict[str, Any]] = []  # pieces of a document that goes on in the next batch
    segments_read = 0
    for batch in storage.read_batches(url, tuple(wanted), kind=ScoredSegment):
        lists = {name: _flat(batch.column(name)) for name in _PER_TOKEN if name in batch.schema.names}
        counts, indices = batch.column("num_segments").to_numpy(), batch.column("segment_index").to_numpy()
        doc_ids = batch.column("doc_id")
        row = 0
        while row < batch.num_rows:
            doc_id, missing = doc_ids[row].as_py(), int(counts[row]) - segments_read
            stop = min(batch.num_rows, row + missing)
            here = np.arange(segments_read, segments_read + stop - row)
            # Sorted: a stretch with one value at both ends holds no other.
            if missing < 1 or not np.array_equal(indices[row:stop], here) or doc_ids[row] != doc_ids[stop - 1]:
                raise MillError(f"{url}: document {doc_id!r} lacks some of its {counts[row]} segments, or has others")
            piece: dict[str, Any] = {
                name: flat[offsets[row] : offsets[stop]] for name, (flat, offsets) in lists.items()
            }
            piece["lengths"] = np.diff(lists["input_ids"][1][row : stop + 1])
            piece |= {name: batch.column(name)[row].as_py() for name in ("metadata", "source") if name in wanted}
            if "difficulty_nats" in wanted:
                piece["segment_difficulty_nats"] = batch.column("difficulty_nats")[row:stop].to_numpy()
            open_document.append(piece)
            segments_read += stop - row
            if segments_read == counts[row]:
                yield _document(doc_id, open_document)
                open_document, segments_read = [], 0
            row = stop
    if segments_read:
        raise MillError(f"{url}: its last document lacks segments")


def _flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """(values, offsets) of a list column."""
    offsets = column.offsets.to_numpy()
    return column.flatten().to_numpy(), offsets - offsets[0]


def _document(doc_id: str, pieces: Sequence[Mapping[str, Any]]) -> ScoredDocument:
    """A document of consecutive runs of its segments."""
    arrays = {
        name: values[0] if len(values := [piece[name] for piece in pieces]) == 1 else np.concatenate(values)
        for name in (*_PER_TOKEN, "segment_difficulty_nats", "lengths")
        if name in pieces[0]
    }
    ends = np.cumsum(arrays.pop("lengths"), dtype=np.int64)
    nothing = np.empty(0, np.float16)
    return ScoredDocument(
        doc_id=doc_id,
        segment_starts=np.concatenate(([0], ends[:-1])),
        input_ids=arrays["input_ids"],
        surprisal_nats=arrays.get("surprisal_nats", nothing),
        entropy_nats=arrays.get("entropy_nats", nothing),
        memory_nats=arrays.get("memory_nats", nothing),
        segment_difficulty_nats=arrays.get("segment_difficulty_nats", np.empty(0, np.float64)),
        metadata=pieces[0].get("metadata"),
        source=pieces[0].get("source", ""),
    )
