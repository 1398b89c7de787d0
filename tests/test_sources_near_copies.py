"""Near-copies: clusters that hang on no order, one split for each, and the account of what is dropped."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from augment.selection.words import words_of
from pipelines import verify
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import records, storage
from sharding.errors import RequestError
from sharding.records.rows import MaskedRow
from sharding.records.types import Document, NearCopy
from sharding.shards.rows import split_of
from sharding.sources import NearCopies, NearCopiesConfig, SourceConfig, duplicates, near_copies, transforms
from sharding.storage import manifest
from tests.source_files import as_jsonl, put, resolved

RANKS = {"": 0, "web": 0, "books": 1}
NEAR = NearCopies(NearCopiesConfig(action="mark"), words_of)

Links = Iterable[tuple[str, bytes]]


def text(seed: int, words: int = 120) -> str:
    drawn = random.Random(seed)
    return " ".join(f"word{drawn.randrange(5000)}" for _ in range(words))


def changed(before: str, *places: int) -> str:
    words = before.split()
    for place in places:
        words[place] = f"changed{place}"
    return " ".join(words)


def documents() -> list[Document]:
    """Twelve families, each a text, two near-copies of it and another text; an exact copy; and texts without words."""
    found = []
    for family in range(12):
        first = text(family)
        for copy, body in enumerate((first, changed(first, 60), changed(first, 20), text(1000 + family))):
            source = "books" if copy == 1 else "web"
            found.append(Document(doc_id=f"{copy}-{family}", text=body, origin=f"f:{family}.{copy}", source=source))
    found.append(Document(doc_id="again", text=changed(text(0), 60), origin="f:again", source="web"))
    found += [
        Document(doc_id=f"none-{i}", text="... --- ..." + "!" * i, origin=f"f:n{i}", source="web") for i in (1, 2)
    ]
    return found


def group(values: Links, step: Callable[[tuple[str, list[bytes]]], Iterator[Any]]) -> list[Any]:
    met: dict[str, list[bytes]] = defaultdict(list)
    for key, value in values:
        met[key].append(value)
    return [found for each in met.items() for found in step(each)]


def settled(links: Links, rounds: int = near_copies.ROUNDS) -> list[tuple[str, bytes] | dict[str, int]]:
    """What `FindNearCopies` does once documents have met."""
    for _ in range(rounds):
        links = group((way for link in links for way in near_copies.both_ways(link)), near_copies.large_star)
        links = group(links, near_copies.small_star)
    return group((way for link in links for way in near_copies.both_ways(link)), near_copies.settled)


def marked(arriving: Sequence[Document]) -> list[tuple[str, bytes]]:
    members = [found for document in arriving for found in near_copies.banded(document, RANKS, NEAR)]
    links = group(members, lambda each: near_copies.linked(each, 0.8))
    marks = settled(links)
    assert not [mark for mark in marks if isinstance(mark, dict)]
    return sorted(mark for mark in marks if not isinstance(mark, dict))


def test_clusters_hang_on_no_order() -> None:
    arriving = documents()
    marks = marked(arriving)
    for seed in range(5):
        random.Random(seed).shuffle(arriving)
        assert marked(arriving) == marks
    by_cluster: dict[str, list[str]] = defaultdict(list)
    firsts = []
    for doc_id, data in marks:
        mark = near_copies.decode_mark(data[1:])
        by_cluster[mark.cluster].append(doc_id)
        firsts += [doc_id] * (mark.role == "first")
    expected = [["0-0", "1-0", "2-0", "again"], *([f"{copy}-{family}" for copy in range(3)] for family in range(1, 12))]
    assert sorted(map(sorted, by_cluster.values())) == sorted(expected)
    # The first source's, and of those the smallest id.
    assert sorted(firsts) == sorted(f"0-{family}" for family in range(12))


def node(number: int) -> bytes:
    return msgspec.msgpack.encode((0, f"{number:06d}", "f", f"text {number}"))


@pytest.mark.parametrize("length", [2, 16, 60])
def test_a_chain_of_links_is_one_cluster(length: int) -> None:
    order = list(range(length))
    random.Random(length).shuffle(order)
    links = [(near_copies._key(node(max(pair))), node(min(pair))) for pair in itertools.pairwise(order)]
    marks = settled(links)
    assert len(marks) == length, "each has a mark, and nothing is unsettled"
    found = [near_copies.decode_mark(mark[1][1:]) for mark in marks if not isinstance(mark, dict)]
    assert sorted(mark.role for mark in found) == ["first", *["near"] * (length - 1)]


def test_exact_copies_alone_are_no_near_copies() -> None:
    arriving = [Document(doc_id=str(i), text=text(1), origin=f"f:{i}") for i in range(3)]
    counts = Counter[str]()
    everything = (*marked(arriving), *((d.doc_id, duplicates.DOCUMENT + records.encode(d)) for d in arriving))
    groups = group(everything, lambda each: iter([each]))
    found = [d for each in groups for d in duplicates.distinct_documents(each, RANKS, drop_near=True, counts=counts)]
    assert len(found) == 3 and not counts


def test_what_is_not_settled_is_counted() -> None:
    links = [(near_copies._key(node(i + 1)), node(i)) for i in range(2000)]
    unsettled = Counter[str]()
    for found in settled(links, rounds=1):
        if isinstance(found, dict):
            unsettled.update(found)
    assert unsettled["near_copies_unsettled"] > 0


def test_a_crowded_band_is_compared_with_its_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = text(1)
    crowd = [Document(doc_id=f"{i:03d}", text=changed(first, i % 100), origin=f"f:{i}") for i in range(40)]
    crowd += [Document(doc_id=f"9{i}", text=text(50 + i), origin=f"f:9{i}") for i in range(3)]
    members = [next(near_copies.banded(document, RANKS, NEAR))[1] for document in crowd]
    few = sorted(near_copies.linked(("band", members), 0.8))
    monkeypatch.setattr(near_copies, "MAX_COMPARED", 10)
    assert sorted(near_copies.linked(("band", members), 0.8)) == few
    assert len(few) == 39


@pytest.mark.parametrize("action", ["mark", "drop"])
def test_ids_and_clusters_go_together(action: str) -> None:
    arriving = [msgspec.structs.replace(document, doc_id="one") for document in documents()[:4]]
    members = [(document.doc_id, duplicates.DOCUMENT + records.encode(document)) for document in arriving]
    counts = Counter[str]()
    everything = (*marked(arriving), *members)
    found = [
        document
        for each in group(everything, lambda each: iter([each]))
        for document in duplicates.distinct_documents(each, RANKS, drop_near=action == "drop", counts=counts)
    ]
    assert counts["near_copy_clusters"] == 1 and counts["documents_near_copy"] == 2
    clusters = Counter(document.cluster for document in found)
    assert len({document.doc_id for document in found}) == len(found)
    assert sorted(clusters.values()) == ([1, 3] if action == "mark" else [1, 1]) and clusters[""] == 1
    assert counts["near_copies_dropped"] == (2 if action == "drop" else 0)


def test_similarity_decides(tmp_path: Path) -> None:
    first = text(3, 60)
    pair = [Document(doc_id=str(i), text=body, origin=str(i)) for i, body in enumerate((first, changed(first, 15, 35)))]
    for similarity, met in ((0.6, True), (0.95, False)):
        near = NearCopies(NearCopiesConfig(action="mark", similarity=similarity), words_of)
        members = [found for document in pair for found in near_copies.banded(document, RANKS, near)]
        assert bool(group(members, lambda each, s=similarity: near_copies.linked(each, s))) is met  # type: ignore[misc]


# --- with Beam, and whole runs ----------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> str:
    lines = [{"id": document.doc_id, "text": document.text} for document in documents()]
    return put(str(tmp_path / "in.jsonl"), as_jsonl(lines))


@pytest.mark.parametrize("action", ["mark", "drop"])
def test_they_are_counted_and_dropped(source: str, action: Any) -> None:
    found, listing = resolved(SourceConfig(path=source, id_field="id"))
    near = NearCopies(NearCopiesConfig(action=action), words_of)

    def kept(documents: list[Document]) -> None:
        assert len(documents) == (50 if action == "mark" else 26), "24 of 12 clusters go, and one exact copy before"
        assert len({d.cluster for d in documents if d.cluster}) == 12

    def account(counts: list[dict[str, int]]) -> None:
        total = Counter[str]()
        for some in counts:
            total.update(some)
        dropped = {"near_copies_dropped": 24} if action == "drop" else {}
        expected = {"documents_in": 51, "documents_duplicate": 1, "duplicates_dropped": 1, "near_copy_clusters": 12}
        assert total == expected | {"documents_near_copy": 24} | dropped

    with beam.Pipeline() as pipeline:
        read = pipeline | transforms.ReadDocuments([found], [listing], "drop", 3, near)
        assert_that(read["documents"], kept, label="documents")
        assert_that(read["counts"] | beam.Flatten(), account, label="counts")


@pytest.fixture
def milled(
    rehearsal_config: Callable[..., dict[str, Any]], source: str, tmp_path: Path
) -> Callable[..., tuple[str, dict[str, manifest.Manifest]]]:
    """Mills the documents by some rule for near-copies, and gives the output and what its stages say."""

    def go(name: str, stages: Sequence[str] = manifest.STAGES, **near: Any) -> tuple[str, dict[str, manifest.Manifest]]:
        pack = {"sequence_length": 512, "num_shards": 1, "validation_fraction": 0.5}
        tree = rehearsal_config(source, pack=pack, duplicates="drop", near_copies=near)
        output = str(tmp_path / name)
        return output, mill(from_mapping(tree | {"output": output}), stages=stages)

    return go


def splits(output: str) -> dict[str, str]:
    """Document → its split."""
    packed = manifest.require(output, "pack")
    places = zip(packed.files["shards"], manifest.file_urls(output, packed, "shards"), strict=True)
    return {
        doc_id: split_of(entry)
        for entry, url in places
        for batch in storage.read_batches(url, ("doc_ids",), kind=MaskedRow)
        for doc_ids in batch.column("doc_ids").to_pylist()
        for doc_id in doc_ids
    }


def torn(found: dict[str, str]) -> list[int]:
    """The families that are in both splits."""
    return [family for family in range(12) if len({found[f"{copy}-{family}"] for copy in range(3)}) > 1]


def test_near_copies_go_into_one_split(milled: Callable[..., tuple[str, dict[str, manifest.Manifest]]]) -> None:
    output, stages = milled("marked", action="mark")
    assert torn(splits(output)) == []
    assert set(splits(output).values()) == {"train", "validation"}
    assert not verify.verify(output, deep=True).problems
    scored = stages["score"]
    assert (scored.counts["near_copy_clusters"], scored.counts["documents_near_copy"]) == (12, 24)
    rows = [
        row for url in manifest.file_urls(output, scored, "near_copies") for row in storage.read_records(url, NearCopy)
    ]
    assert len(rows) == 36 and len({row.cluster for row in rows}) == 12
    card = (Path(output) / "README.md").read_text()
    assert "12 documents have near-copies, 24 more (from 0.8 of the runs" in card


def test_without_being_looked_for_they_are_torn_and_nothing_is_written(
    milled: Callable[..., tuple[str, dict[str, manifest.Manifest]]],
) -> None:
    output, stages = milled("kept", action="keep")
    assert torn(splits(output)) != [], "else the other test shows nothing"
    assert "near_copies" not in stages["score"].files and "near_copies" not in stages["score"].config
    assert not [name for name in stages["score"].counts if "near" in name]


def test_dropped_ones_are_in_the_account(milled: Callable[..., tuple[str, dict[str, manifest.Manifest]]]) -> None:
    _, stages = milled("dropped", ["score"], action="drop")
    counts = stages["score"].counts
    assert (counts["documents_in"], counts["documents"], counts["near_copies_dropped"]) == (51, 26, 24)


def test_dropping_them_needs_exact_copies_to_be_dropped(rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    tree = rehearsal_config("x.jsonl", near_copies={"action": "drop"})
    with pytest.raises(RequestError, match=r"near_copies\.action: drop needs duplicates: drop, and duplicates is keep"):
        from_mapping(tree)
    with pytest.raises(RequestError, match=r"near_copies\.similarity: 0\.2"):
        from_mapping(rehearsal_config("x.jsonl", near_copies={"action": "mark", "similarity": 0.2}))


def test_a_sketch_is_the_low_bytes_of_a_signature() -> None:
    one, other = np.arange(128, dtype=np.uint8), np.arange(128, dtype=np.uint8)
    other[:64] += 1
    assert near_copies._resemblance(one[None], one)[0] == 1
    assert near_copies._resemblance(one[None], other)[0] == pytest.approx(0.498, abs=0.001)
