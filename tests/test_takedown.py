"""Takedown: documents leave every file, others keep their bytes, a kill leaves nothing half done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
import yaml

from augment.ledger.reading import read_ledger
from pipelines import cli, provenance
from pipelines.config import MillConfig
from pipelines.plan import make_plan
from pipelines.run import mill
from pipelines.takedown import remove
from pipelines.takedown.absent import Needles, add_search
from pipelines.takedown.ids import Wanted, read_ids
from pipelines.takedown.refilling import Gift, Items, refills_of
from pipelines.verify import Report, verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.packing.documents import DocumentIndex
from sharding.records.rows import Row
from sharding.shards.dataset import PackedDataset
from sharding.storage import lease, manifest
from tests.conftest import rehearsal_tree
from tests.killing import killed_at

WORDS = ("mill", "stone", "water", "wheel", "grain", "flour", "sack", "cart", "road", "river", "bridge", "town")


def text_of(number: int) -> str:
    words = random.Random(number).choices(WORDS, k=20 + number % 60)
    return f"Page {number} of the book of mills, as told in {number * number}. " + " ".join(words)


def milled(folder: Path, tokenizer: str, documents: int, **sections: Any) -> MillConfig:
    source = folder / "source.jsonl"
    lines = [json.dumps({"id": f"page-{i}", "text": text_of(i)}) for i in range(documents)]
    lines += [json.dumps({"id": "empty-page", "text": 7}), json.dumps({"id": "page-3-again", "text": text_of(3)})]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tree = rehearsal_tree(folder, tokenizer, str(source), **sections)
    tree["source"] |= {"name": "book", "max_quarantined": 0.5}
    (folder / "mill.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = from_mapping(tree)
    mill(config)
    return config


def wanted(*numbers: int, texts: bool = True) -> Wanted:
    ids = frozenset(f"page-{number}" for number in numbers)
    return Wanted(ids, {f"page-{number}": text_of(number) for number in numbers} if texts else {})


def absent(output: str, documents: Wanted) -> Report:
    report = Report(output=output)
    add_search(report, documents)
    return report


def hashes(output: str, folder: str) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(output, folder).glob("*.arrow"))
    }


def shards_with(output: str, ids: frozenset[str]) -> set[str]:
    packed = manifest.require(output, "pack")
    return {
        url.rsplit("/", 1)[-1]
        for url in manifest.file_urls(output, packed, "shards")
        if any(not ids.isdisjoint(row.doc_ids) for row in storage.read_records(url, Row))
    }


@pytest.mark.slow
def test_one_percent_changes_only_the_shards_that_held_it(
    tmp_path: Path, byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = milled(tmp_path, byte_tokenizer, 1000, pack={"sequence_length": 512, "num_shards": 64})
    output, gone = config.output, wanted(*range(40, 1000, 96))
    before, held = hashes(output, "data"), shards_with(output, gone.ids)
    keys = {row.segment_id.rpartition("#")[0] for row in read_ledger(str(tmp_path / "out" / "ledger"))}
    assert gone.ids & keys and not absent(output, gone).ok
    assert verify(output, deep=True).ok
    (tmp_path / "gone.jsonl").write_text("".join(json.dumps({"id": i}) + "\n" for i in sorted(gone.ids)))

    runner = typer.testing.CliRunner()
    told = runner.invoke(cli.app, ["remove", output, "--ids", str(tmp_path / "gone.jsonl")])
    assert told.exit_code == 0 and f"{len(gone.ids)} documents removed" in told.output, told.output

    after = hashes(output, "data")
    assert {name for name in before if before[name] != after[name]} == held
    assert 0 < len(held) <= len(gone.ids) < len(before)
    report = verify(output, deep=True)
    assert report.ok, report.problems
    assert report.checked.documents == 1001 - len(gone.ids)
    assert absent(output, gone).ok, absent(output, gone).problems
    packed = manifest.require(output, "pack")
    [removal] = packed.facts["removals"]
    assert removal["documents"] == len(gone.ids)
    assert f"{len(gone.ids)} documents, {removal['at'][:10]}" in Path(output, "README.md").read_text(encoding="utf-8")
    with pytest.raises(RequestError, match="no document 'page-40'"):
        DocumentIndex(output).read("page-40")
    assert len(list(PackedDataset(output))) == sum(e.rows - e.padding_rows for e in packed.files["shards"])

    done = []
    mill(config, on_stage=lambda stage, made, did: done.append(did))
    assert set(done) == {"nothing"}


def test_what_is_made_again_leaves_them_out(small: Path, output: str) -> None:
    gone = wanted(4, 9, 33)
    remove(output, gone)
    config = dataclasses.replace(from_mapping(yaml.safe_load((small.parent / "mill.yaml").read_text())), output=output)
    mill(config, force=True)
    assert absent(output, gone).ok, absent(output, gone).problems
    scored = manifest.require(output, "score").counts
    assert (scored["documents_removed"], scored["documents"]) == (3, 38)
    assert manifest.require(output, "pack").facts["removals"][0]["documents"] == 3
    report = verify(output, deep=True)
    assert report.ok, report.problems


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("takedown")
    pack = {"sequence_length": 128, "num_shards": 3, "validation_fraction": 0.2, "source_weights": {"book": 1.5}}
    milled(folder, byte_tokenizer, 40, pack=pack)
    return folder / "out"


@pytest.fixture
def output(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the small corpus, its ledger within it."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.0)
    copy = shutil.copytree(small, tmp_path / "out")
    plan = json.loads((copy / "stages/augment/plan.json").read_text())
    (copy / "stages/augment/plan.json").write_text(json.dumps({**plan, "ledger": str(copy / "ledger")}))
    return str(copy)


def test_a_plan_that_samples_the_source_neither_keeps_nor_brings_back_their_text(small: Path, output: str) -> None:
    """Scores of another config's sample lay beside the stages, out of a removal's sight, and came back with a plan."""
    gone = wanted(4, 9, 33)
    tree = yaml.safe_load((small.parent / "mill.yaml").read_text(encoding="utf-8")) | {"output": output}
    tree["difficulty"]["segment_tokens"] //= 2
    before = make_plan(from_mapping(tree))
    assert {Path(problem.where).parent.name for problem in absent(output, gone).problems} >= {".sample"}
    remove(output, gone)
    assert absent(output, gone).ok, absent(output, gone).problems
    after = make_plan(from_mapping(tree))
    assert absent(output, gone).ok, absent(output, gone).problems
    documents = [made["score"]["documents"]["value"] for made in (before, after)]
    assert documents[0] - documents[1] == 3


@pytest.mark.slow
def test_killed_anywhere_it_is_before_or_goes_on_to_the_end(small: Path, tmp_path: Path, output: str) -> None:
    gone = wanted(3, 7, 21)
    whole = tmp_path / "whole"
    shutil.copytree(output, whole)
    remove(output, gone)
    expected = hashes(output, "data") | hashes(output, "index") | hashes(output, "stages/score")
    outcomes = []
    for operation in range(0, 400, 6):
        shutil.rmtree(output)
        shutil.copytree(whole, output)
        killed = killed_at(operation, lambda: remove(output, gone))
        begun = Path(output, "stages/removal/REMOVAL.json").exists()
        if killed and not begun and Path(output, "MANIFEST.json").exists():
            assert verify(output).ok
            outcomes.append("before" if "page-7" in str(absent(output, gone).problems) else "after")
        elif killed:
            outcomes.append("between")
            assert not Path(output, "_SUCCESS").exists() or not Path(output, "MANIFEST.json").exists() or begun
            with pytest.raises((MillError, RequestError)):
                mill(from_mapping({**rehearsal_tree(tmp_path, "none", "none"), "output": output}))
            if not Path(output, "MANIFEST.json").exists():
                with pytest.raises(MillError, match="was interrupted"):
                    verify(output)
        try:
            remove(output, gone)
        except RequestError as error:
            raise AssertionError(f"after operation {operation}") from error
        assert hashes(output, "data") | hashes(output, "index") | hashes(output, "stages/score") == expected
        assert not Path(output, "stages/removal/REMOVAL.json").exists() and Path(output, "_SUCCESS").exists()
        if not killed:
            break
    report = verify(output, deep=True)
    assert report.ok, report.problems
    assert not killed and {"before", "between"} <= set(outcomes)


def test_it_leaves_repeated_cut_quarantined_and_copied_documents_in_order(output: str) -> None:
    # 39 is cut and repeated; 3 has a copy under another id, whose generations are the same.
    gone = Wanted(frozenset({"page-39", "page-3", "empty-page"}), {"page-39": text_of(39)})
    thoughts = len(DocumentIndex(output).read("page-3-again").thoughts)
    done = remove(output, gone)
    assert (done.documents, done.unknown) == (3, [])
    assert manifest.require(output, "score").counts["quarantined"] == 0
    report = verify(output, deep=True)
    assert report.ok, report.problems
    assert absent(output, gone).ok, absent(output, gone).problems
    assert len(DocumentIndex(output).read("page-3-again").thoughts) == thoughts
    if thoughts:
        assert done.ledger is not None and done.ledger.renamed
    [copy_found] = {problem.what for problem in absent(output, wanted(3)).problems}
    assert copy_found == "holds text of the document 'page-3'"


def test_a_row_of_which_nothing_remains_is_filled_from_its_shard(output: str) -> None:
    before = manifest.require(output, "pack")
    alone = {
        row.doc_ids[0]
        for url in manifest.file_urls(output, before, "shards")
        for row in storage.read_records(url, Row)
        if len(set(row.doc_ids)) == 1
    }
    remove(output, Wanted(frozenset(sorted(alone)[:2]), {}))
    after = manifest.require(output, "pack")
    assert [(entry.rows, entry.padding_rows) for entry in after.files["shards"]] == [
        (entry.rows, 0) for entry in before.files["shards"]
    ]
    report = verify(output, deep=True)
    assert report.ok, report.problems


def test_rows_with_one_item_each_have_nothing_to_give() -> None:
    shards = {
        "a": Items(np.array([1, 1, 1]), np.array([0, 1, 1])),
        "b": Items(np.array([1, 3, 1]), np.array([0, 3, 0])),
    }
    assert refills_of(shards) == [Gift(("b", 1), ("b", 0)), Gift(("b", 1), ("b", 2))]


def test_rows_that_were_left_out_still_add_up(tmp_path: Path, byte_tokenizer: str) -> None:
    pack = {"sequence_length": 128, "num_shards": 2, "max_rows": {"train": 20}}
    config = milled(tmp_path, byte_tokenizer, 60, pack=pack)
    remove(config.output, wanted(*range(0, 60, 6)))
    report = verify(config.output, deep=True)
    assert report.ok, report.problems


def test_what_cannot_be_is_refused_and_nothing_is_touched(output: str, tmp_path: Path) -> None:
    before = hashes(output, "data")
    with pytest.raises(RequestError, match="none of 1 documents is in"):
        remove(output, Wanted(frozenset({"page-1000"}), {}))
    with pytest.raises(RequestError, match=r"no removal of .* is to be finished"):
        remove(output, None)
    with pytest.raises(RequestError, match="all documents of"):
        remove(output, Wanted(frozenset({*(f"page-{i}" for i in range(40)), "page-3-again"}), {}))
    assert hashes(output, "data") == before and verify(output).ok
    done = remove(output, Wanted(frozenset({"page-1000"}), {}), missing_ok=True)
    assert (done.documents, done.unknown) == (0, ["page-1000"])
    done = remove(Path(output), wanted(5))
    assert (done.documents, remove(output, wanted(5)).already) == (1, 1)
    assert verify(output).ok


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "names no document"), ('{"text": "t"}\n', "line 1, is neither"), ("a\n{b\n", "line 2, is neither")],
)
def test_a_file_of_ids_is_read_strictly(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "ids").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=said):
        read_ids(tmp_path / "ids")


def test_ids_are_read_as_lines_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text('a b\r\n\n{"id": 7}\n{"id": "c", "text": "Of c."}\n', encoding="utf-8")
    assert read_ids(tmp_path / "ids") == Wanted(frozenset({"a b", "7", "c"}), {"c": "Of c."})


def test_a_stretch_of_a_text_is_found_in_another() -> None:
    text = text_of(11) + " " + text_of(12)
    needles = Needles({"a": text, "short": "Only this."})
    assert needles.find("Before it. " + text[30:330].replace(" ", "\n") + " After it.") == "a"
    assert needles.find("Only  this.") == "short"
    assert needles.find(text_of(13)) is None and needles.find("Only this and more.") is None


def test_a_copy_of_the_provenance_is_searched_too(output: str) -> None:
    """Parquet is compressed, so that ids are not found in its bytes."""
    provenance.write(output)
    folder = Path(output, "provenance")
    shutil.copytree(folder, Path(output, "for the lawyers"))
    gone = wanted(4, 9)
    remove(output, gone)
    assert not list(folder.glob("*.parquet"))
    named = {problem.where.rpartition("/")[2].partition(",")[0] for problem in absent(output, gone).problems}
    assert any(name.startswith("documents-") and name.endswith(".parquet") for name in named), named
    shutil.rmtree(Path(output, "for the lawyers"))
    assert absent(output, gone).ok


def test_a_ledger_elsewhere_is_only_touched_when_it_is_named(output: str, tmp_path: Path) -> None:
    elsewhere, plan = tmp_path / "shared", Path(output, "stages/augment/plan.json")
    Path(output, "ledger").rename(elsewhere)
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "ledger": str(elsewhere)}))
    before = hashes(str(tmp_path), "shared")
    gone = wanted(3, 4, 5, 6, 7, 8)
    with pytest.raises(RequestError, match=f"--ledger {elsewhere}"):
        remove(output, gone)
    assert hashes(str(tmp_path), "shared") == before and verify(output).ok
    done = remove(output, gone, ledger_url=str(elsewhere))
    assert done.ledger is not None and done.ledger.rows > 0
    assert hashes(str(tmp_path), "shared") != before
    assert absent(output, wanted(4, 5, 6, 7, 8)).ok


@pytest.mark.parametrize(
    "change", [{"name": "../../outside-00000-of-00001.arrow"}, {"name": "MANIFEST.json"}, {"staged": "../plan.json"}]
)
def test_a_journal_that_names_anything_else_is_refused(output: str, change: dict[str, str]) -> None:
    move = {"stage": "score", "name": "segments-00000-of-00001.arrow", "staged": "score-segments-00000-of-00001.arrow"}
    journal = {
        "at": "2026-11-26T12:00:00+00:00", "moves": [{**move, **change}], "manifests": ["score"], "documents": 1,
        "tombstones": [], "ledger": str(Path(output, "ledger")), "request_keys": [], "renamed": {},
    }  # fmt: skip
    Path(output, "stages/removal").mkdir()
    Path(output, "stages/removal/REMOVAL.json").write_text(json.dumps(journal), encoding="utf-8")
    with pytest.raises(MillError, match="is not the journal of a removal of this output"):
        remove(output, None)
    [problem] = verify(output).problems
    assert "a removal was interrupted" in problem.what
