"""The index of documents: each document is found by its id and is what went in; damage to the index is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipelines.documents.packed import ShownDocument
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.packing.documents import DocumentIndex, read_document
from sharding.records.families import DOCUMENTS
from sharding.records.rows import ItemPlace
from sharding.storage import manifest
from tests.conftest import rehearsal_tree

TEXTS = {f"doc/{i}": f"Document number {i} says é日本 and {i * i}. " * (1 + 17 * (i % 7)) for i in range(60)}


def milled(folder: Path, tokenizer: str, **pack: Any) -> str:
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in TEXTS.items()), encoding="utf-8")
    packing = {"sequence_length": 256, "num_shards": 3, "validation_fraction": 0.2, **pack}
    tree = rehearsal_tree(folder, tokenizer, str(source), pack=packing)
    tree["source"]["name"] = "web"
    config = from_mapping(tree)
    mill(config)
    return config.output


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    return milled(tmp_path_factory.mktemp("documents"), byte_tokenizer, source_weights={"web": 2.0})


@pytest.fixture
def moved(corpus: str, tmp_path: Path) -> Path:
    """The corpus elsewhere, without the folders of the stages and the ledger."""
    ignored = shutil.ignore_patterns("stages", "ledger")
    return Path(shutil.copytree(corpus, tmp_path / "copy", ignore=ignored))


def test_every_document_is_found_in_a_copy(moved: Path) -> None:
    index = DocumentIndex(moved)
    pieces, thoughts = set(), 0
    for doc_id, text in TEXTS.items():
        told = ShownDocument(moved, doc_id).to_json() if doc_id in ("doc/6", "doc/7") else None
        found = index.read(doc_id)
        pieces.add(len(found.items))
        thoughts += len(found.thoughts)
        assert (found.copies, found.gaps, len(found.places)) == (2, False, 2 * len(found.items))
        assert all(place.shard.startswith(f"data/{found.split}-") for place in found.places)
        if told is not None:
            assert told["text"] == text and told["whole"]
            assert len(told["thoughts"]) == len(found.thoughts)
            assert all(thought["text"] and thought["tokens"] for thought in told["thoughts"])
    assert max(pieces) > 2 and min(pieces) == 1
    assert thoughts > 20


def test_it_is_shown_with_its_thoughts_marked(moved: Path) -> None:
    index = DocumentIndex(moved)
    doc_id = next(i for i in TEXTS if index.read(i).thoughts and len(index.read(i).items) > 2)
    command = [sys.executable, "-m", "pipelines.cli", "show", str(moved), doc_id]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"=== {doc_id}: ") and "2 times in the corpus" in shown
    assert "\n--- thought 1, behind " in shown
    assert "--- cut: what follows is in another training sequence ---" in shown
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert told["text"] == TEXTS[doc_id] and told["places"][0]["shard"].endswith(".arrow")


def test_an_unknown_id_names_some_that_are_like_it(moved: Path) -> None:
    with pytest.raises(RequestError, match=r"no document 'doc/06' .*; some that are: .*'doc/6'"):
        read_document(moved, "doc/06")


def test_rows_that_were_left_out_are_gaps(tmp_path: Path, byte_tokenizer: str) -> None:
    output = milled(tmp_path, byte_tokenizer, max_rows={"train": 12})
    index, read = DocumentIndex(output), []
    for doc_id in TEXTS:
        if index.places(doc_id):
            read.append(index.read(doc_id))
    assert 0 < sum(found.gaps for found in read) < len(read) < len(TEXTS)
    assert verify(output).ok


@pytest.mark.parametrize("change", ["another row", "one less", "another part"])
def test_verify_tells_an_index_that_says_something_else(moved: Path, corpus: str, change: str) -> None:
    whole = Path(shutil.copytree(corpus, moved.parent / "whole"))
    packed = manifest.require(str(whole), "pack")
    [entry] = packed.files["documents"]
    places = list(storage.read_records(str(whole / entry.name), ItemPlace))
    if change == "another row":
        places[0] = msgspec.structs.replace(places[0], row=places[0].row + 1)
    elif change == "one less":
        del places[5]
    else:
        places[5], places[40] = places[40], places[5]
    made = storage.write_part(str(whole / entry.name), places, DOCUMENTS.schema(), name=entry.name)
    manifest.write(str(whole), msgspec.structs.replace(packed, files={**packed.files, "documents": [made]}))
    report = verify(str(whole))
    said = {"another row": "other places", "one less": "items, it holds", "another part": "would be looked for"}
    assert any(said[change] in str(problem) for problem in report.problems), report.problems
    if change == "another row":
        with pytest.raises(MillError, match="the index of documents has"):
            read_document(whole, places[0].doc_id)


def test_a_damaged_index_is_not_believed(moved: Path) -> None:
    [entry] = manifest.require(str(moved), "pack").files["documents"]
    data = bytearray((moved / entry.name).read_bytes())
    data[len(data) // 2] ^= 1
    (moved / entry.name).write_bytes(data)
    with pytest.raises(MillError, match="its bytes are not those of its manifest"):
        read_document(moved, "doc/6")


def test_without_an_index_the_way_out_is_told(moved: Path, rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    packed = manifest.require(str(moved), "pack")
    files = {name: entries for name, entries in packed.files.items() if name != "documents"}
    manifest.write(str(moved), msgspec.structs.replace(packed, files=files))
    with pytest.raises(MillError, match="has no index of documents"):
        read_document(moved, "doc/6")
