"""Corpora grow: what was only touched is not made again, and of a source with more documents the new are scored."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from difficulty import scoring
from pipelines.config import MillConfig
from pipelines.deliveries_begun import RECORD_NAME
from pipelines.run import mill
from pipelines.score import Score
from pipelines.stage import Did
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping, to_mapping
from sharding import sources
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

Config = Callable[..., MillConfig]
TEXTS = [f"Document {i} says {i * i} and what all of them say. " * (5 + i) for i in range(8)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "a.jsonl", dict(enumerate(TEXTS[:5])))
    return folder


@pytest.fixture
def config(corpus: Path, tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]]) -> Config:
    def make(output: str = "out", **difficulty: Any) -> MillConfig:
        section = {"scorer": "rehearsal", "segment_tokens": 64, "memory": {"order": 3}, **difficulty}
        return from_mapping(rehearsal_config(str(corpus), output=str(tmp_path / output), difficulty=section))

    return make


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the scorer is asked about."""
    asked: list[str] = []
    score = scoring.score_documents

    def listening(scorer: Any, texts: Sequence[str], byte_ends: Any) -> Any:
        asked.extend(texts)
        return score(scorer, texts, byte_ends)

    monkeypatch.setattr(scoring, "score_documents", listening)
    return asked


def write(path: Path, texts: dict[int, str]) -> None:
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in texts.items()))


def grow(corpus: Path) -> list[str]:
    """More documents, one that has changed, one that is gone, and another file for one; the texts that are new."""
    changed = TEXTS[1].replace("says", "said")
    write(corpus / "a.jsonl", {0: TEXTS[0], 1: changed, 3: TEXTS[3]})
    write(corpus / "b.jsonl", {4: TEXTS[4], 5: TEXTS[5], 6: TEXTS[6]})
    return sorted([changed, TEXTS[5], TEXTS[6]])


def score(config: MillConfig, **options: Any) -> tuple[Manifest, Did]:
    return Score(config).run(**options)


def parts(config: MillConfig) -> dict[str, bytes]:
    folder = Path(config.output, "stages", "score")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.arrow")}


def test_what_is_new_is_scored_and_the_parts_are_those_of_a_fresh_run(
    config: Config, corpus: Path, scored: list[str]
) -> None:
    score(config())
    assert sorted(scored) == sorted(TEXTS[:5])
    os.utime(corpus / "a.jsonl", (1, 1))
    assert score(config())[1] == Did.NOTHING, "only touched"
    scored.clear()
    new = grow(corpus)
    with pytest.raises(RequestError, match=r"input source: .*--replace"):
        score(config())
    made, did = score(config(), replace=True)
    assert did == Did.RAN and sorted(scored) == new
    assert made.facts["reused"]["documents"] == 3
    assert 0 < made.facts["reused"]["tokens"] < made.counts["source_tokens"]
    fresh, _ = score(config("fresh"))
    assert parts(config()) == parts(config("fresh"))
    assert made.counts == fresh.counts and made.facts["histogram"] == fresh.facts["histogram"]


def test_other_segments_and_another_threshold_score_nothing(config: Config, scored: list[str]) -> None:
    score(config())
    scored.clear()
    other = {"segment_tokens": 32, "threshold_nats": 3.0, "memory": {"order": 2}}
    score(config(**other), replace=True)
    assert not scored
    score(config("fresh", **other))
    assert parts(config()) == parts(config("fresh"))
    scored.clear()
    score(config(**other), force=True)
    assert len(scored) == 5, "told to make it again"


def test_a_run_that_is_killed_meanwhile_loses_no_score(
    config: Config, corpus: Path, scored: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    score(config())
    scored.clear()
    new = grow(corpus)
    Score(config())._withdraw()
    aside = Path(config().output, "stages", "score", ".earlier")
    assert not list(aside.parent.glob("segments-*.arrow")) and list(aside.glob("segments-*.arrow"))
    score(config())
    assert sorted(scored) == new and not list(aside.glob("*"))
    Score(config())._withdraw()
    for part in aside.glob("*.arrow"):
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    scored.clear()
    score(config())
    assert len(scored) == 6 and "damaged" in caplog.text


def test_what_was_thought_about_what_stays_is_not_bought_again(config: Config, corpus: Path) -> None:
    tree = to_mapping(config(memory=None))
    tree["budget"] |= {"policy": "fixed", "fixed_tier": "brief", "thinking_tokens_per_source_token": 4.0}
    run = from_mapping(tree)
    first = mill(run, stages=["score", "augment"])["augment"]
    grow(corpus)
    again = mill(run, stages=["score", "augment"], replace=True)["augment"]
    assert first.counts["found"] == 0 < again.counts["found"] and again.counts["generated"] > 0


def add_to(corpus: Path) -> list[str]:
    """More documents behind those of a file and in one more; the texts that are new."""
    with (corpus / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "5", "text": TEXTS[5]}) + "\n")
    write(corpus / "b.jsonl", {6: TEXTS[6]})
    return [TEXTS[5], TEXTS[6]]


def test_a_plain_run_takes_up_what_was_added_and_buys_nothing_twice(
    config: Config, corpus: Path, scored: list[str]
) -> None:
    tree = to_mapping(config(memory=None))
    tree["budget"] |= {"policy": "fixed", "fixed_tier": "brief", "thinking_tokens_per_source_token": 4.0}
    run, said = from_mapping(tree), list[str]()
    first = mill(run, say=said.append)
    scored.clear()
    new = add_to(corpus)
    again = mill(run, say=said.append)
    assert sorted(scored) == new
    assert said == [
        "the sources have grown (1 file more, 1 file longer): the stages are made again, and what was scored and "
        "generated is used again"
    ]
    assert again["augment"].counts["found"] == first["augment"].counts["generations"]
    assert again["augment"].counts["generated"] > 0 and again["pack"].counts["documents"] == 7
    assert verify(run.output).problems == []
    told: list[Did | None] = []
    mill(run, say=said.append, on_stage=lambda stage, found, did: told.append(did))
    assert told == [Did.NOTHING] * 4 and len(said) == 1


def test_what_is_there_of_another_config_or_of_the_corpus_as_it_was_is_not_lost(config: Config, corpus: Path) -> None:
    run = config(memory=None)
    mill(run)
    add_to(corpus)
    tree = to_mapping(run)
    other = from_mapping(tree | {"pack": tree["pack"] | {"sequence_length": 128}})
    with pytest.raises(RequestError, match=r"stage pack of another run \(pack.sequence_length: 512 → 128\).*--replace"):
        mill(other, stages=["score"])
    signature = Path(Output(run.output).signature)
    signature.write_text("signed")
    with pytest.raises(RequestError, match=r"sources have grown, and .* holds a signature .* --replace"):
        mill(run)
    assert manifest.read(run.output, "pack") is not None, "nothing was withdrawn"
    signature.unlink()
    delivery = Path(Output(run.output).delivery(1), RECORD_NAME)
    delivery.parent.mkdir(parents=True)
    delivery.write_text("{}")
    with pytest.raises(RequestError, match=r"later deliveries of documents are in"):
        mill(run, say=lambda line: pytest.fail("it was said that the stages are made again"))
    shutil.rmtree(delivery.parent.parent)
    mill(run, stages=["score"])
    assert manifest.read(run.output, "pack") is None


@pytest.mark.parametrize("name", ["changed", "removed", "a record goes on", "cut", "another key"])
def test_what_was_not_only_added_to_is_refused_as_before(config: Config, corpus: Path, name: str) -> None:
    score(config())
    add_to(corpus)
    file, run = corpus / "a.jsonl", config()
    if name == "changed":
        file.write_text(file.read_text().replace("Document 1 says", "Document 1 said"))
    elif name == "removed":
        file.unlink()
    elif name == "a record goes on":
        write(file, dict(enumerate(TEXTS[:5])))
        file.write_text(file.read_text().rstrip("\n"))
        score(run, replace=True)
        file.write_text(file.read_text() + "  \n" + json.dumps({"id": "9", "text": TEXTS[7]}) + "\n")
    elif name == "cut":
        write(file, dict(enumerate(TEXTS[:4])))
    else:
        run = config(threshold_nats=3.0)
    with pytest.raises(RequestError, match=r"holds the stage score of another run .*--replace"):
        mill(run, stages=["score"])


GROWTHS: dict[str, tuple[dict[str, Any], bytes, bytes, bool]] = {
    "lines": ({"format": "text", "document": "line"}, b"one\ntwo\n", b"three\n", True),
    "lines without an end": ({"format": "text", "document": "line"}, b"one\ntwo", b"\r\nthree", True),
    "a line that goes on": ({"format": "text", "document": "line"}, b"one\ntwo", b" and a half\n", False),
    "paragraphs": ({"format": "text", "document": "paragraph"}, b"one\ntwo\n\n", b"three\n", True),
    "paragraphs with their blank line": ({"format": "text", "document": "paragraph"}, b"one\ntwo", b"\n\nthree", True),
    "a paragraph that goes on": ({"format": "text", "document": "paragraph"}, b"one\ntwo\n", b"three\n", False),
    "a document that goes on": ({"format": "text", "document": "file"}, b"one\n\n", b"two\n", False),
    "compressed": ({"format": "text", "document": "line"}, gzip.compress(b"one\n"), gzip.compress(b"two\n"), False),
    "long": ({"format": "text", "document": "line"}, b"and so on\n" * 30_000, b"at last\n", True),
}


@pytest.mark.parametrize("name", GROWTHS)
def test_what_a_file_that_became_longer_was(tmp_path: Path, name: str) -> None:
    fields, before, added, expected = GROWTHS[name]
    file = tmp_path / "a.txt"
    file.write_bytes(before)
    source = sources.Source("source", sources.SourceConfig(path=str(tmp_path), **fields))
    then = sources.listed([sources.resolve(source)[1]])
    assert then is not None
    file.write_bytes(before + added)
    resolved, files = sources.resolve(source)
    assert sources.growth_of(then, [resolved], [files]) == (sources.Growth(0, 1) if expected else None)
    file.write_bytes(added + before)
    assert sources.growth_of(then, [resolved], [sources.resolve(source)[1]]) is None, "the beginning is another"


def test_files_that_moved_and_sources_that_follow_are_told_from_those_that_are_gone(tmp_path: Path) -> None:
    def resolved(*names: str) -> tuple[Any, Any]:
        named = [sources.Source("source", sources.SourceConfig(path=str(tmp_path / name))) for name in names]
        found, files = zip(*map(sources.resolve, named), strict=True)
        return found, files

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "1.jsonl", {1: f"of {name}"})
    then = sources.listed(resolved("a")[1])
    assert then is not None and str(tmp_path) not in str(then)
    (tmp_path / "a" / "1.jsonl").rename(tmp_path / "a" / "2.jsonl")
    assert sources.growth_of(then, *resolved("a", "b")) == sources.Growth(1, 0)
    assert sources.growth_of(then, *resolved("b", "a")) is None, "another source comes first"
    assert sources.growth_of(sources.Listed("", ["0 nonsense"]), *resolved("a")) is None
