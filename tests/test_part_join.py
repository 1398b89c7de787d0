"""Scored parts joined with what other stages say of their documents; plain documents laid out without segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding import hashing, records, storage
from sharding.beam.part_join import JoinedDocument, joined_documents, part_groups
from sharding.beam.parts import part_name
from sharding.packing.layout import Delimiters, SegmentTokens, lay_out, lay_out_plain
from sharding.records.types import Candidate, ContaminatedDocument, ScoredDocument
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


def write(folder: Path, family: str, rows: list, schema: object, num_parts: int) -> list[str]:
    urls = []
    for part in range(num_parts):
        here = sorted(
            (r for r in rows if hashing.partition_of(r.doc_id, num_parts) == part),
            key=lambda r: (r.doc_id, getattr(r, "segment_index", 0), getattr(r, "sample", 0)),
        )
        if here:
            urls.append(str(folder / part_name(family, part, num_parts)))
            storage.write_part(urls[-1], here, schema)
    return urls


def join(folder: Path, documents: list, thoughts: list, contaminated: list, parts: tuple[int, int, int]) -> list:
    segments = [segment for document in documents for segment in document.segments()]
    return [
        document
        for group in part_groups(
            write(folder, "segments", segments, records.segment_schema(100), parts[0]),
            write(folder, "kept", thoughts, records.candidate_schema(100), parts[1]),
            write(folder, "contaminated", contaminated, records.CONTAMINATED_SCHEMA, parts[2]),
        )
        for document in joined_documents(group)
    ]


@pytest.mark.parametrize("parts", [(1, 1, 1), (4, 4, 4), (6, 4, 1), (1, 3, 5), (5, 3, 2)])
def test_every_document_meets_what_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(arrow_files, "BATCH_BYTES", 300)  # documents go on from batch to batch
    documents = [scored(f"doc-{i}", [1 + (i * j) % 7 for j in range(1 + i % 9)]) for i in range(40)]
    thoughts = [thought(f"doc-{i}", 0, sample) for i in range(0, 40, 3) for sample in range(2)]
    contaminated = [ContaminatedDocument(doc_id=f"doc-{i}", benchmarks=["b"], source_tokens=1) for i in range(0, 40, 7)]
    joined = {document.doc_id: document for document in join(tmp_path, documents, thoughts, contaminated, parts)}
    assert sorted(joined) == sorted(document.doc_id for document in documents)
    for i, document in enumerate(documents):
        found: JoinedDocument = joined[document.doc_id]
        np.testing.assert_array_equal(found.input_ids, document.input_ids)
        np.testing.assert_array_equal(found.segment_starts, document.segment_starts)
        assert [t.sample for t in found.thoughts] == ([0, 1] if i % 3 == 0 else [])
        assert found.contaminated == (i % 7 == 0) and found.source == "here"
        for ours, theirs in zip(found.segments(), document.segments(), strict=True):
            np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
            assert (ours.segment_id, ours.num_segments) == (theirs.segment_id, theirs.num_segments)


@pytest.mark.parametrize("doc_id", ["a", "doc-11", "zzz"])
def test_what_is_said_of_no_document_is_an_error(tmp_path: Path, doc_id: str) -> None:
    documents = [scored(f"doc-{i}", [3]) for i in range(3)]
    with pytest.raises(AssertionError, match=f"'{doc_id}' has thoughts or is contaminated, but was not scored"):
        join(tmp_path, documents, [thought(doc_id, 0)], [], (1, 1, 1))


@pytest.mark.parametrize("missing", [0, 2, 4])
def test_a_missing_segment_is_an_error(tmp_path: Path, missing: int) -> None:
    segments = [s for i in range(3) for s in scored(f"doc-{i}", [3, 4, 5, 6, 7]).segments()]
    del segments[5 + missing]
    [url] = write(tmp_path, "segments", segments, records.segment_schema(100), 1)
    with pytest.raises(AssertionError, match="doc-1"):
        list(joined_documents(part_groups([url], [], [])[0]))


def test_segments_out_of_order_are_an_error(tmp_path: Path) -> None:
    segments = list(scored("doc", [3, 4, 5]).segments())
    url = str(tmp_path / part_name("segments", 0, 1))
    storage.write_part(url, [segments[0], segments[2], segments[1]], records.segment_schema(100))
    with pytest.raises(AssertionError, match="'doc' has other segments"):
        list(joined_documents(part_groups([url], [], [])[0]))


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
