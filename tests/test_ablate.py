"""`thoughtmill ablate` as a whole: four stages, arms, students, verdict, card and report, with rehearsal models."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import ablate as ablate_module
from pipelines import report, yaml_config
from pipelines.ablate import ablate
from pipelines.ablation import curves, result
from pipelines.ablation.result import Ablation
from pipelines.arms import mill_arms
from pipelines.arms.kinds import arm_config
from pipelines.cli import app
from pipelines.config import MillConfig
from pipelines.verify import verify
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.types import Candidate, Request
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.test_ablation import config_in

pytestmark = pytest.mark.slow

HELD = [
    {"name": "heldout", "options": {"max_tokens": 2048}},
    {"name": "hard_tokens", "options": {"max_tokens": 2048}},
    {"name": "own_thought", "options": {"places": 8, "max_thought_tokens": 8, "behind_tokens": 16}},
]
ARMS = ["raw", "uniform", "adaptive", "uniform_matched", "shuffled", "dose_0.5", "dose_1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> MillConfig:
    """Single samples and no value, so that what is kept of a dose is kept of a larger one."""
    folder = tmp_path_factory.mktemp("ablate")
    found = config_in(
        folder,
        byte_tokenizer,
        arms=ARMS,
        tokens=2048,
        eval_every=1024,
        evaluators=HELD,
        target={"metric": "heldout.source"},
        influence={"traces": 24, "reference_tokens": 512},
    )
    tree = yaml_config.to_mapping(found)
    tree["select"]["value"] = "continuation_gain"
    tree["budget"]["tiers"] = [
        {"name": "skip"},
        {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 24},
        {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 96},
    ]
    return yaml_config.from_mapping(tree)


@pytest.fixture(scope="module")
def found(config: MillConfig) -> Ablation:
    return ablate(config)


def arm(config: MillConfig, name: str) -> str:
    return storage.join(config.output, "arms", name)


def kept(config: MillConfig, name: str) -> dict[tuple[str, int], Candidate]:
    selected = manifest.require(arm(config, name), "select")
    urls = manifest.file_urls(arm(config, name), selected, "kept")
    return {(c.segment_id, c.sample): c for url in urls for c in storage.read_records(url, Candidate)}


def test_every_student_trains_on_equally_many_tokens(config: MillConfig, found: Ablation) -> None:
    assert [one.arm for one in found.arms] == ARMS
    assert {one.tokens for one in found.arms} == {2048}
    assert {tuple(point.tokens for point in curve.points) for curve in found.curves} == {(0, 1024, 2048)}
    assert len({one.epochs for one in found.arms}) == 1, "arms are cut to equally many sequences"
    for curve in found.curves:
        nats = [point.scores["heldout.source"] for point in curve.points]
        assert nats[-1] > nats[0] + 0.3, "what is held out is learned"
    first = {curve.arm: curve.points[0].scores["heldout.source"] for curve in found.curves}
    assert len(set(first.values())) == 1, "all begin with the same weights and are asked about the same text"


def test_evaluators_say_what_they_are_for(found: Ablation) -> None:
    last = {curve.arm: curve.points[-1].scores for curve in found.curves}
    assert "heldout.packed_thought" in last["adaptive"] and "heldout.packed_thought" not in last["raw"]
    deciles = [last["raw"][f"heldout.decile_{number}"] for number in range(1, 11)]
    assert sum(deciles) / 10 == pytest.approx(last["raw"]["heldout.source"], rel=0.02)
    for scores in last.values():
        assert 0 <= scores["hard_tokens.accuracy"] <= 1
        either = scores["own_thought.either"]
        assert either >= max(scores["own_thought.after"], scores["own_thought.silent"]) - 1e-9


def test_the_verdict_is_written_and_shown(config: MillConfig, found: Ablation) -> None:
    assert result.read(config.output) == found and found.rehearsal
    assert {(one.arm, one.other) for one in found.verdict.ratios if one.other == "raw"} == {
        (a, "raw") for a in ARMS[1:]
    }
    assert found.dose is not None and list(found.dose.doses) == ["raw", "dose_0.5", "dose_1"]
    assert found.influence is not None and found.influence.traces == 24 and -1 <= found.influence.spearman <= 1
    html = report.render(config.output)
    assert '<figure id="curves"' in html and '<figure id="ratios"' in html and "polyline" in html
    for name in ("raw", "adaptive"):
        card = Path(arm(config, name), "README.md").read_text(encoding="utf-8")
        assert "## Ablation" in card and "Influence check, 24 traces of arm uniform" in card
        assert [str(problem) for problem in verify(arm(config, name)).problems] == []


def test_what_is_done_is_not_done_again(config: MillConfig, found: Ablation) -> None:
    seen: list[int] = []
    again = ablate(config, on_step=lambda training, tokens: seen.append(tokens))
    assert again == found and seen == [2048] * len(ARMS)
    otherwise = replace(config, ablation=replace(config.ablation, learning_rate=1e-3))
    with pytest.raises(RequestError, match=r"arm raw, seed 0, was trained by another config.*--replace"):
        ablate(otherwise)
    # More of the same goes on from the checkpoints; another seed leaves the first alone.
    folder = curves.folder_of(config.output, "raw", 0)
    assert curves.read(folder) is not None


def test_an_ablation_that_lost_its_lease_publishes_nothing(
    config: MillConfig, found: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(config.output)
    conclude = ablate_module._conclude

    def taken_over_meanwhile(*told: Any) -> Ablation:
        storage.write_json(output.lease, {"token": "another", "pid": 1, "host": "elsewhere", "beats": 0})
        return conclude(*told)

    storage.remove(output.ablation, config.output)
    with monkeypatch.context() as meanwhile, pytest.raises(MillError, match="took over"):
        meanwhile.setattr(ablate_module, "_conclude", taken_over_meanwhile)
        ablate(config)
    assert not storage.exists(output.ablation)
    storage.remove(output.lease, config.output)
    assert ablate(config) == found


def test_the_table_is_shown_without_training(config: MillConfig, found: Ablation, tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text(yaml_config.dump(config), encoding="utf-8")
    shown = CliRunner().invoke(app, ["ablate", str(path), "--table"])
    assert shown.exit_code == 0
    assert "heldout.source of raw at its end" in shown.output and "dose_0.5" in shown.output
    told = CliRunner().invoke(app, ["ablate", str(path), "--table", "--json"])
    assert json.loads(told.output)["baseline"] == "raw"


def test_shuffled_traces_are_the_same_ones_elsewhere(config: MillConfig, found: Ablation) -> None:
    adaptive, shuffled = kept(config, "adaptive"), kept(config, "shuffled")
    assert adaptive.keys() == shuffled.keys() and len(adaptive) > 8
    assert Counter(c.text for c in adaptive.values()) == Counter(c.text for c in shuffled.values())
    owner = {c.key: c.doc_id for c in adaptive.values()}
    moved = [c for c in shuffled.values() if owner[c.key] != c.doc_id]
    assert len(moved) == len(shuffled), "each stands in another document"
    for place, candidate in shuffled.items():
        assert candidate.tier == adaptive[place].tier and candidate.gain_nats is None
    assert [str(problem) for problem in verify(arm(config, "shuffled"), deep=True).problems] == []
    assert "**not for training**" in Path(arm(config, "shuffled"), "README.md").read_text(encoding="utf-8")


def test_a_smaller_dose_is_part_of_a_larger_one(config: MillConfig, found: Ablation) -> None:
    half, whole = (
        {
            (request.segment_id, request.request_key)
            for url in manifest.file_urls(arm(config, name), manifest.require(arm(config, name), "augment"), "requests")
            for request in storage.read_records(url, Request)
        }
        for name in ("dose_0.5", "dose_1")
    )
    assert half < whole and len(half) == pytest.approx(len(whole) / 2, rel=0.25)
    assert kept(config, "dose_0.5").keys() <= kept(config, "dose_1").keys()


def test_uniform_is_matched_by_thought_tokens(config: MillConfig, found: Ablation) -> None:
    tokens = {name: sum(len(c.input_ids) for c in kept(config, name).values()) for name in ARMS}
    assert tokens["uniform_matched"] == pytest.approx(tokens["adaptive"], rel=0.15)
    off = [abs(tokens[name] - tokens["adaptive"]) for name in ("uniform_matched", "uniform")]
    assert off[0] <= off[1] + 0.05 * tokens["adaptive"]


def test_arms_are_left_whole_on_request(config: MillConfig, found: Ablation) -> None:
    whole = mill_arms(config, ["adaptive"], whole=True, replace=True)
    assert whole["adaptive"].sequences["train"] > whole["raw"].sequences["train"]
    assert whole["adaptive"].sequences_left_out == 0
    assert arm_config(config, "adaptive").pack.max_rows == {}


def test_the_section_in_the_docs_is_a_valid_one(config: MillConfig) -> None:
    page = Path(__file__).parent.parent / "docs" / "ablation.md"
    [block] = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    tree = yaml_config.to_mapping(config) | yaml.safe_load(block)
    assert yaml_config.from_mapping(tree).ablation.target.metric == "heldout.source"


def test_what_evaluators_cannot_read_is_told_before_arms_are_made(config: MillConfig, tmp_path: Path) -> None:
    behind = replace(config, layout="after_document", output=str(tmp_path / "out"))
    with pytest.raises(RequestError, match=r"own_thought has nothing to read behind a thought.*name another layout"):
        ablate(behind)
    assert not (tmp_path / "out").exists()
