"""The milling benchmark: its documents, its arithmetic, every part at small size, its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import milling, milling_corpus
from benchmarks.milling_ours import full_config, raw_config, run
from benchmarks.milling_peers import run_bare
from benchmarks.milling_reading import cut_needlessly, reading_speeds, shard_figures
from sharding.storage import manifest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_documents_are_the_same_each_time_and_half_prose() -> None:
    documents = list(islice(milling_corpus.documents(400_000), 200))
    assert documents == list(islice(milling_corpus.documents(400_000), 200))
    assert len({document["id"] for document in documents}) == len(documents)
    assert len({document["text"] for document in documents}) == len(documents)
    sizes = {
        kind: sum(len(d["text"].encode()) for d in documents if d["id"].startswith(kind)) for kind in ("prose", "code")
    }
    assert all(size > 80_000 for size in sizes.values())


def test_docstrings_without_their_indentation() -> None:
    source = 'def f():\n    r"""First.\n\n    Second.\n    """\n    x = "not one"\n'
    assert list(milling_corpus._docstrings(source)) == ["First.\n\nSecond."]


@pytest.mark.slow
def test_the_same_documents_ten_times_over(tmp_path: Path) -> None:
    paths, count, _ = milling_corpus.write_jsonl(tmp_path / "once", 30_000, 2)
    milling.repeat(paths, tmp_path / "often", 3)
    lines = [json.loads(line) for path in (tmp_path / "often").glob("*.jsonl") for line in path.open()]
    assert len(lines) == len({line["id"] for line in lines}) == len({line["text"] for line in lines}) == 3 * count


@pytest.mark.parametrize(
    ("items", "needlessly"),
    [
        ([], 0),
        ([("a", 10), ("b", 10)], 0),
        ([("a", 10), ("a", 1)], 0),
        ([("a", 5), ("b", 10), ("a", 5)], 1),
        ([("a", 5), ("a", 4), ("b", 1), ("b", 2), ("b", 3)], 2),
    ],
)
def test_documents_that_were_cut_though_they_fit(items: list[tuple[str, int]], needlessly: int) -> None:
    assert cut_needlessly(items, 10) == needlessly


def test_rates_are_those_of_the_median_turn() -> None:
    turns = [{"tokens": 100, "elapsed_s": seconds} for seconds in (10.0, 1.0, 2.0)]
    assert milling.median_rate(turns) == 50


@pytest.mark.slow
def test_our_turn_and_what_is_in_the_shards(byte_tokenizer: str, tmp_path: Path) -> None:
    source, output = tmp_path / "source", str(tmp_path / "out")
    _, count, text_bytes = milling_corpus.write_jsonl(source, 60_000, 2)
    turn = run(raw_config(f"{source}/*.jsonl", output, byte_tokenizer, 2), [])
    assert turn["documents"] == count and turn["elapsed_s"] > 0 and turn["cpu_s"] > 0
    assert turn["tokens"] == run_bare(source, tmp_path, Path(byte_tokenizer))["tokens"] <= text_bytes
    assert not any(manifest.require(output, stage).rehearsal for stage in manifest.STAGES)
    figures = shard_figures(output)
    packed = manifest.require(output, "pack")
    assert figures["documents_cut_needlessly"] == 0
    assert figures["padding_share"] == packed.counts["tokens_padding"] / (4096 * packed.counts["rows"])
    assert 0 < figures["bytes_per_token"] < 3
    assert set(reading_speeds(output, str(tmp_path), 1)) >= {"ours", "Parquet"}


@pytest.mark.slow
def test_with_everything_on_all_of_it_is_done(byte_tokenizer: str, tmp_path: Path) -> None:
    source, output = tmp_path / "source", str(tmp_path / "out")
    milling_corpus.write_jsonl(source, 60_000, 2)
    turn = run(full_config(f"{source}/*.jsonl", output, byte_tokenizer, 2), [])
    assert turn["tokens"] > 0
    augmented, selected = (manifest.require(output, stage) for stage in ("augment", "select"))
    assert augmented.counts["contractions_now"]
    assert selected.counts["kept"] and selected.facts["value"] == "continuation_gain"


def test_a_corpus_without_thoughts_has_no_model(byte_tokenizer: str) -> None:
    config = raw_config("x.jsonl", "out", byte_tokenizer, 1)
    assert config.difficulty.scorer == "none" and not config.models


@pytest.mark.slow
def test_the_last_line_has_every_figure(byte_tokenizer: str) -> None:
    command = [sys.executable, "-m", "benchmarks.milling", "--tokenizer", byte_tokenizer, "--megabytes", "1"]
    done = subprocess.run(
        [*command, "--growth-megabytes", "1", "--rounds", "1", "--only", "speed,shards,growth"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["name"] == "milling"
    ran = [names for part, names in milling.FIGURES.items() if part != "everything"]
    assert set(last["figures"]) == {name for names in ran for name in names}
    assert all(figure is not None and figure >= 0 for figure in last["figures"].values())
