"""What later stages need is looked at before the first: every mistake in one list, each with its way out."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing
import yaml

from pipelines import cli, preflight
from pipelines.cli.packaged_models import PACKAGED
from pipelines.plan import make_plan
from pipelines.preflight import room
from pipelines.preflight.subject import Subject
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError, similar
from sharding.models.store import PACKAGED_NAMES
from sharding.storage import manifest
from sharding.storage.manifest import STAGES

Tree = dict[str, Any]


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., Tree]) -> Tree:
    return rehearsal_config(write_jsonl([{"id": str(i), "text": f"Text number {i} says so. " * 40} for i in range(4)]))


def tiers(prompt: str = "brief") -> list[Tree]:
    return [{"name": "skip"}, {"name": "brief", "model": "pretend", "prompt": prompt, "max_tokens": 48}]


def mistaken(tree: Tree, tmp_path: Path) -> Tree:
    """A config with a mistake for each stage, all of which were found one by one, the last after all was paid for."""
    (tmp_path / "worth.py").write_text("")
    (tmp_path / "plain").write_text("a file, and no folder")
    return tree | {
        "tokenizer": "smollm2-135m-instrukt",
        "budget": {"dollars": 1.0, "tiers": tiers("breif")},
        "select": {
            "value": f"{tmp_path}/wort.py:Worth",
            "decontaminate": {"paths": [f"{tmp_path}/no-such-*.jsonl"]},
        },
        "output": str(tmp_path / "plain" / "out"),
        "source": {"path": "no/such"},
    }


WORDS = (
    "source.path: nothing matches 'no/such'",
    "tokenizer: model 'smollm2-135m-instrukt' is no folder and no fetched model; did you mean smollm2-135m-instruct?",
    "budget.tiers.1.prompt: prompt 'breif': no packaged template (",
    "; did you mean brief?",
    "models.pretend.dollars_per_million_tokens: not set",
    "worth.py?",
    "select.decontaminate.paths: no file matches",
    "can't be a folder: ",
)


def test_every_mistake_is_told_at_once_and_nothing_is_scored(tree: Tree, tmp_path: Path) -> None:
    config = from_mapping(mistaken(tree, tmp_path))
    with pytest.raises(RequestError) as caught:
        mill(config)
    said = str(caught.value)
    assert all(words in said for words in WORDS), said
    assert (
        said.startswith("7 things would keep the run from ending well:\n") and said.count("smollm2-135m-instrukt") == 1
    )
    assert "there is no file" in said and not Path(config.output).exists()


def test_a_plan_and_a_single_stage_look_ahead_too(tree: Tree, tmp_path: Path) -> None:
    """A prompt's name and a price were told when the corpus was scored; the plan told neither."""
    config = from_mapping(tree | {"budget": {"dollars": 1.0, "tiers": tiers("breif")}})
    for act in (make_plan, lambda asked: mill(asked, stages=["score"])):
        with pytest.raises(RequestError, match=r"(?s)did you mean brief\?.*dollars_per_million_tokens: not set"):
            act(config)
    assert manifest.read(config.output, "score") is None
    other_machine = from_mapping(tree | {"select": {"decontaminate": {"paths": ["no/such.jsonl"]}}})
    mill(other_machine, stages=["score"])  # where selection is made they may be


def test_a_source_that_cannot_be_read_is_one_of_the_list(tree: Tree) -> None:
    config = from_mapping(tree | {"source": {"path": "no/such"}, "budget": {"thinking_tokens": 9, "tiers": tiers("x")}})
    for act in (mill, make_plan):
        with pytest.raises(
            RequestError, match=r"(?s)2 things .*nothing matches 'no/such'|2 things .*prompt: prompt 'x'"
        ):
            act(config)


def test_a_model_that_does_not_fit_is_told_before_it_is_loaded(tree: Tree, byte_tokenizer: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(byte_tokenizer, model)
    scorer = {"scorer": "causal_lm", "model": str(model)}
    asked = tree | {"difficulty": {**scorer, "context_tokens": 2048}}
    with pytest.raises(MillError, match=r"difficulty\.model: .* holds no config.json"):
        preflight.check(from_mapping(asked), STAGES)
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    with pytest.raises(MillError, match=r"(?s)2 things .*holds no weights.*context_tokens: 2048 is more than the 1024"):
        preflight.check(from_mapping(asked), STAGES)
    (model / "model.safetensors").touch()
    preflight.check(from_mapping(tree | {"difficulty": {**scorer, "context_tokens": 1024}}), STAGES)


def test_a_disk_that_is_too_small(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = from_mapping(tree)
    rest, shuffled = room.needed_bytes(Subject(config, STAGES, 10**12))
    assert 1e12 < rest < 3e12 and shuffled == 4e12
    by_length = from_mapping({**tree, "feeding": {"prefix_groups": False}})
    assert room.needed_bytes(Subject(by_length, STAGES, 10**12)) == (rest, 3e12), "prompts are shuffled once, not twice"
    for free, refused in ((rest - 1, True), (rest + 1, False)):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        if refused:
            with pytest.raises(
                MillError, match=r"output: .* has .* TB free, and 1.0 TB of text take about .* TB there"
            ):
                preflight.check(config, STAGES, source_bytes=10**12)
        else:
            with caplog.at_level(logging.WARNING):
                preflight.check(config, STAGES, source_bytes=10**12)
    assert "1.0 TB of text" in caplog.text


def test_what_a_disk_is_taken_to_need_is_about_what_a_run_leaves(tree: Tree) -> None:
    config = from_mapping(tree)
    mill(config)
    left = sum(file.stat().st_size for file in Path(config.output).rglob("*.arrow"))
    rest, _ = room.needed_bytes(Subject(config, STAGES))
    assert left / 40 < rest < left, "files this small are mostly their own heads"


def test_it_takes_no_time_and_reads_the_files_of_the_source_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    config = from_mapping(tree)
    preflight.check(config, STAGES)  # what it imports is imported by a run as well
    looked: list[Any] = []
    monkeypatch.setattr("sharding.sources.listing.glances_of", lambda fs, names: looked.extend(names))
    began = time.monotonic()
    preflight.check(config, STAGES)
    assert time.monotonic() - began < 1 and not looked


def test_the_command(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    for name, asked in (("good", tree), ("bad", mistaken(tree, tmp_path))):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(asked))
    runner = typer.testing.CliRunner()
    done = runner.invoke(cli.app, ["check", str(tmp_path / "good.yaml")])
    assert done.exit_code == 0 and "nothing was found" in done.output
    done = runner.invoke(cli.app, ["check", str(tmp_path / "bad.yaml")])
    assert isinstance(done.exception, RequestError) and all(words in str(done.exception) for words in WORDS)


STAGE_MISTAKES: dict[str, tuple[str, Callable[[Path], Tree], str]] = {
    "score": ("score", lambda folder: {"pack": {"sequence_length": 64, "document_end": "<no token>"}}, "trainers look"),
    "augment": ("augment", lambda folder: {"budget": {"dollars": 1.0, "tiers": tiers("breif")}}, "2 things .*breif"),
    "augment's value": ("augment", lambda folder: {"select": {"value": f"{folder}/no.py:Worth"}}, "there is no file"),
    "augment's shards": (
        "augment",
        lambda folder: {"pack": {"sequence_length": 64, "document_end": "<no token>"}},
        "pack.document_end: .* trainers look for one",
    ),
    "select": (
        "select",
        lambda folder: {"select": {"decontaminate": {"paths": [f"{folder}/no-*.jsonl"]}}},
        "select.decontaminate.paths: no file matches",
    ),
    "select's scorer": (
        "select",
        lambda folder: {
            "select": {
                "value": "self_gain", "gain": {"scorer": {"scorer": "causal_lm", "model": str(folder)}}
            }
        },
        r"select\.gain\.scorer\.model: .* holds no config.json",
    ),
    "pack": ("pack", lambda folder: {"pack": {"sequence_length": 64, "document_start": "<no>"}}, "pack.document_start"),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGE_MISTAKES)
def test_a_stage_alone_looks_at_what_concerns_it_before_it_begins(tree: Tree, tmp_path: Path, name: str) -> None:
    stage, change, words = STAGE_MISTAKES[name]
    before = STAGES[: STAGES.index(stage)]
    if before:
        mill(from_mapping(tree), stages=before)
    config = from_mapping(tree | change(tmp_path))
    with pytest.raises(MillError, match=f"(?s){words}"):
        mill(config, stages=[stage])
    assert manifest.read(config.output, stage) is None
    assert stage != "augment" or not list(Path(config.ledger_url).glob("part-*"))


@pytest.mark.parametrize("name", ["augment", "augment's value", "augment's shards", "select", "select's scorer"])
def test_a_pilot_looks_at_what_a_run_would_before_it_pays(tree: Tree, tmp_path: Path, name: str) -> None:
    mill(from_mapping(tree), stages=["score"])
    config = from_mapping(tree | STAGE_MISTAKES[name][1](tmp_path))
    for explore in (False, True):
        with pytest.raises(MillError, match=f"(?s){STAGE_MISTAKES[name][2]}"):
            make_plan(config, pilot=4, explore=explore)
    assert not list(Path(config.ledger_url).glob("part-*"))


def test_a_pilot_of_what_is_not_scored_scores_no_sample_first(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.plan.gather", lambda *anything: pytest.fail("it was sampled"))
    with pytest.raises(RequestError, match=r"the corpus isn't scored yet.*`thoughtmill score` first"):
        make_plan(from_mapping(tree), pilot=4)


def test_what_this_machine_lacks_for_later_stages_is_a_warning(
    tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be made on another; a plan and a stage alone say so and go on."""
    config = from_mapping(tree | {"select": {"decontaminate": {"paths": [f"{tmp_path}/no-*.jsonl"]}}})
    words = "select.decontaminate.paths: no file matches"
    assert any(words in warning and "another machine" in warning for warning in make_plan(config)["warnings"])
    mill(config, stages=["score"])
    assert words in caplog.text and "(here; augment, select and pack may be made on another machine)" in caplog.text
    caplog.clear()
    mill(from_mapping(tree), stages=["augment"])
    assert not caplog.text


def test_a_price_that_is_missing_is_told_once(tree: Tree) -> None:
    more = [*tiers(), {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 64}]
    with pytest.raises(RequestError) as caught:
        preflight.check(from_mapping(tree | {"budget": {"dollars": 1.0, "tiers": more}}), STAGES)
    assert str(caught.value).count("dollars_per_million_tokens: not set") == 1


def test_the_command_lists_all_that_is_wrong_with_the_sources(tree: Tree) -> None:
    places = [{"name": name, "path": f"no/{name}"} for name in ("web", "books")]
    config = from_mapping({key: value for key, value in tree.items() if key != "source"} | {"sources": places})
    with pytest.raises(RequestError, match=r"(?s)2 things .*sources\.0\.path: .*sources\.1\.path: "):
        preflight.check_all(config)


def test_names_that_are_alike() -> None:
    assert set(PACKAGED_NAMES) == set(PACKAGED)
    assert similar("expret", ["brief", "expert"]) == "; did you mean expert?"
    assert similar("xyz", ["brief", "expert"]) == ""
