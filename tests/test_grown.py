"""Corpora grow: what was only touched is not made again, and of a source with more documents the new are scored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from difficulty import scoring
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.score import Score
from pipelines.stage import Did
from pipelines.yaml_config import from_mapping, to_mapping
from sharding.errors import RequestError
from sharding.storage.manifest import Manifest

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
