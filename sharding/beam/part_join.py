"""Scored documents and what later stages say of them, side by side from their parts. How the pack stage reads.

    segments-00003-of-00016 ─┐
    kept-00003-of-00016     ─┼─► merged by document id ─► documents, one at a time
    contaminated-00003-...  ─┘

Every family's parts are chosen by `order.partition_of` of the document id and sorted by it, so what belongs together is
in parts of equal number and in one order: a merge, where a shuffle would carry every token over the wire. Families with
another number of parts are read too, each file once for every part it shares documents with.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import gcd
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from sharding import hashing, storage
from sharding.errors import MillError
from sharding.records.types import Candidate, ContaminatedDocument, ScoredSegment

SEGMENT_COLUMNS = ("doc_id", "segment_index", "num_segments", "input_ids", "source")
THOUGHT_COLUMNS = ("doc_id", "segment_index", "sample", "key", "input_ids", "shown_tokens")

_PART_NAME = re.compile(r"-(\d{5,})-of-(\d{5,})\.arrow$")

R = TypeVar("R", Candidate, ContaminatedDocument)


@dataclass(frozen=True)
class PartGroup:
    """One scored part and the files that may speak of its documents.

    Attributes:
        segments: URL of the scored part.
        thoughts, contaminated: URLs of parts with `Candidate` and `ContaminatedDocument`.
    """

    segments: str
    thoughts: tuple[str, ...]
    contaminated: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class JoinedDocument:
    """A scored document with its thoughts.

    Attributes:
        source: name of its source.
        input_ids: (num_tokens,) its training tokens.
        segment_starts: (num_segments,) int64, where each segment begins.
        thoughts: in the order of their part: by segment, then by sample.
        contaminated: it overlaps with a benchmark.
    """

    doc_id: str
    source: str
    input_ids: np.ndarray
    segment_starts: np.ndarray
    thoughts: Sequence[Candidate]
    contaminated: bool

    def segments(self) -> list[ScoredSegment]:
        """Its segments, without their scores."""
        ends = np.append(self.segment_starts[1:], len(self.input_ids)).tolist()
        nothing = np.empty(0, np.float16)
        return [
            ScoredSegment(
                doc_id=self.doc_id,
                segment_index=index,
                num_segments=len(ends),
                token_start=start,
                input_ids=self.input_ids[start:end],
                surprisal_nats=nothing,
                entropy_nats=nothing,
                memory_nats=nothing,
                difficulty_nats=0.0,
                source=self.source,
            )
            for index, (start, end) in enumerate(zip(self.segment_starts.tolist(), ends, strict=True))
        ]


def part_groups(segments: Iterable[str], thoughts: Sequence[str], contaminated: Sequence[str]) -> list[PartGroup]:
    """The scored parts, each with the files of the other families that share documents with it.

    Raises:
        MillError: a file's name doesn't say which part it is.
    """
    return [
        PartGroup(url, tuple(_meeting(url, thoughts)), tuple(_meeting(url, contaminated))) for url in sorted(segments)
    ]


def part_count(urls: Sequence[str]) -> int:
    """How many parts a family was dealt out to, from the names of those that have records; 1 where none has."""
    return _part_of(urls[0])[1] if urls else 1


def _part_of(url: str) -> tuple[int, int]:
    """(number, how many) of a part, from its name."""
    match = _PART_NAME.search(url)
    if match is None:
        raise MillError(f"{url}: its name doesn't say which part it is, such as segments-00003-of-00016.arrow")
    return int(match[1]), int(match[2])


def _meeting(url: str, others: Iterable[str]) -> Iterator[str]:
    index, count = _part_of(url)
    for other in others:
        other_index, other_count = _part_of(other)
        # A hash can leave these remainders for both counts only if they agree modulo what divides both.
        if (index - other_index) % gcd(count, other_count) == 0:
            yield other


def joined_documents(group: PartGroup) -> Iterator[JoinedDocument]:
    """The documents of one scored part, by document id. One of them is held, and a record batch of every file.

    Raises:
        MillError: a file is unreadable.
        AssertionError: a document lacks segments, parts are not in order, or something is said of a document that was
            not scored.
    """
    index, count = _part_of(group.segments)
    thoughts = _Beside(group.thoughts, Candidate, THOUGHT_COLUMNS, index, count)
    contaminated = _Beside(group.contaminated, ContaminatedDocument, ("doc_id",), index, count)
    last = ""
    for doc_id, source, input_ids, starts in _scored(group.segments):
        if doc_id < last:
            raise AssertionError(f"{group.segments}: document {doc_id!r} comes behind {last!r}")
        last = doc_id
        yield JoinedDocument(doc_id, source, input_ids, starts, thoughts.of(doc_id), bool(contaminated.of(doc_id)))
    thoughts.end()
    contaminated.end()


class _Beside(Generic[R]):
    """Records of some sorted files, asked for by ascending document id."""

    def __init__(self, urls: Sequence[str], kind: type[R], columns: tuple[str, ...], index: int, count: int) -> None:
        files = [storage.read_records(url, kind, columns) for url in urls]
        merged = heapq.merge(*files, key=lambda record: record.doc_id)
        here = (r for r in merged if hashing.partition_of(r.doc_id, count) == index)
        self._groups: Iterator[tuple[str, Any]] = groupby(here, key=lambda record: record.doc_id)
        self._next()

    def of(self, doc_id: str) -> list[R]:
        if self._doc_id is not None and self._doc_id <= doc_id:
            self._check(doc_id)
            records = self._records
            self._next()
            return records
        return []

    def end(self) -> None:
        self._check(None)

    def _next(self) -> None:
        group = next(self._groups, None)
        self._doc_id: str | None = group[0] if group else None
        self._records: list[R] = list(group[1]) if group else []

    def _check(self, doc_id: str | None) -> None:
        if self._doc_id != doc_id:
            raise AssertionError(f"document {self._doc_id!r} has thoughts or is contaminated, but was not scored")


def _scored(url: str) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(doc_id, source, tokens, segment starts) of the documents of a scored part, in its order."""
    parts: list[np.ndarray] = []  # of a document that goes on in the next batch
    lengths: list[np.ndarray] = []
    segments_read = 0
    for batch in storage.read_batches(url, SEGMENT_COLUMNS):
        ids = batch.column("input_ids")
        flat, offsets = ids.flatten().to_numpy(), ids.offsets.to_numpy()
        offsets = offsets - offsets[0]
        counts, indices = batch.column("num_segments").to_numpy(), batch.column("segment_index").to_numpy()
        doc_ids, sources = batch.column("doc_id"), batch.column("source")
        row = 0
        while row < batch.num_rows:
            doc_id, missing = doc_ids[row].as_py(), int(counts[row]) - segments_read
            stop = min(batch.num_rows, row + missing)
            if missing < 1 or not np.array_equal(
                indices[row:stop], np.arange(segments_read, segments_read + stop - row)
            ):
                raise AssertionError(f"{url}: document {doc_id!r} has other segments than its {counts[row]}")
            if not _all_equal(doc_ids, row, stop):
                raise AssertionError(f"{url}: document {doc_id!r} lacks some of its {counts[row]} segments")
            parts.append(flat[offsets[row] : offsets[stop]])
            lengths.append(np.diff(offsets[row : stop + 1]))
            segments_read += stop - row
            if segments_read == counts[row]:
                ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)
                starts = np.concatenate(([0], ends[:-1]))
                yield doc_id, sources[row].as_py(), parts[0] if len(parts) == 1 else np.concatenate(parts), starts
                parts, lengths, segments_read = [], [], 0
            row = stop
    if segments_read:
        raise AssertionError(f"{url}: its last document lacks segments")


def _all_equal(column: pa.Array, start: int, stop: int) -> bool:
    """Whether a stretch of a sorted column holds one value."""
    return bool(column[start] == column[stop - 1])
