"""Scored parts joined with what other stages say of their documents; plain documents laid out without segments."""

from __future__ import annotations

import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from pipelines.score import MAX_PARTS
from sharding import hashing, storage
from sharding.beam.joins import JoinParts
from sharding.beam.part_join import Parts, groups_of, joined_documents
from sharding.beam.part_names import part_name
from sharding.errors import MillError
from sharding.packing.layout import Delimiters, SegmentTokens, lay_out, lay_out_plain
from sharding.records.families import CONTAMINATED, KEPT, QUARANTINE, REQUESTS, SEGMENTS, Family
from sharding.records.types import Candidate, ContaminatedDocument, Request, ScoredDocument
from sharding.storage import arrow_files

DTYPE = np.dtype(np.uint16)


def scored(doc_id: str, lengths: list[int]) -> ScoredDocument:
    total = sum(lengths)
    nats = np.zeros(total, np.float16)
    return ScoredDocument(
        doc_id=doc_id,
        segment_starts=np.cumsum([0, *lengths[:-1]]).astype(np.int64),
        input_ids=np.arange(total, dtype=DTYPE),
        surprisal_nats=nats,
        entropy_nats=nats,
        memory_nats=nats[:0],
        segment_difficulty_nats=np.arange(len(lengths), dtype=np.float64),
        metadata="{}",
        source="here",
    )


def thought(doc_id: str, segment_index: int, sample: int = 0) -> Candidate:
    return Candidate(
        doc_id=doc_id, segment_index=segment_index, key=f"{doc_id}-{sample}", sample=sample, tier="t", model="m",
        prompt="p", closed="natural", finish_reason="stop", thought_tokens=3, text="x",
        input_ids=np.arange(3, dtype=DTYPE), shown_tokens=1, kept=True, reasons=[],
    )  # fmt: skip


def request(doc_id: str) -> Request:
    return Request(
        doc_id=doc_id, segment_index=0, tier="t", model="m", prompt="p", request_key=doc_id, samples=1, max_tokens=9,
        expected_tokens=5.0, prompt_tokens=4, prompt_token_ids=np.empty(0, np.uint32), shown_tokens=1,
    )  # fmt: skip


def write(folder: Path, family: Family, rows: list, num_parts: int) -> Parts:
    urls = []
    for part in range(num_parts):
        here = sorted(
            (r for r in rows if hashing.partition_of(r.doc_id, num_parts) == part),
            key=lambda r: (r.doc_id, getattr(r, "segment_index", 0), getattr(r, "sample", 0)),
        )
        if here:
            urls.append(str(folder / part_name(family.name, part, num_parts)))
            storage.write_part(urls[-1], here, family.schema(vocab_size=100))
    return Parts(STAGES[family.name], family, tuple(urls))


STAGES = {"segments": "score", "requests": "augment", "kept": "select", "contaminated": "select"}


def join(folder: Path, documents: list, thoughts: list, contaminated: list, parts: tuple[int, int, int]) -> list:
    segments = [segment for document in documents for segment in document.segments()]
    groups = groups_of(
        write(folder, SEGMENTS, segments, parts[0]),
        write(folder, KEPT, thoughts, parts[1]),
        write(folder, CONTAMINATED, contaminated, parts[2]),
    )
    return [document for group in groups for document in joined_documents(group)]


@pytest.mark.parametrize("num_parts", [1, 4, 6])
def test_every_document_meets_what_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int
) -> None:
    monkeypatch.setattr(arrow_files, "BATCH_BYTES", 300)  # documents go on from batch to batch
    documents = [scored(f"doc-{i}", [1 + (i * j) % 7 for j in range(1 + i % 9)]) for i in range(40)]
    thoughts = [thought(f"doc-{i}", 0, sample) for i in range(0, 40, 3) for sample in range(2)]
    contaminated = [ContaminatedDocument(doc_id=f"doc-{i}", benchmarks=["b"], source_tokens=1) for i in range(0, 40, 7)]
    joined = join(tmp_path, documents, thoughts, contaminated, (num_parts,) * 3)
    found = {document.scored.doc_id: document for document in joined}
    assert len(joined) == 40
    for i, document in enumerate(documents):
        of_this = found[document.doc_id]
        assert of_this.scored == document, "as it was scored, in every column"
        assert [t.sample for t in of_this.beside["kept"]] == ([0, 1] if i % 3 == 0 else [])
        assert bool(of_this.beside["contaminated"]) == (i % 7 == 0)


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    document = scored("doc", [3, 4])
    parts = write(tmp_path, SEGMENTS, list(document.segments()), 1)
    kept = write(tmp_path, KEPT, [thought("doc", 1)], 1)
    [group] = groups_of(
        Parts("score", SEGMENTS, parts.urls, ("input_ids", "source")), Parts("select", KEPT, kept.urls, ("key",))
    )
    [joined] = joined_documents(group)
    assert joined.scored.source == "here" and joined.scored.metadata is None
    assert len(joined.scored.surprisal_nats) == len(joined.scored.segment_difficulty_nats) == 0
    np.testing.assert_array_equal(joined.scored.segment_starts, [0, 3])
    segments = list(joined.scored.segments())
    assert [(s.num_segments, s.token_start, s.input_ids.tolist()) for s in segments] == [
        (2, 0, [0, 1, 2]),
        (2, 3, [3, 4, 5, 6]),
    ]
    [candidate] = joined.beside["kept"]
    assert (candidate.doc_id, candidate.key, candidate.text, len(candidate.input_ids)) == ("doc", "doc-0", "", 0)


def test_join_parts_is_a_transform(tmp_path: Path) -> None:
    documents = [scored(f"doc-{i}", [3, 2]) for i in range(20)]
    segments = write(tmp_path, SEGMENTS, [s for document in documents for s in document.segments()], 3)
    requests = write(tmp_path, REQUESTS, [request(f"doc-{i}") for i in range(0, 20, 2)], 3)
    with beam.Pipeline() as pipeline:
        found = (
            pipeline
            | JoinParts(segments, requests)
            | beam.Map(lambda joined: (joined.scored.doc_id, len(joined.beside["requests"])))
        )
        assert_that(found, equal_to([(f"doc-{i}", int(i % 2 == 0)) for i in range(20)]))


def test_as_many_parts_as_there_may_be_are_grouped_at_once() -> None:
    def parts(stage: str, family: Family) -> Parts:
        return Parts(stage, family, tuple(part_name(family.name, number, MAX_PARTS) for number in range(MAX_PARTS)))

    began = time.monotonic()
    groups = groups_of(parts("score", SEGMENTS), parts("select", KEPT))
    assert time.monotonic() - began < 30, "each part against every other takes minutes"
    assert [(len(g.scored.urls), len(g.beside[0].urls)) for g in groups] == [(1, 1)] * MAX_PARTS


@pytest.mark.parametrize("parts", [(6, 4, 1), (1, 3, 5), (5, 3, 2)])
def test_stages_with_other_numbers_of_parts_are_an_error_that_names_both(
    tmp_path: Path, parts: tuple[int, int, int]
) -> None:
    documents = [scored(f"doc-{i}", [3]) for i in range(30)]
    said = f"stage select wrote {parts[1]} parts, the stage score {parts[0]}: .*thoughtmill select --replace"
    with pytest.raises(MillError, match=said):
        join(tmp_path, documents, [thought("doc-1", 0)], [], parts)


def test_a_part_without_documents_is_an_error_that_names_both(tmp_path: Path) -> None:
    here = [i for i in range(20) if hashing.partition_of(f"doc-{i}", 2) == 0]
    elsewhere = next(i for i in range(20) if hashing.partition_of(f"doc-{i}", 2) == 1)
    documents = [scored(f"doc-{i}", [3]) for i in here]
    with pytest.raises(MillError, match="stage score has no documents in the part of this number, the stage select"):
        join(tmp_path, documents, [thought(f"doc-{elsewhere}", 0)], [], (2, 2, 2))


@pytest.mark.parametrize("doc_id", ["a", "doc-11", "zzz"])
def test_what_is_said_of_no_document_is_an_error_that_names_both(tmp_path: Path, doc_id: str) -> None:
    documents = [scored(f"doc-{i}", [3]) for i in range(3)]
    said = f"stage select says something of document '{doc_id}', which the stage score did not score"
    with pytest.raises(MillError, match=said):
        join(tmp_path, documents, [thought(doc_id, 0)], [], (1, 1, 1))


def test_a_part_that_is_not_sorted_is_an_error(tmp_path: Path) -> None:
    documents = [scored(f"doc-{i}", [3]) for i in range(3)]
    segments = write(tmp_path, SEGMENTS, [s for document in documents for s in document.segments()], 1)
    url = str(tmp_path / part_name("kept", 0, 1))
    storage.write_part(url, [thought("doc-2", 0), thought("doc-1", 0)], KEPT.schema(vocab_size=100))
    [group] = groups_of(segments, Parts("select", KEPT, (url,)))
    with pytest.raises(MillError, match=r"kept-00000.*'doc-1' comes behind 'doc-2'.*thoughtmill select --replace"):
        list(joined_documents(group))
    storage.write_part(
        segments.urls[0],
        [s for document in reversed(documents) for s in document.segments()],
        SEGMENTS.schema(vocab_size=100),
    )
    [group] = groups_of(segments)
    with pytest.raises(MillError, match=r"segments-00000.*'doc-1' comes behind 'doc-2'.*thoughtmill score --replace"):
        list(joined_documents(group))


@pytest.mark.parametrize("family", [SEGMENTS, KEPT])
def test_a_part_that_was_dealt_out_otherwise_is_an_error(tmp_path: Path, family: Family) -> None:
    """As a part of another run is that was put under this one's name."""
    ids = {part: next(f"d{i}" for i in range(20) if hashing.partition_of(f"d{i}", 2) == part) for part in (0, 1)}
    first, last = sorted(ids.values())
    number = {doc_id: part for part, doc_id in ids.items()}[first]
    segments = write(tmp_path, SEGMENTS, list(scored(first, [3]).segments()), 2)
    kept = write(tmp_path, KEPT, [thought(first, 0)], 2)
    rows = [
        s
        for doc_id in (first, last)
        for s in (scored(doc_id, [3]).segments() if family is SEGMENTS else [thought(doc_id, 0)])
    ]
    storage.write_part(str(tmp_path / part_name(family.name, number, 2)), rows, family.schema(vocab_size=100))
    [group] = groups_of(segments, kept)
    with pytest.raises(MillError, match=f"{family.name}-0000.*document '{last}' belongs to part {1 - number}"):
        list(joined_documents(group))


def test_families_that_are_not_dealt_out_by_document_are_no_parts_to_join(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'quarantine' are not partitioned and sorted by document"):
        groups_of(Parts("score", SEGMENTS, ()), Parts("score", QUARANTINE, ()))


@pytest.mark.parametrize("missing", [0, 2, 4])
def test_a_missing_segment_is_an_error(tmp_path: Path, missing: int) -> None:
    segments = [s for i in range(3) for s in scored(f"doc-{i}", [3, 4, 5, 6, 7]).segments()]
    del segments[5 + missing]
    [group] = groups_of(write(tmp_path, SEGMENTS, segments, 1))
    with pytest.raises(MillError, match="doc-1"):
        list(joined_documents(group))


def test_a_document_cut_short_by_the_end_is_an_error(tmp_path: Path) -> None:
    segments = list(scored("doc", [3, 4, 5]).segments())[:2]
    [group] = groups_of(write(tmp_path, SEGMENTS, segments, 1))
    with pytest.raises(MillError, match="its last document lacks segments"):
        list(joined_documents(group))


def test_segments_out_of_order_are_an_error(tmp_path: Path) -> None:
    segments = list(scored("doc", [3, 4, 5]).segments())
    url = str(tmp_path / part_name("segments", 0, 1))
    storage.write_part(url, [segments[0], segments[2], segments[1]], SEGMENTS.schema(vocab_size=100))
    with pytest.raises(MillError, match="'doc' lacks some of its 3 segments, or has others"):
        list(joined_documents(groups_of(Parts("score", SEGMENTS, (url,)))[0]))


@given(
    st.lists(st.integers(1, 60), max_size=8),
    st.integers(0, 4),
    st.integers(10, 70),
    st.integers(0, 3),
)
def test_a_plain_document_is_laid_out_as_its_segments_are(
    lengths: list[int], end: int, max_tokens: int, wrap: int
) -> None:
    delimiters = Delimiters(*(np.full(n, 90, DTYPE) for n in (wrap, wrap, end)))
    ids = np.arange(sum(lengths), dtype=DTYPE)
    starts = np.cumsum([0, *lengths[:-1]])[: len(lengths)].astype(np.int64)
    segments = [SegmentTokens(ids[a : a + n]) for a, n in zip(starts, lengths, strict=True)]
    expected, counts = lay_out("d", segments, "after_document", delimiters, max_tokens, DTYPE)
    items, plain_counts = lay_out_plain("d", ids, starts, delimiters, max_tokens, DTYPE)
    assert (items, plain_counts) == (expected, counts)
