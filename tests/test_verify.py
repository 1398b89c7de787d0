"""Verify catches what Arrow does not: every flipped bit, every cut, every lie of a manifest."""

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.verify.show import LOG_EVERY_S, line_a_minute
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.storage import manifest, retries
from tests.damage import Columns, chain, change_file, manifest_tree, seal, write_manifest


def write_corpus(folder: Path, documents: int = 40) -> str:
    """Documents of 30 words, and some of 630 that are longer than a row."""
    rng = random.Random(0)
    path = folder / "source.jsonl"
    with path.open("wb") as file:
        for number in range(documents):
            words = " ".join(f"word{rng.randrange(500)}" for _ in range(30 + 600 * (number % 7 == 0)))
            file.write(msgspec.json.encode({"id": f"doc-{number}", "text": words}) + b"\n")
    return str(path)


def tree(folder: Path, source: str, tokenizer: str, **pack: Any) -> dict[str, Any]:
    return {
        "source": {"path": source, "id_field": "id"},
        "output": str(folder / "out"),
        "tokenizer": tokenizer,
        "difficulty": {"scorer": "rehearsal", "segment_tokens": 64},
        "models": {"m": {"engine": "rehearsal", "name": "m"}},
        "budget": {
            "thinking_tokens_per_source_token": 0.2,
            "tiers": [{"name": "skip"}, {"name": "t", "model": "m", "prompt": "brief", "max_tokens": 48}],
        },
        "layout": "after_segment",
        "pack": {"sequence_length": 256, "num_shards": 2, "validation_fraction": 0.2, **pack},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    mill(from_mapping(tree(folder, write_corpus(folder), byte_tokenizer, raw_fraction=0.2)))
    return folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def shards(output: Path) -> list[Path]:
    return sorted((output / "data").glob("*.arrow"))


def said(output: Path, *, deep: bool = False) -> list[str]:
    return [str(problem) for problem in verify(str(output), deep=deep).problems]


def but_of_the_index(problems: list[str]) -> list[str]:
    """What is told besides that shards aren't those that the index of documents was made of."""
    return [problem for problem in problems if "the index of documents says" not in problem]


@pytest.mark.parametrize("workers", [1, 3, None])
def test_a_sound_output_has_no_problems(finished: Path, workers: int | None) -> None:
    steps: list[tuple[int, int]] = []
    report = verify(str(finished), deep=True, workers=workers, on_progress=lambda *step: steps.append(step))
    assert report.problems == [] and report.ok
    packed, scored = (manifest_tree(finished, stage) for stage in ("pack", "score"))
    checked = report.checked
    assert checked.manifests == 4
    assert checked.rows == packed["counts"]["rows"]
    assert checked.tokens == checked.rows * 256
    assert checked.documents == checked.documents_compared == scored["counts"]["documents"] == 40
    assert checked.thoughts_compared == packed["counts"]["thoughts"] > 10
    assert 0 < packed["counts"]["documents_cut"] < 40
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1] > checked.size_bytes > 0


def test_every_flipped_bit_is_caught(output: Path) -> None:
    rng = random.Random(0)
    path = shards(output)[0]
    sound = path.read_bytes()
    caught = 0
    for _ in range(300):
        bit = rng.randrange(len(sound) * 8)
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        problems = said(output)
        caught += len(problems) == 1 and path.name in problems[0]
    assert caught == 300


def test_a_cut_at_every_batch_boundary_is_caught(output: Path) -> None:
    for path in shards(output):
        sound = path.read_bytes()
        ends = []
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for _ in reader:
                ends.append(source.tell())
        for end in {*ends, len(sound) - 1, len(sound) - 8, 0}:
            path.write_bytes(sound[: min(end, len(sound) - 1)])
            (problem,) = said(output)
            assert f"{path}: {min(end, len(sound) - 1)} bytes, its manifest says {len(sound)}" == problem
        path.write_bytes(sound)


def test_a_stream_that_ends_early_is_caught_though_all_hashes_agree(output: Path) -> None:
    """What Arrow itself loads without a word: all hashes and the rows of the manifest are those of the short file."""
    name = change_file(output, "pack", "shards", 0, lambda columns: [values.pop() for values in columns.values()])
    assert any("rows" in problem for problem in said(output))
    assert name


def test_swapped_files_are_caught(output: Path) -> None:
    first, second = shards(output)[:2]
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    problems = said(output)
    assert len(problems) == 2 and first.name in problems[0] and second.name in problems[1]


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("stage", "change", "what"),
    [
        ("pack", lambda m: m["files"]["shards"][0]["tokens"].update(source=1), "tokens"),
        ("pack", lambda m: m["files"]["shards"][0].update(rows=1), "rows"),
        ("pack", lambda m: m["facts"].update(vocab_size=3), "not below the vocabulary size 3"),
        ("pack", lambda m: m["counts"].update(items=3), "says items 3, its files hold"),
        ("pack", lambda m: m["counts"].update(tokens_thought=3), "says tokens_thought 3, its files hold"),
        ("pack", lambda m: m["counts"].update(source_tokens_left_out=3), "- 3 source_tokens_left_out"),
        ("pack", lambda m: m["counts"].update(thoughts=3), "3 thoughts is not"),
        ("pack", lambda m: m["config"].update(layout="x"), "fingerprint is not that of its config"),
        ("pack", lambda m: m["inputs"].update(score="0"), "another result of the stage score"),
        ("pack", lambda m: m["files"]["shards"].append(m["files"]["shards"][0]), "2 times"),
        ("score", lambda m: m["counts"].update(source_tokens=1), "is not 1 score/source_tokens"),
        ("score", lambda m: m["counts"].update(segments=1), "says segments 1"),
        ("score", lambda m: m["counts"].update(quarantined=1), "1 quarantined is not 0 rows/quarantine"),
        ("score", lambda m: m["counts"].update({"quarantined.why": 1}), "says quarantined.why 1"),
        ("score", lambda m: m["facts"].update(vocab_size=3), "vocabulary size"),
        ("score", lambda m: m["files"]["segments"][0].update(rows=1), "rows"),
        ("augment", lambda m: m["counts"].update(requests=1), "says requests 1"),
        ("augment", lambda m: m["counts"].update(generated=10_000), "10000 generated"),
        ("augment", lambda m: m["counts"].update({"tier.t.samples": 1}), "tier.t.samples 1"),
        ("select", lambda m: m["counts"].update(kept=0), "candidates is not 0 kept"),
        ("select", lambda m: m["counts"].update({"rejected.why": 7}), "says rejected.why 7"),
        ("select", lambda m: m["facts"]["account"][0].update(kept=0), "its account adds up to"),
        ("select", lambda m: m["files"].pop("kept"), "another result of the stage select"),
    ],
)
def test_a_manifest_that_lies_is_caught(output: Path, stage: str, change: Change, what: str) -> None:
    lying = manifest_tree(output, stage)
    change(lying)
    write_manifest(output, stage, lying)
    assert any(what in problem for problem in said(output)), said(output)


def test_the_output_of_another_version_is_told_as_such(output: Path) -> None:
    lying = manifest_tree(output, "pack")
    write_manifest(output, "pack", lying | {"format": 1})
    said_so = rf"{output} holds the stage pack in format 1, .* reads format {manifest.FORMAT}: .*--replace"
    with pytest.raises(RequestError, match=said_so):
        verify(str(output))


def test_a_manifest_that_is_not_one(output: Path) -> None:
    write_manifest(output, "pack", {"stage": "pack", "format": manifest.FORMAT})
    with pytest.raises(MillError, match="is not a manifest of this version"):
        verify(str(output))


@pytest.mark.parametrize("gone", ["_SUCCESS", "stages/select/MANIFEST.json", "data/train-00000-of-00002.arrow"])
def test_what_is_missing_is_named(output: Path, gone: str) -> None:
    (output / gone).unlink()
    assert [str(output / gone) in problem and "is missing" in problem for problem in said(output)] == [True]
    assert any("first mend" in problem for problem in said(output, deep=True)) == (gone != "_SUCCESS")


def test_a_file_that_would_be_loaded_as_a_shard(output: Path) -> None:
    strays = [output / "data" / f"train-{name}.arrow" for name in ("00000-of-00009", "00007-of-00002", "copy-of-00002")]
    for stray in strays:
        shutil.copy(shards(output)[0], stray)
    for name in ("notes.txt", ".train-00000-of-00009.arrow.0123abcd.tmp"):
        (output / "data" / name).write_text("x")
    assert said(output) == [
        f"{stray}: no manifest names it, but a loader would take it for a shard" for stray in strays
    ]


def test_what_a_killed_pack_has_left_is_gone(output: Path, tmp_path: Path, byte_tokenizer: str) -> None:
    """Shards of another number, and of a split that there is no more; what is no shard stays."""
    (output / "data" / "train-00003-of-00005.arrow").write_bytes(shards(output)[0].read_bytes())
    (output / "data" / "notes.txt").write_text("x")
    (output / "MANIFEST.json").unlink()
    (output / "_SUCCESS").unlink()
    changed = tree(tmp_path, write_corpus(tmp_path), byte_tokenizer, validation_fraction=0.0)
    mill(from_mapping(changed), stages=["pack"], replace=True)
    there = {path.name for path in (output / "data").iterdir()}
    assert there == {"train-00000-of-00002.arrow", "train-00001-of-00002.arrow", "notes.txt"}
    assert said(output) == []


def test_a_store_that_fails_for_a_moment_is_no_damage(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(output), "/verified", recursive=True)
    info, asked = MemoryFileSystem.info, set[str]()

    def info_at_the_second_try(fs: MemoryFileSystem, path: str, **how: Any) -> Any:
        if path not in asked:
            asked.add(path)
            raise ConnectionError("503 slow down")
        return info(fs, path, **how)

    monkeypatch.setattr(MemoryFileSystem, "info", info_at_the_second_try)
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.0)
    try:
        assert verify("memory://verified").problems == []
        store.rm("/verified/data/train-00000-of-00002.arrow")
        assert [problem.what for problem in verify("memory://verified").problems] == ["is missing"]
    finally:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="no finished run"):
        verify(str(tmp_path))


# --- rows that no trainer should get, with every hash recomputed ------------------------------------------------------


def set_in(column: str, row: int, place: int, value: Any) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        columns[column][row][place] = value

    return change


def add_to(column: str, row: int, value: Any) -> Callable[[Columns], None]:
    return lambda columns: columns[column][row].append(value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (set_in("input_ids", 3, 5, 60_000), "row 3, document 'doc-N': token id 60000 at token 5 is not below"),
        (set_in("token_type", 3, 5, 9), "row 3, document 'doc-N': unknown token type 9 at token 5"),
        (set_in("token_type", 3, 0, 0), "row 3, document 'doc-N': its padding is not where its seq_lengths end"),
        (set_in("seq_lengths", 3, 0, 0), "row 3: seq_lengths"),
        (set_in("seq_lengths", 3, 0, 300), "row 3: seq_lengths"),
        (set_in("source_starts", 3, 0, -4), "row 3, document 'doc-N': source_starts says -4"),
        (add_to("doc_ids", 3, "more"), "doc_ids for"),
        (add_to("source_starts", 3, 0), "source_starts for"),
    ],
)
def test_a_row_that_is_wrong_is_named(output: Path, change: Callable[[Columns], None], what: str) -> None:
    name = change_file(output, "pack", "shards", 0, change)
    first_id = next(iter(pa.ipc.open_stream((output / name).read_bytes()))).column("doc_ids")[3][0].as_py()
    problems = said(output)
    assert any(f"{output / name}, {what.replace('doc-N', first_id)}" in p or what in p for p in problems), problems


def test_padding_is_id_zero(output: Path) -> None:
    def change(columns: Columns) -> None:
        row = next(r for r, lengths in enumerate(columns["seq_lengths"]) if sum(lengths) < 256)
        columns["input_ids"][row][255] = 7

    change_file(output, "pack", "shards", 0, change)
    assert ["padding at token 255 is id 7, not 0" in problem for problem in said(output)] == [True]


def test_many_problems_of_one_shard_are_counted(output: Path) -> None:
    def change(columns: Columns) -> None:
        for ids in columns["input_ids"]:
            ids[0] = 60_000

    change_file(output, "pack", "shards", 0, change)
    rows = manifest_tree(output, "pack")["files"]["shards"][0]["rows"]
    problems = said(output)
    assert len(problems) == 11 and any(f"{rows - 10} more problems of this kind" in problem for problem in problems)


def test_another_schema_is_named(output: Path) -> None:
    path = shards(output)[0]
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    wide = table["seq_lengths"].cast(pa.list_(pa.field("item", pa.int64(), nullable=False)))
    table = table.set_column(2, pa.field("seq_lengths", wide.type, nullable=False), wide)
    table = table.append_column("more", pa.array([0] * len(table)))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    seal(output, "pack", "shards", 0)
    problems = said(output)
    assert any("column seq_lengths is" in problem for problem in problems)
    assert any("column more of type int64 is not known" in problem for problem in problems)


def test_a_document_in_two_splits_is_named(output: Path) -> None:
    files = manifest_tree(output, "pack")["files"]["shards"]
    index = next(i for i, entry in enumerate(files) if "validation" in entry["name"])
    taken = next(iter(pa.ipc.open_stream(shards(output)[0].read_bytes()))).column("doc_ids")[0][0].as_py()
    name = change_file(output, "pack", "shards", index, set_in("doc_ids", 0, 0, taken))
    (problem,) = but_of_the_index(said(output))
    assert f"document '{taken}': is in more than one split: train ({shards(output)[0]}, row 0)" in problem
    assert f"validation ({output / name}, row 0)" in problem


def test_a_segment_that_begins_elsewhere(output: Path) -> None:
    def change(columns: Columns) -> None:
        row = columns["segment_index"].index(2)
        columns["token_start"][row] += 1
        columns["token_start"][columns["segment_index"].index(0)] = 5

    name = change_file(output, "score", "segments", 0, change)
    (problem,) = said(output)
    assert (
        problem.startswith(f"{output}/stages/score/{name}, row 0, document 'doc-") and "token_start 5 is not" in problem
    )


def test_a_scored_document_that_lacks_segments(output: Path) -> None:
    """The counts of the manifest are made to agree; the parts of a document don't."""

    def change(columns: Columns) -> None:
        row = columns["segment_index"].index(1)
        columns["segment_index"][row], columns["num_segments"][row] = 7, 9

    change_file(output, "score", "segments", 0, change)
    assert any("cannot be compared" in p and "lacks some of its" in p for p in said(output, deep=True))


def test_parts_of_two_runs_are_told(output: Path) -> None:
    kept = manifest_tree(output, "select")
    (entry,) = kept["files"]["kept"]
    path = output / "stages" / "select" / entry["name"]
    entry["name"] = entry["name"].replace("-of-00001", "-of-00003")
    path.rename(output / "stages" / "select" / entry["name"])
    write_manifest(output, "select", kept)
    chain(output)
    (problem,) = said(output, deep=True)
    assert "cannot be compared" in problem and "the stage select wrote 3 parts" in problem


def test_a_candidate_among_the_wrong_ones(output: Path) -> None:
    def change(columns: Columns) -> None:
        columns["kept"][0] = False

    name = change_file(output, "select", "kept", 0, change)
    assert said(output) == [f"{output}/stages/select/{name}: 1 candidates do not belong among the kept"]


# --- deep -------------------------------------------------------------------------------------------------------------


def place_of(columns: Columns, kind: int) -> tuple[int, int]:
    """A token of this kind in the middle of the shard."""
    places = [(r, p) for r, types in enumerate(columns["token_type"]) for p, found in enumerate(types) if found == kind]
    return places[len(places) // 2]


@pytest.mark.parametrize(("kind", "what"), [(1, "are not those of the"), (2, "is not one of the")])
def test_a_changed_token_is_caught_by_deep_alone(output: Path, kind: int, what: str) -> None:
    where: dict[str, Any] = {}

    def change(columns: Columns) -> None:
        row, place = place_of(columns, kind)
        columns["input_ids"][row][place] ^= 1
        where.update(row=row)

    name = change_file(output, "pack", "shards", 0, change)
    assert said(output) == []
    (problem,) = said(output, deep=True)
    assert problem.startswith(f"{output / name}, row {where['row']}, document 'doc-") and what in problem


def test_tokens_in_another_order_are_caught(output: Path) -> None:
    def change(columns: Columns) -> None:
        row, place = place_of(columns, 1)
        ids = columns["input_ids"][row]
        other = next(p for p in range(place, 256) if columns["token_type"][row][p] == 1 and ids[p] != ids[place])
        ids[place], ids[other] = ids[other], ids[place]

    change_file(output, "pack", "shards", 0, change)
    assert said(output) == []
    assert any("are not those of the" in problem for problem in said(output, deep=True))


def test_pieces_of_a_document_that_change_places_are_caught(output: Path) -> None:
    def change(columns: Columns) -> None:
        row, place = next((r, p) for r, s in enumerate(columns["source_starts"]) for p, start in enumerate(s) if start)
        columns["source_starts"][row][place] += 1

    change_file(output, "pack", "shards", 0, change)
    assert but_of_the_index(said(output)) == [] != said(output)
    assert any("source tokens" in problem for problem in said(output, deep=True))


def rename(columns: Columns, old: str, new: str) -> None:
    for doc_ids in columns["doc_ids"]:
        doc_ids[:] = [new if doc_id == old else doc_id for doc_id in doc_ids]


def test_a_missing_document_is_named(output: Path) -> None:
    name = manifest_tree(output, "pack")["files"]["shards"][0]["name"]
    doc_id = next(iter(pa.ipc.open_stream((output / name).read_bytes()))).column("doc_ids")[0][0].as_py()
    for index in range(2):
        change_file(output, "pack", "shards", index, lambda columns: rename(columns, doc_id, "doc-of-nobody"))
    assert but_of_the_index(said(output)) == [] != said(output)
    problems = but_of_the_index(said(output, deep=True))
    assert any(f"document '{doc_id}': no shard holds it" in problem for problem in problems)
    assert any("document 'doc-of-nobody': no document of this id was scored" in problem for problem in problems)
    assert len(problems) == 2


def test_a_document_that_is_there_twice_and_another_not_at_all(output: Path) -> None:
    """Token totals stay: one row is replaced by a copy of another."""

    def change(columns: Columns) -> None:
        kinds = [tuple(sorted(types)) for types in columns["token_type"]]
        first, second = next(
            (i, j)
            for i in range(len(kinds))
            for j in range(i)
            if kinds[i] == kinds[j] and len(columns["doc_ids"][i]) == len(columns["doc_ids"][j])
        )
        for values in columns.values():
            values[first] = values[second]

    change_file(output, "pack", "shards", 0, change)
    assert but_of_the_index(said(output)) == [] != said(output)
    problems = said(output, deep=True)
    assert any("not all of its" in problem or "is in no shard" in problem for problem in problems), problems


def test_a_thought_that_was_not_kept_is_named(output: Path) -> None:
    """The kept candidates lose one: what stands in the shards is then nobody's."""
    lost: dict[str, Any] = {}

    def change(columns: Columns) -> None:
        raw_free = next(i for i, doc_id in enumerate(columns["doc_id"]) if doc_id in lost["in_shards"])
        lost.update({name: values.pop(raw_free) for name, values in columns.items()})

    lost["in_shards"] = {
        doc_id
        for path in shards(output)
        for row in pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()
        if 2 in row["token_type"] and len(row["doc_ids"]) == 1
        for doc_id in row["doc_ids"]
    }
    change_file(output, "select", "kept", 0, change)
    problems = said(output, deep=True)
    assert any(
        f"document '{lost['doc_id']}': a thought of {len(lost['input_ids'])} tokens is not one of" in p
        for p in problems
    ), problems


def test_a_thought_that_is_there_twice_is_named(output: Path) -> None:
    """Of two thoughts of one document the longer one is made a copy of the shorter."""

    def change(columns: Columns) -> None:
        for row, types in enumerate(columns["token_type"]):
            if len(columns["doc_ids"][row]) > 1:
                continue
            runs = [p for p in range(1, 256) if types[p] == 2 != types[p - 1]]
            lengths = [next(n for n in range(256) if start + n == 256 or types[start + n] != 2) for start in runs]
            for i in range(len(runs)):
                for j in range(len(runs)):
                    if lengths[i] >= lengths[j] and i != j:
                        ids, short, long = columns["input_ids"][row], runs[j], runs[i]
                        ids[long : long + lengths[j]] = ids[short : short + lengths[j]]
                        for place in range(long + lengths[j], long + lengths[i]):
                            types[place] = 3
                        return
        raise AssertionError("no row has two thoughts")

    change_file(output, "pack", "shards", 0, change)
    assert said(output) == []
    problems = said(output, deep=True)
    assert any("is there more than the 1 times that its document is" in problem for problem in problems), problems


@pytest.mark.slow
@pytest.mark.parametrize(
    "pack",
    [
        {"thought_open": "", "thought_close": ""},
        {"max_rows": {"train": 6}},
        {"sequence_length": 48},
        {"loss_mask": "source_only"},
    ],
    ids=str,
)
def test_what_packing_does_on_purpose_is_no_problem(tmp_path: Path, byte_tokenizer: str, pack: dict[str, Any]) -> None:
    config = tree(tmp_path, write_corpus(tmp_path, documents=16), byte_tokenizer, **pack)
    mill(from_mapping(config))
    assert said(tmp_path / "out", deep=True) == []


@pytest.mark.slow
def test_copies_and_documents_left_out_are_accounted_for(tmp_path: Path, byte_tokenizer: str) -> None:
    config = tree(tmp_path, write_corpus(tmp_path, documents=16), byte_tokenizer, source_weights={"a": 2.0, "b": 0.5})
    source = config.pop("source")
    (tmp_path / "b.jsonl").write_bytes(
        (tmp_path / "source.jsonl").read_bytes().replace(b"doc-", b"other-").replace(b"word", b"term")
    )
    config["sources"] = [{**source, "name": "a"}, {**source, "name": "b", "path": str(tmp_path / "b.jsonl")}]
    mill(from_mapping(config))
    output = tmp_path / "out"
    counts = manifest_tree(output, "pack")["counts"]
    assert counts["document_copies"] == 16 and 0 < counts["documents_left_out"] < 16 and counts["thoughts_copied"] > 0
    assert said(output, deep=True) == []
    scored = manifest_tree(output, "score")["counts"]
    tokens = [scored[f"source.{name}.tokens"] for name in "ab"]
    assert [scored[f"source.{name}.documents"] for name in "ab"] == [16, 16]
    assert sum(tokens) == scored["source_tokens"] and tokens[0] > 0
    assert f"| a | `{tmp_path}/source.jsonl` | by ending | 16 | {tokens[0]:,} |" in (output / "README.md").read_text()
    for name, at_once, what in (
        ("document_copies", [], "says document_copies 17, its documents come to 16"),
        ("documents_left_out", ["is not 32 score/documents"], "says documents_left_out"),
    ):
        lying = manifest_tree(output, "pack")
        lying["counts"][name] += 1
        write_manifest(output, "pack", lying)
        found = said(output)
        assert len(found) == len(at_once) and all(words in found[0] for words in at_once)
        (problem,) = (problem for problem in said(output, deep=True) if problem not in found)
        assert what in problem
        lying["counts"][name] -= 1
        write_manifest(output, "pack", lying)
    lying = manifest_tree(output, "score")
    lying["counts"]["source.b.documents"] += 1
    write_manifest(output, "score", lying)
    assert any("says source.b.documents 17, its files hold 16" in problem for problem in said(output))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["after_document", "at_hard_span"])
def test_copies_that_lose_rows_are_no_problem(tmp_path: Path, byte_tokenizer: str, layout: str) -> None:
    """Some copies of a document are cut off by `max_rows`, so what is left is whole in none of them."""
    pack = {"source_weights": {"a": 2.5}, "max_rows": {"train": 30, "validation": 3}, "raw_fraction": 0.2}
    config = tree(tmp_path, write_corpus(tmp_path, documents=24), byte_tokenizer, **pack) | {"layout": layout}
    source = config.pop("source")
    config["sources"] = [{**source, "name": "a"}]
    mill(from_mapping(config))
    counts = manifest_tree(tmp_path / "out", "pack")["counts"]
    assert counts["document_copies"] > 24 and counts["rows_left_out_documents"] > 0
    assert said(tmp_path / "out", deep=True) == []
    lying = manifest_tree(tmp_path / "out", "pack")
    lying["counts"]["rows_left_out_documents"] += 1
    write_manifest(tmp_path / "out", "pack", lying)
    assert any("says rows_left_out_documents" in problem for problem in said(tmp_path / "out", deep=True))


def test_one_text_in_two_splits_is_told_by_deep(tmp_path: Path, byte_tokenizer: str) -> None:
    """Twenty texts, each three times under ids of their own; one of the two shards is made the validation split."""
    path = tmp_path / "source.jsonl"
    records = [
        {"id": f"{copy}-{n}", "text": f"Text number {n} says nothing else. " * 9}
        for copy in range(3)
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    mill(from_mapping(tree(tmp_path, str(path), byte_tokenizer, validation_fraction=0.0)))
    output = tmp_path / "out"
    assert said(output, deep=True) == []
    packed = manifest_tree(output, "pack")
    packed["files"]["shards"][1]["name"] = "data/validation-00000-of-00001.arrow"
    write_manifest(output, "pack", packed)
    shards(output)[1].rename(output / "data" / "validation-00000-of-00001.arrow")
    places: dict[str, set[str]] = {}
    for shard in shards(output):
        for row in pa.ipc.open_stream(shard.read_bytes()).read_all()["doc_ids"].to_pylist():
            for doc_id in row:
                places.setdefault(doc_id.partition("-")[2], set()).add(shard.name)
    shared = {n for n, names in places.items() if len(names) > 1}
    assert 10 < len(shared) < 20
    problems = but_of_the_index(said(output, deep=True))
    assert but_of_the_index(said(output)) == [] != said(output)
    assert len(problems) == 11 and f"{len(shared) - 10} more problems of this kind" in problems[0]
    for problem in problems[1:]:
        said_of = re.search(
            r"one text is in more than one split: train \('.-(.+)'\) and validation \('.-(.+)'\)", problem
        )
        assert said_of and said_of[1] == said_of[2] and said_of[1] in shared


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong(output: Path) -> None:
    assert "all well" in CliRunner().invoke(app, ["verify", str(output), "--deep"]).stdout
    shards(output)[0].write_bytes(b"")
    done = CliRunner().invoke(app, ["verify", str(output), "--json", "--workers", "1"])
    assert done.exit_code == 1 and done.stderr == ""
    report = json.loads(done.stdout)
    assert report["ok"] is False and report["elapsed_s"] > 0 and report["checked"]["files"] >= 6
    assert [problem["where"] for problem in report["problems"]] == [str(shards(output)[0])]
    assert set(report["problems"][0]) == {"where", "what"}
    done = CliRunner().invoke(app, ["verify", str(output), "--quiet"])
    assert done.exit_code == 1 and "1 problem" in done.stdout and shards(output)[0].name in done.stdout


def test_beam_options_are_for_deep_alone(output: Path) -> None:
    invoke = CliRunner().invoke
    done = invoke(app, ["verify", str(output), "--deep", "--quiet", "--", "--direct_num_workers=1"])
    assert done.exit_code == 0 and "compared 40 documents" in done.stdout
    with pytest.raises(MillError, match="--direct_num_workers=2: Beam options are for --deep"):
        verify(str(output), beam_args=["--direct_num_workers=2"])
    with pytest.raises(MillError, match="Beam does not know --runer"):
        verify(str(output), deep=True, beam_args=["--runer=x"])


def test_deep_writes_nothing_to_the_output(output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert said(output, deep=True) == []
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_deep_tells_what_failed_and_leaves_nothing(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the worker's folder can't be cleared up."""
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    elsewhere.write_text("no folder")
    with pytest.raises(MillError, match=r"^verify .*cannot write .*verify-"):
        verify(str(output), deep=True, beam_args=[f"--temp_location={elsewhere}"])
    [private] = (tmp_path / "tmp").iterdir()  # what is private to the user stays, and nothing is in it
    assert not [path for path in private.rglob("*") if not path.is_dir()]


def test_without_deep_no_pipeline_is_imported(output: Path) -> None:
    code = (
        "import sys; from pipelines.verify import verify; verify(sys.argv[1]); sys.exit('apache_beam' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(output)], check=True)


def test_progress_in_a_log_is_a_line_a_minute() -> None:
    now = [0.0]
    lines: list[str] = []
    on_progress = line_a_minute(lines.append, lambda: now[0])
    for step in range(1, 11):
        now[0] = step * LOG_EVERY_S / 2
        on_progress(step * 100_000_000, 1_000_000_000)
    assert lines == [
        "verify: 20%, 200 MB, 3 MB/s, 4 min left",
        "verify: 40%, 400 MB, 3 MB/s, 3 min left",
        "verify: 60%, 600 MB, 3 MB/s, 2 min left",
        "verify: 80%, 800 MB, 3 MB/s, 1 min left",
    ]
