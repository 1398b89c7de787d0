"""Append: later documents become more shards, the first ones keep every byte, and a kill leaves nothing half done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.testing
import yaml
from datasets import load_dataset

from augment.ledger.reading import read_ledger
from pipelines import cli, provenance, report
from pipelines.append import Appended, append, delivery_config
from pipelines.arms import mill_arms
from pipelines.config import MillConfig
from pipelines.delivered import apart, corpora, deliveries_of, read_stages
from pipelines.deliveries_begun import pending
from pipelines.documents.reader import Reader
from pipelines.run import mill
from pipelines.takedown import remove
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.beam.part_join import scored_documents
from sharding.errors import MillError, RequestError
from sharding.packing.documents import DocumentIndex
from sharding.shards.dataset import PackedDataset
from sharding.shards.export import export
from sharding.shards.grain_sources import RowSource
from sharding.storage import lease, manifest
from tests.conftest import rehearsal_tree
from tests.test_takedown import absent, killed_at, text_of, wanted

PACK = {"sequence_length": 128, "num_shards": 3, "validation_fraction": 0.3}


def write(path: Path, documents: dict[str, str]) -> str:
    lines = [json.dumps({"id": doc_id, "text": text}) + "\n" for doc_id, text in documents.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def pages(*numbers: int) -> dict[str, str]:
    return {f"page-{number}": text_of(number) for number in numbers}


def tree_of(folder: Path, tokenizer: str, first: Path | None = None, **sections: Any) -> dict[str, Any]:
    source = str((first or folder) / "first.jsonl")
    return rehearsal_tree(folder, tokenizer, source, **{"pack": PACK, **sections})


FIRST, SECOND = pages(*range(30)), pages(*range(28, 48))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("append")
    write(folder / "first.jsonl", FIRST)
    mill(from_mapping(tree_of(folder, byte_tokenizer)))
    return folder / "out"


@pytest.fixture
def config(small: Path, tmp_path: Path, byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> MillConfig:
    """Of a copy of the small corpus, its ledger within it."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.0)
    copy = shutil.copytree(small, tmp_path / "out")
    plan = json.loads((copy / "stages/augment/plan.json").read_text())
    (copy / "stages/augment/plan.json").write_text(json.dumps({**plan, "ledger": str(copy / "ledger")}))
    tree = tree_of(tmp_path, byte_tokenizer, small.parent)
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return from_mapping(tree)


def hashes(output: str, *folders: str) -> dict[str, str]:
    paths = [path for folder in folders for path in sorted(Path(output, folder).rglob("*.arrow"))]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows_of(output: str, split: str = "train") -> list[bytes]:
    return [row["input_ids"].tobytes() for row in PackedDataset(output, split)]


def whole(output: str) -> None:
    report = verify(output, deep=True)
    assert report.ok, report.problems


@pytest.fixture(scope="module")
def joined_once(small: Path, tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    """The small corpus with a delivery, some of which was there before; its folder."""
    folder = tmp_path_factory.mktemp("joined")
    shutil.copytree(small, folder / "out")
    home = Path(folder / "out")
    plan = json.loads((home / "stages/augment/plan.json").read_text())
    (home / "stages/augment/plan.json").write_text(json.dumps({**plan, "ledger": str(home / "ledger")}))
    tree = tree_of(folder, byte_tokenizer, small.parent)
    (folder / "mill.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    write(folder / "second.jsonl", SECOND)
    told = typer.testing.CliRunner().invoke(
        cli.app, ["append", str(folder / "mill.yaml"), "--source", str(folder / "second.jsonl")]
    )
    assert told.exit_code == 0, told.output
    assert "delivery 1 joined with 18 documents" in told.output and "2 were delivered before" in told.output
    return folder


@pytest.fixture
def again(
    small: Path, joined_once: Path, tmp_path: Path, byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> MillConfig:
    """Of a copy of that."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.0)
    shutil.copytree(joined_once, tmp_path, dirs_exist_ok=True)
    for output in (tmp_path / "out", tmp_path / "out/deliveries/1"):
        plan = json.loads((output / "stages/augment/plan.json").read_text())
        ledger = {"ledger": str(tmp_path / "out/ledger")}
        (output / "stages/augment/plan.json").write_text(json.dumps({**plan, **ledger}))
    tree = tree_of(tmp_path, byte_tokenizer, small.parent)
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return from_mapping(tree)


def test_later_documents_are_more_shards_and_the_first_keep_their_bytes(small: Path, joined_once: Path) -> None:
    output = str(joined_once / "out")
    folders = ("data", "index", "stages/score", "stages/augment", "stages/select")
    assert hashes(output, *folders) == hashes(str(small), *folders)
    packed = manifest.require(output, "pack")
    assert [entry.name for entry in packed.files["shards"]][-4:] == [
        *(f"deliveries/1/data/train-{number:05d}-of-00006.arrow" for number in (3, 4, 5)),
        "deliveries/1/data/validation-00001-of-00002.arrow",
    ]
    assert msgspec.to_builtins(apart(packed)) == msgspec.to_builtins(manifest.require(small, "pack"))
    for split in ("train", "validation"):
        later = rows_of(f"{output}/deliveries/1", split)
        assert later and rows_of(output, split) == rows_of(str(small), split) + later
    whole(output)


def test_what_is_told_tells_of_all_documents(joined_once: Path) -> None:
    output = str(joined_once / "out")
    found = DocumentIndex(output).read("page-33")
    assert found.places[0].shard.startswith("deliveries/1/data/")
    card = Path(output, "README.md").read_text(encoding="utf-8")
    assert "## Deliveries" in card and "deliveries/1/data/train-*-of-00006.arrow" in card
    assert "gave 48 documents" in card and "second.jsonl" in card
    runner = typer.testing.CliRunner()
    assert "1: 18 documents joined the corpus later" in runner.invoke(cli.app, ["status", output]).output
    assert "deliveries/1/data" in runner.invoke(cli.app, ["show", output, "page-33", "--plain"]).output
    assert "48" in Path(output, "report.html").read_text(encoding="utf-8")
    assert len(RowSource(output)) == len(PackedDataset(output))
    made, _ = export(output, "parquet", str(joined_once / "parquet"))
    assert len(made.files["train"]) == 6
    rows = load_dataset(output, split="train", cache_dir=str(joined_once / "cache"))
    assert len(rows) == sum(e.rows for e in manifest.require(output, "pack").files["shards"] if "train" in e.name)


def test_the_tiers_begin_where_the_first_ones_do(joined_once: Path) -> None:
    output = str(joined_once / "out")
    first, later = (Reader(at, dict(read_stages(at))) for at in (output, f"{output}/deliveries/1"))
    assert first.allocation is not None and later.allocation is not None
    assert first.allocation.cuts == later.allocation.cuts and first.allocation.cuts
    facts = manifest.require(f"{output}/deliveries/1", "augment").facts
    planned = {tier["name"]: tier["planned_segments"] for tier in facts["tiers"]}
    for tier in facts["tiers"]:
        assert abs(tier["segments"] - planned[tier["name"]]) <= 1
    assert {row.key for row in read_ledger(f"{output}/ledger", columns=("key",))}
    assert not Path(output, "deliveries/1/ledger").exists()


def test_a_run_of_the_first_config_finds_all_done_and_force_is_refused(again: MillConfig, tmp_path: Path) -> None:
    done: list[Any] = []
    mill(again, on_stage=lambda stage, made, did: done.append(did))
    assert set(done) == {"nothing"}
    before = hashes(again.output, ".")
    for stage in manifest.STAGES:
        with pytest.raises(RequestError, match="append the deliveries again"):
            mill(again, stages=[stage], force=True)
    delivery = from_mapping(yaml.safe_load(Path(again.output, "deliveries/1/config.yaml").read_text(encoding="utf-8")))
    with pytest.raises(RequestError, match="has joined the corpus"):
        mill(delivery, force=True)
    with pytest.raises(RequestError, match="can't be changed beneath it"):
        remove(delivery.output, wanted(31))
    with pytest.raises(RequestError, match="arms of its first documents would lack them"):
        mill_arms(again)
    with pytest.raises(RequestError, match=r"pack\.sequence_length: 128 → 256"):
        wider = dataclasses.replace(again, pack=dataclasses.replace(again.pack, sequence_length=256))
        append(wider, [str(tmp_path / "second.jsonl")])
    assert hashes(again.output, ".") == before


def test_the_same_documents_again_append_nothing(again: MillConfig, tmp_path: Path) -> None:
    before = hashes(again.output, "data", "deliveries"), Path(again.output, "MANIFEST.json").read_bytes()
    done = append(again, [str(tmp_path / "second.jsonl")])
    assert done == Appended(number=None, documents=0, delivered_before=20, copies=0, rows=0, shards=0)
    assert (hashes(again.output, "data", "deliveries"), Path(again.output, "MANIFEST.json").read_bytes()) == before
    assert pending(again.output) is None and not any(p.is_file() for p in Path(again.output, "deliveries/2").rglob("*"))


def test_a_second_delivery_is_number_two_and_documents_leave_both(
    small: Path, again: MillConfig, tmp_path: Path
) -> None:
    output = again.output
    third = {**pages(50, 51, 52), "page-33": text_of(53), "copy-of-4": text_of(4), "copy-of-34": text_of(34)}
    own = dataclasses.replace(again, budget=dataclasses.replace(again.budget, thinking_tokens_per_source_token=0.2))
    done = append(own, [write(tmp_path / "third.jsonl", third)], plan="own")
    assert (done.number, done.documents, [d.number for d in deliveries_of(manifest.require(output, "pack"))]) == (
        *(2, 6),
        [1, 2],
    )
    ids = [i for entry in corpora(output) for i in doc_ids(entry.output)]
    assert len(ids) == len(set(ids)) == 54 and "page-33~2" in ids
    index = DocumentIndex(output)
    assert index.read("page-33").places[0].shard.startswith("deliveries/1/")
    assert index.read("page-33~2").places[0].shard.startswith("deliveries/2/")
    for copy, of in (("copy-of-4", "page-4"), ("copy-of-34", "page-34")):
        assert index.read(copy).split == index.read(of).split
    told = deliveries_of(manifest.require(output, "pack"))[1].told
    assert told["score/duplicates_of_earlier"] == 2
    provenance.write(output)
    whole(output)

    untouched = hashes(output, "data")
    gone = wanted(31, 50)
    report.write(f"{output}/deliveries/1")
    tried = {"tiers": {"deep": {"segment": ["page-31#0", "page-33#0"], "tokens": [7, 8]}}}
    storage.write_json(f"{output}/deliveries/1/pilot.json", tried)
    before = hashes(output, "deliveries")
    done_away = remove(output, gone)
    changed = {
        name for name, found in hashes(output, "deliveries").items() if "/data/" in name and before[name] != found
    }
    assert (done_away.documents, done_away.shards) == (2, len(changed)) and done_away.files > len(changed) > 1
    index = hashes(str(small), "index")
    assert {name: found for name, found in hashes(output, "index").items() if name in index} == index
    pilot = json.loads(storage.read_bytes(f"{output}/deliveries/1/pilot.json"))
    assert pilot == {"tiers": {"deep": {"segment": ["page-33#0"], "tokens": [8]}}}
    assert not Path(output, "deliveries/1/report.html").exists(), "it showed the document"
    whole(output)
    assert absent(output, gone).ok, absent(output, gone).problems
    assert hashes(output, "data") == untouched and not Path(output, "provenance/PROVENANCE.json").exists()
    packed = manifest.require(output, "pack")
    assert packed.counts["documents"] == 52 and packed.facts["removals"][0]["documents"] == 2
    with pytest.raises(RequestError, match="no document 'page-50'"):
        DocumentIndex(output).read("page-50")
    assert append(again, [str(tmp_path / "third.jsonl")]).number is None, "who was taken down doesn't come back"
    done_again: list[Any] = []
    mill(again, on_stage=lambda stage, made, did: done_again.append(did))
    assert set(done_again) == {"nothing"}


def doc_ids(output: str) -> list[str]:
    urls = manifest.file_urls(output, manifest.require(output, "score"), "segments")
    return [document.doc_id for url in urls for document in scored_documents(url)]


def test_copies_of_earlier_documents_go_as_the_config_says(tmp_path: Path, byte_tokenizer: str) -> None:
    near = text_of(7) + " And no more of it."
    write(tmp_path / "first.jsonl", {"a": near + " Nearly.", **pages(7, 8)})
    sections = {"duplicates": "drop", "near_copies": {"action": "drop", "similarity": 0.7}}
    config = from_mapping(tree_of(tmp_path, byte_tokenizer, **sections))
    mill(config, stages=["score"])
    assert doc_ids(config.output) == ["a", "page-8"]
    later = {"0-near": near, "again": text_of(8), "new": text_of(9), "new-too": text_of(9)}
    delivery = delivery_config(config, [write(tmp_path / "second.jsonl", later)], 1, "first")
    counts = mill(delivery, stages=["score"])["score"].counts
    assert doc_ids(delivery.output) == ["new"]
    assert (counts["duplicates_dropped"], counts["near_copies_dropped"]) == (2, 1)
    assert (counts["duplicates_of_earlier"], counts["near_copies_of_earlier"]) == (1, 1)


@pytest.mark.slow
def test_what_was_begun_is_finished_and_a_kill_leaves_the_first_or_the_joined_corpus(
    again: MillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, source = again.output, write(tmp_path / "third.jsonl", pages(80, 81))
    first = Path(output, "MANIFEST.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.append.join", lambda *_: (_ for _ in ()).throw(MillError("no more")))
        with pytest.raises(MillError, match="no more"):
            append(again, [source])
    assert Path(output, "MANIFEST.json").read_bytes() == first and verify(output).ok
    with pytest.raises(RequestError, match=r"delivery 2 to .* was interrupted"):
        append(again, [write(tmp_path / "fourth.jsonl", pages(70))])
    for refused in (lambda: remove(output, wanted(3)), lambda: mill(again, force=True)):
        with pytest.raises(RequestError, match="delete"):
            refused()
    kept = shutil.copytree(output, tmp_path / "kept")
    shard = next(Path(output, "deliveries/2/data").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(MillError, match="is damaged and joins nothing"):
        append(again, [source])
    assert Path(output, "MANIFEST.json").read_bytes() == first

    sign_and_tell(str(kept))
    outcomes, joined_bytes, expected = [], b"", dict[str, str]()
    for operation in (10_000, *range(0, 60, 4)):
        shutil.rmtree(output)
        shutil.copytree(kept, output)
        killed = killed_at(operation, lambda: append(again, [source]))
        now = Path(output, "MANIFEST.json").read_bytes()
        if not expected:  # of the run that nothing disturbed
            joined_bytes, expected = now, hashes(output, ".")
        assert now in (first, joined_bytes) and Path(output, "_SUCCESS").exists()
        outcomes.append("first" if now == first else "joined")
        if killed:
            append(again, [source])
        assert hashes(output, ".") == expected and verify(output).ok
        assert Path(output, "MANIFEST.json").read_bytes() == joined_bytes
        assert not any(Path(output, name).exists() for name in OF_THE_CORPUS_AS_IT_WAS)
        if not killed and operation < 10_000:
            break
    assert outcomes.index("first") == 1 and "joined" in outcomes[outcomes.index("first") :], outcomes


OF_THE_CORPUS_AS_IT_WAS = ("MANIFEST.json.sig", "MANIFEST.json.pub", "report.html")


def sign_and_tell(output: str) -> None:
    for name in OF_THE_CORPUS_AS_IT_WAS:
        storage.write_bytes(f"{output}/{name}", b"of the corpus as it was")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda packed: packed["counts"].update(rows=packed["counts"]["rows"] + 1), "its counts are not those"),
        (lambda packed: packed["files"]["shards"].pop(), "its files are not those"),
    ],
)
def test_a_manifest_that_is_no_sum_of_its_parts_is_told(
    again: MillConfig, harm: Callable[[dict[str, Any]], Any], said: str
) -> None:
    path = Path(again.output, "MANIFEST.json")
    packed = json.loads(path.read_bytes())
    harm(packed)
    path.write_text(json.dumps(packed), encoding="utf-8")
    assert any(said in problem.what for problem in verify(again.output).problems)


def test_a_joined_delivery_that_is_gone_or_damaged_is_told(again: MillConfig) -> None:
    shard = next(Path(again.output, "deliveries/1/data").glob("train*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    [problem] = verify(again.output).problems
    assert problem.where == str(shard)
    shutil.rmtree(Path(again.output, "deliveries/1"))
    assert any("a delivery that has joined can't be read" in p.what for p in verify(again.output).problems)
