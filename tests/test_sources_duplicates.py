"""Reading with Beam: several sources, ids that collide and exact copies, the same whatever the order of arrival."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import records, storage
from sharding.errors import RequestError
from sharding.hashing import content_id
from sharding.records.types import Document, Quarantined, ScoredSegment
from sharding.sources import SourceConfig, transforms
from sharding.sources import duplicates as pure
from sharding.storage import manifest
from tests.source_files import as_jsonl, put, resolved

PAGE = Path(__file__).parent.parent / "docs" / "sources.md"

RANKS = {"": 0, "web": 0, "books": 1}


def document(doc_id: str, text: str, origin: str, source: str = "") -> Document:
    return Document(doc_id=doc_id, text=text, origin=origin, source=source)


def read(documents: Iterable[Document], *, drop: bool) -> list[tuple[str, str, str, str]]:
    """What the steps of `ReadDocuments` make of documents that arrive in this order."""
    by_text: dict[str, list[bytes]] = {}
    by_id: dict[str, list[bytes]] = {}
    for d in documents:
        key, place = pure.text_key(d, RANKS)
        by_text.setdefault(key, []).append(place)
        by_id.setdefault(d.doc_id, []).append(pure.DOCUMENT + records.encode(d))
    if drop:
        for group in by_text.items():
            for doc_id, mark in pure.later_copies(group):
                by_id[doc_id].insert(0, mark)
    found = [d for group in by_id.items() for d in pure.distinct_documents(group, RANKS)]
    return sorted((d.doc_id, d.text, d.source, d.origin) for d in found)


DOCUMENTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "a~2", "a~1", "b", "~2"]), st.sampled_from("xyz"), st.sampled_from(["web", "books"])
    ),
    max_size=12,
).map(lambda rows: [document(i, text, f"f:{n:02d}", source) for n, (i, text, source) in enumerate(rows)])


@given(documents=DOCUMENTS, data=st.data(), drop=st.booleans())
def test_ids_are_distinct_and_nothing_hangs_on_the_order(documents: list[Document], data: Any, drop: bool) -> None:
    found = read(documents, drop=drop)
    ids = [doc_id for doc_id, *_ in found]
    assert len(set(ids)) == len(ids)
    assert read(data.draw(st.permutations(documents)), drop=drop) == found
    if drop:
        assert sorted(text for _, text, *_ in found) == sorted({d.text for d in documents})
        for _, text, source, origin in found:
            first = min((RANKS[d.source], d.doc_id, d.origin) for d in documents if d.text == text)
            assert (RANKS[source], origin) == (first[0], first[2])
    else:
        assert Counter(origin for *_, origin in found) == Counter(d.origin for d in documents)


def test_a_document_keeps_its_id_when_a_source_is_added() -> None:
    web = [document("a", text, text, "web") for text in "pq"]
    before = read(web, drop=False)
    after = read([document("a", "0", "0", "books"), *web], drop=False)
    assert [row for row in after if row[2] == "web"] == before
    assert [row[0] for row in after if row[2] == "books"] == ["a~3"]


COPIES = [
    {"id": "b", "text": "one"},
    {"id": "a", "text": "one"},
    {"id": "a", "text": "two"},
    {"id": "c", "text": "three"},
    {"id": "c", "text": ""},
]


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
@pytest.mark.parametrize("id_field", ["id", None])
def test_copies_are_counted_and_dropped_over_all_sources(tmp_path: Path, duplicates: Any, id_field: str | None) -> None:
    web = put(str(tmp_path / "web.jsonl"), as_jsonl(COPIES))
    table = pa.Table.from_pylist([{"id": "0", "text": "three"}, {"id": "9", "text": "four"}])
    pq.write_table(table, tmp_path / "books.parquet")
    configs = [
        SourceConfig(name="web", path=web, id_field=id_field, max_quarantined=0.2),
        SourceConfig(name="books", path=str(tmp_path / "books.parquet"), id_field=id_field),
    ]
    found, listings = zip(*(resolved(config) for config in configs), strict=True)

    def texts(documents: list[Document]) -> None:
        kept = sorted((d.source, d.text) for d in documents)
        once = [("books", "four"), ("web", "one"), ("web", "three"), ("web", "two")]
        assert kept == (once if duplicates == "drop" else sorted([*once, ("web", "one"), ("books", "three")]))
        if id_field and duplicates == "drop":
            first, second = sorted(("one", "two"), key=content_id)
            expected = {("9", "four"), ("c", "three"), ("a", first), ("a~2", second)}
            assert {(d.doc_id, d.text) for d in documents} == expected

    def account(counts: list[dict[str, int]]) -> None:
        total: Counter[str] = Counter()
        for some in counts:
            total.update(some)
        dropped = {"duplicates_dropped": 2} if duplicates == "drop" else {}
        assert total == {"documents_in": 7, "documents_duplicate": 2, **dropped}

    with beam.Pipeline() as pipeline:
        read_now = pipeline | transforms.ReadDocuments(found, listings, duplicates, 3)
        assert_that(read_now["documents"], texts, label="documents")
        assert_that(read_now["counts"] | beam.Flatten(), account, label="counts")


# --- whole runs -------------------------------------------------------------------------------------------------------

PROSE = [{"id": f"d{i}", "text": f"Document {i} says this and that. " * (5 + i), "n": i} for i in range(12)]


def hashes(output: str) -> dict[str, str]:
    return {entry.name: entry.sha256 for entry in manifest.require(output, "pack").files["shards"]}


@pytest.fixture
def run(rehearsal_config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., str]:
    """Mills what sections say and gives the output folder."""

    def go(name: str, source: dict[str, Any] | None, stages: Sequence[str] = manifest.STAGES, **sections: Any) -> str:
        tree = rehearsal_config("", **sections) | {"source": source, "output": str(tmp_path / name)}
        mill(from_mapping(tree), stages=stages)
        return str(tree["output"])

    return go


@pytest.mark.slow
def test_every_format_mills_to_the_same_shards(run: Callable[..., str], tmp_path: Path) -> None:
    from datasets import Dataset

    keys = {"id_field": "id", "metadata_fields": ["n"]}
    put(str(tmp_path / "in.jsonl"), as_jsonl(PROSE))
    pq.write_table(pa.Table.from_pylist(PROSE), tmp_path / "in.parquet", row_group_size=5)
    Dataset.from_list(PROSE).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    for i in (0, 6):
        put(str(tmp_path / "folder" / f"{i}.jsonl"), as_jsonl(PROSE[i : i + 6]))
    first = hashes(run("1", {"path": str(tmp_path / "in.jsonl"), **keys}))
    assert hashes(run("2", {"path": str(tmp_path / "in.parquet"), **keys})) == first
    assert hashes(run("3", {"path": str(tmp_path / "saved"), "format": "huggingface", **keys})) == first
    assert hashes(run("4", {"path": str(tmp_path / "folder"), "format": "huggingface", **keys})) == first


def test_several_sources_are_told_apart_and_the_account_holds(run: Callable[..., str], tmp_path: Path) -> None:
    web = put(
        str(tmp_path / "web.jsonl"), as_jsonl([*PROSE[:3], {"id": "copy", "text": PROSE[0]["text"]}, {"id": "x"}])
    )
    books = put(
        str(tmp_path / "book.txt"), b"A paragraph.\nOf two lines.\n\nAnother one.\n\nA paragraph.\nOf two lines.\n"
    )
    entries = [
        {"name": "web", "path": web, "id_field": "id", "max_quarantined": 0.2},
        {"name": "books", "path": books, "document": "paragraph"},
    ]
    output = run("out", None, ["score"], sources=entries, duplicates="drop")
    scored = manifest.require(output, "score")
    counts = scored.counts
    assert {name: counts[name] for name in ("documents_in", "documents", "quarantined")} == {
        "documents_in": 8,
        "documents": 5,
        "quarantined": 1,
    }
    assert counts["documents_duplicate"] == counts["duplicates_dropped"] == 2
    [url] = manifest.file_urls(output, scored, "segments")
    segments = [s for s in storage.read_records(url, ScoredSegment) if s.segment_index == 0]
    assert Counter(segment.source for segment in segments) == {"web": 3, "books": 2}
    [url] = manifest.file_urls(output, scored, "quarantine")
    assert [refused.reason for refused in storage.read_records(url, Quarantined)] == ["missing_text"]


SOURCES_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"source": None}, r"^source: is required, or sources"),
    ({"sources": [{"name": "a", "path": "x"}]}, r"^sources: there is a source as well"),
    ({"source": None, "sources": [{"path": "x"}]}, r"^sources\.0\.name: is required"),
    (
        {"source": None, "sources": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]},
        r"^sources\.1\.name: 'a' is the name of sources\.0 already",
    ),
    (
        {"source": None, "sources": [{"name": "a", "path": "x"}, {"name": "b", "path": "y", "txt": 1}]},
        r"^sources\.1\.txt: unknown key; allowed here: name, format, path",
    ),
    (
        {"source": None, "sources": [{"name": "a", "path": "x"}, {"name": "b", "path": "y", "text_field": 1}]},
        r"^sources\.1\.text_field: 1",
    ),
    ({"source": {"path": "x", "split": "train"}}, r"^source\.split: 'train' needs the format huggingface"),
    ({"source": {"path": "x", "name": "a b"}}, r"^source\.name: 'a b'"),
    ({"duplicates": "forget"}, r"^duplicates: 'forget'"),
]


@pytest.mark.parametrize(("change", "said"), SOURCES_MISTAKES, ids=[said for _, said in SOURCES_MISTAKES])
def test_mistakes_in_sources_name_their_key(
    rehearsal_config: Callable[..., dict[str, Any]], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said.replace("^", r"\n  ")):
        from_mapping(rehearsal_config("x.jsonl") | change)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_the_examples_of_the_page_are_valid(rehearsal_config: Callable[..., dict[str, Any]], block: str) -> None:
    own = yaml.safe_load(block)
    without = {} if {"source", "sources"}.isdisjoint(own) else {"source": None}
    tree = rehearsal_config("raw.jsonl") | without | own
    assert from_mapping(tree).all_sources


def test_a_missing_column_stops_a_run_before_it_starts(run: Callable[..., str], tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PROSE), tmp_path / "in.parquet")
    good = {"name": "good", "path": put(str(tmp_path / "in.jsonl"), json.dumps(PROSE[0]).encode())}
    bad = {"name": "bad", "path": str(tmp_path / "in.parquet"), "text_field": "body"}
    with pytest.raises(RequestError, match=r"^sources\.1\.text_field: 'body' is no column of .*in\.parquet"):
        run("out", None, sources=[good, bad])
    assert not (tmp_path / "out").exists()
