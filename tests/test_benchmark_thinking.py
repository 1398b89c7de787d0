"""The benchmark of ways to think: what its configs differ in, its texts, and its figures at small size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import selection_text, thinking, thinking_ways
from benchmarks.thinking_ways import SINGLE, WAYS, Setup, config_of
from pipelines.yaml_config import to_mapping
from sharding.intervals import Mean


def setup_in(folder: Path, tokenizer: str) -> Setup:
    return Setup(
        folder=folder,
        model=tokenizer,
        engine={"engine": "rehearsal"},
        difficulty={"scorer": "rehearsal"},
        segments=12,
    )


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {name: found for part in tree for name, found in flat(tree[part], f"{key}.{part}").items()}
    if isinstance(tree, list | tuple):
        return {name: found for at, part in enumerate(tree) for name, found in flat(part, f"{key}.{at}").items()}
    return {key: tree}


@pytest.mark.parametrize("name", [name for name in WAYS if name not in (SINGLE, "contraction")])
def test_a_way_differs_from_single_in_nothing_but_what_it_is(name: str, tmp_path: Path, byte_tokenizer: str) -> None:
    setup = setup_in(tmp_path, byte_tokenizer)
    one, other = (flat(to_mapping(config_of(setup, way))) for way in (SINGLE, name))
    differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    way = WAYS[name]
    said = {".output", ".scored", ".budget.tiers.1.name", *(f".budget.tiers.1.{key}" for key in way.tier)}
    said |= {".retrieval.corpus"} if name == "retrieved" else set()
    said |= {".budget.thinking_tokens"} if "samples" in way.tier else set()
    assert {key for key in differ if not key.startswith(tuple(f".select.{key}" for key in way.select))} == said
    assert other[".budget.thinking_tokens"] == one[".budget.thinking_tokens"] * way.tier.get("samples", 1)


def test_how_many_segments_tell_a_difference() -> None:
    """Of 25 segments with a deviation of 2 nats the mean is known to 0.4: 1 nat wants 42 such."""
    mean = Mean(0.1, 0.1 - 1.96 * 0.4, 0.1 + 1.96 * 0.4, 25, 20)
    assert thinking.segments_to_tell(mean) == pytest.approx(25 * (3.2416 * 0.4) ** 2) == pytest.approx(42, abs=0.1)
    assert thinking.segments_to_tell(Mean(0.1, None, None, 3, 3)) is None


def test_the_collection_has_no_words_of_what_is_milled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = "all of this is in the document that is milled and in nothing else but its copies"
    texts = [("other", "words of its own " * 9), ("own", f"{own} and so on"), ("quotes", f"Somebody says: {own}!")]
    monkeypatch.setattr(selection_text, "documents", lambda longer_than: [*texts, ("other", "of the same name")])
    selection_text.write_source(tmp_path / "first", 1, 16)
    assert json.loads((tmp_path / "first").read_text(encoding="utf-8")) == {"id": "other", "text": "words of its own"}
    (tmp_path / "source").write_text(json.dumps({"id": "own", "text": own}) + "\n", encoding="utf-8")
    selection_text.write_collection(tmp_path / "collection", tmp_path / "source")
    lines = (tmp_path / "collection").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "other", "text": "of the same name"}]


@pytest.mark.slow
def test_the_figures(
    byte_tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three ways in rehearsal: the same segments think in each, and each is told what its own calls took."""
    texts = [(f"d{n}", f"Document {n} tells of {n * n} things, one after the other. " * 40) for n in range(8)]
    monkeypatch.setattr(selection_text, "documents", lambda longer_than: texts)
    command = ["--model", byte_tokenizer, "--engine", "rehearsal", "--documents", "8", "--segments", "12"]
    thinking.main([*command, "--only", "contraction,judge", "--output", str(tmp_path)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["name"] == "thinking"
    figures = last["figures"]
    for name in (SINGLE, "contraction", "judge"):
        assert f"{name}_heldout_first_ci95" in figures
        assert (f"{name}_null_first_nats" in figures) == (name != "judge"), "a judge chooses by no gain"
        assert 0 < figures[f"{name}_tokens_per_segment"] <= thinking_ways.MAX_TOKENS * 8
    assert figures["segments"] == 12
    assert figures["single_calls_per_segment"] == 1 < figures["contraction_calls_per_segment"]
    assert figures["judge_calls_per_segment"] == 2
    assert figures["contraction_contraction_tokens_per_segment"] > 0 == figures["single_contraction_tokens_per_segment"]
    assert figures["judge_none"] == figures["judge_judged"] > 0, "a made-up trace is no verdict"
    assert "judge_beyond_single_nats" in figures
