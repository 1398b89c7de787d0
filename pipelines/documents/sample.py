"""A bounded look into a run of any size: a few parts, a few thousand of their rows, a few whole documents.

The parts of every family are chosen by hashes of document ids, so a few of them are a fair sample of all. Report and
inspect read nothing else of the records; all totals come from the manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from sharding import hashing, storage
from sharding.errors import MillError
from sharding.records.arrow import from_batch
from sharding.records.base import Record
from sharding.records.types import Candidate, ContaminatedDocument, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

MAX_PARTS = 4
"""Parts read of a family."""

MAX_ROWS = 20_000
"""Rows read of a part."""

CANDIDATE_COLUMNS = (
    *("doc_id", "segment_index", "sample", "tier", "model", "prompt", "closed", "thought_tokens", "kept", "reasons"),
    *("value", "heldout_nats", "gain_nats", "control_nats", "chance_heldout_nats", "shown_tokens"),
)
SEGMENT_COLUMNS = ("doc_id", "segment_index", "difficulty_nats", "source")

_PART = re.compile(r"-(\d+)-of-(\d+)\.arrow$")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was looked at.

    Attributes:
        candidates: without their text and tokens.
        difficulty_nats: by segment id; of some segments.
        sources: name of a source → its documents that were seen; empty where a run has but one.
        parts_read, parts_there: of the scored segments.
    """

    candidates: list[Candidate] = field(default_factory=list)
    difficulty_nats: dict[str, float] = field(default_factory=dict)
    sources: dict[str, set[str]] = field(default_factory=dict)
    parts_read: int = 0
    parts_there: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.parts_read == self.parts_there and len(self.difficulty_nats) < MAX_ROWS

    @property
    def doc_ids(self) -> list[str]:
        """The documents that were seen, in the order of their hash."""
        seen = {segment_id.rpartition("#")[0] for segment_id in self.difficulty_nats}
        return sorted(seen | {candidate.doc_id for candidate in self.candidates}, key=by_hash)


@dataclass(frozen=True, kw_only=True)
class DocumentRecords:
    """All records of a document."""

    doc_id: str
    segments: list[ScoredSegment]
    candidates: list[Candidate]
    contaminated: ContaminatedDocument | None

    def goes_together(self) -> bool:
        """Whether it has all its segments once, each with numbers for all its tokens, and traces of no others."""
        count = len(self.segments)
        return (
            all(s.num_segments == count and s.segment_index == i for i, s in enumerate(self.segments))
            and all(len(s.input_ids) == len(s.surprisal_nats) == len(s.entropy_nats) for s in self.segments)
            and all(len(s.memory_nats) in (0, len(s.input_ids)) for s in self.segments)
            and all(
                0 <= c.segment_index < count and 0 <= c.shown_tokens <= len(self.segments[c.segment_index].input_ids)
                for c in self.candidates
            )
            and len({(c.segment_index, c.shown_tokens) for c in self.candidates if c.kept})
            == len({c.segment_index for c in self.candidates if c.kept})
        )


def by_hash(name: str) -> bytes:
    """The key of an order that has nothing to do with the names."""
    return hashing.hashed(hashing.Purpose.REPORT, name)


def look(output: str, stages: Mapping[str, Manifest | None]) -> Sample:
    """Read a sample of the segments' difficulty and of the candidates.

    Raises:
        MillError: a part can't be read.
    """
    scored, selected = stages["score"], stages["select"]
    if scored is None:
        return Sample()
    urls = _few(manifest.file_urls(output, scored, "segments"))
    difficulty: dict[str, float] = {}
    sources: dict[str, set[str]] = {}
    for url in urls:
        for segment in _rows(url, ScoredSegment, SEGMENT_COLUMNS):
            difficulty[segment.segment_id] = segment.difficulty_nats
            if segment.source:
                sources.setdefault(segment.source, set()).add(segment.doc_id)
    candidates = [
        candidate
        for family in ("kept", "rejected")
        for url in (_few(manifest.file_urls(output, selected, family)) if selected else ())
        for candidate in _rows(url, Candidate, CANDIDATE_COLUMNS)
    ]
    return Sample(
        candidates=candidates,
        difficulty_nats=difficulty,
        sources=sources,
        parts_read=len(urls),
        parts_there=len(scored.files.get("segments", [])),
    )


def _few(urls: Sequence[str]) -> list[str]:
    """Some parts of a family: those of the same numbers in every family, where the families have as many parts."""
    return sorted(urls, key=lambda url: by_hash("-".join(_number(url) or (url,))))[:MAX_PARTS]


def _number(url: str) -> tuple[str, str] | None:
    found = _PART.search(url)
    return (found[1], found[2]) if found else None


def _rows(url: str, kind: type[R], columns: Sequence[str]) -> Iterator[R]:
    left = MAX_ROWS
    for batch in storage.read_batches(url, columns, kind=kind):
        yield from from_batch(kind, batch.slice(0, left))
        left -= batch.num_rows
        if left <= 0:
            return


def choose(sample: Sample, limit: int) -> list[str]:
    """Documents to show: by hash, but every tier, reason and source has one before any has a second.

    Args:
        sample: what was looked at.
        limit: how many.
    """
    features: dict[str, set[str]] = {}
    for candidate in sample.candidates:
        found = features.setdefault(candidate.doc_id, set())
        found.add(f"tier {candidate.tier}")
        found.add(f"because {candidate.reasons[0]}" if candidate.reasons else "kept")
    for source, doc_ids in sample.sources.items():
        for doc_id in doc_ids & features.keys():  # of those that were thought about
            features[doc_id].add(f"source {source}")
    known = [doc_id for doc_id in sample.doc_ids if _has_segments(sample, doc_id)]
    chosen: list[str] = []
    wanted = set().union(*(features.get(doc_id, set()) for doc_id in known)) if known else set()
    while wanted and len(chosen) < limit:
        most = max(known, key=lambda doc_id: len(features.get(doc_id, set()) & wanted))  # the first of equals
        chosen.append(most)
        wanted -= features[most]
    thought_about = [doc_id for doc_id in known if doc_id in features]
    # One document without a thought shows what that looks like; more of them tell no more.
    plain = [doc_id for doc_id in known if doc_id not in features]
    rest = [doc_id for doc_id in (*thought_about, *plain[:1]) if doc_id not in chosen]
    if not thought_about:
        rest = plain
    return sorted({*chosen, *rest[: limit - len(chosen)]}, key=by_hash)


def _has_segments(sample: Sample, doc_id: str) -> bool:
    return f"{doc_id}#0" in sample.difficulty_nats


def read_documents(
    output: str, stages: Mapping[str, Manifest | None], doc_ids: Iterable[str]
) -> dict[str, DocumentRecords]:
    """The records of some documents, by id; ids that no scored part has are left out.

    Each part that holds one of them is read once, in batches.

    Raises:
        MillError: a part can't be read.
    """
    wanted = list(dict.fromkeys(doc_ids))
    scored, selected = stages["score"], stages["select"]
    segments = _of_documents(output, scored, "segments", ScoredSegment, wanted)
    kept = _of_documents(output, selected, "kept", Candidate, wanted)
    rejected = _of_documents(output, selected, "rejected", Candidate, wanted)
    contaminated = _of_documents(output, selected, "contaminated", ContaminatedDocument, wanted)
    found = {
        doc_id: DocumentRecords(
            doc_id=doc_id,
            segments=sorted(segments[doc_id], key=lambda segment: segment.segment_index),
            candidates=sorted(
                [*kept.get(doc_id, []), *rejected.get(doc_id, [])], key=lambda c: (c.segment_index, c.sample, c.key)
            ),
            contaminated=next(iter(contaminated.get(doc_id, [])), None),
        )
        for doc_id in wanted
        if doc_id in segments
    }
    for document in found.values():
        if not document.goes_together():
            raise MillError(f"{output}: the records of document {document.doc_id!r} don't go together: run `verify`")
    return found


def _of_documents(
    output: str, stage: Manifest | None, family: str, kind: type[R], doc_ids: Sequence[str]
) -> dict[str, list[R]]:
    if stage is None:
        return {}
    found: dict[str, list[R]] = {}
    for url, here in _places(manifest.file_urls(output, stage, family), doc_ids).items():
        last, values = max(here), pa.array(here)
        for batch in storage.read_batches(url, kind=kind):
            # A part is sorted by document.
            if batch.num_rows and batch.column("doc_id")[0].as_py() > last:
                break
            for record in from_batch(kind, batch.filter(pc.is_in(batch.column("doc_id"), value_set=values))):
                found.setdefault(record.doc_id, []).append(record)  # type: ignore[attr-defined]
    return found


def _places(urls: Sequence[str], doc_ids: Sequence[str]) -> dict[str, list[str]]:
    """Part → the documents that are in it, if they are anywhere."""
    numbered = {number: url for url in urls if (number := _number(url))}
    places: dict[str, list[str]] = {}
    for total in {int(total) for _, total in numbered}:
        for doc_id in doc_ids:
            index = hashing.partition_of(doc_id, total)
            if url := next((url for (i, of), url in numbered.items() if (int(i), int(of)) == (index, total)), None):
                places.setdefault(url, []).append(doc_id)
    return places
