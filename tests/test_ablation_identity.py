"""What an ablation goes by: content behind names, students trained longer, and mistakes told before they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.ablate import _check_curve, ablate
from pipelines.ablation import curves
from pipelines.ablation.config import AblationConfig, EvaluatorConfig, StudentConfig
from pipelines.ablation.curves import Curve, Point
from pipelines.ablation.evaluators import Setting
from pipelines.ablation.identity import identity_of
from pipelines.ablation.named_models import named_model
from pipelines.ablation.training import Training
from pipelines.run import mill
from pipelines.yaml_config import from_mapping, to_mapping
from sharding.errors import MillError, RequestError
from sharding.models.store import HOME_VARIABLE
from tests.conftest import rehearsal_tree
from tests.test_ablation import config_in


def test_an_architecture_that_changed_under_its_name_is_another(tmp_path: Path) -> None:
    section = AblationConfig(model=StudentConfig(config=str(tmp_path)))
    with pytest.raises(RequestError, match=r"ablation\.model\.config: .* can't be loaded"):
        identity_of(section, to_mapping(section), [])
    found = []
    for layers in (2, 3, 2):
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": layers}), encoding="utf-8")
        found.append(identity_of(section, to_mapping(section), []))
    assert found[0] == found[2] != found[1]


def test_other_text_that_was_scored_anew_is_another(tmp_path: Path, byte_tokenizer: str) -> None:
    source = tmp_path / "source.jsonl"

    def scored(text: str) -> str:
        source.write_text(json.dumps({"id": "1", "text": text * 20}) + "\n", encoding="utf-8")
        config = from_mapping(rehearsal_tree(tmp_path, byte_tokenizer, str(source)))
        mill(config, stages=("score",), replace=True)
        asked = EvaluatorConfig(name="heldout", options={"path": config.output})
        section = AblationConfig(evaluators=(asked,))
        return identity_of(section, to_mapping(section), [])

    assert scored("one text ") != scored("another text ")


def test_a_fetched_model_is_named_as_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert named_model(StudentConfig(checkpoint="mine")) == ("checkpoint", str(tmp_path / "models" / "mine"))
    assert named_model(StudentConfig()) is None


def test_a_student_that_was_trained_longer_is_not_thrown_away_unasked(tmp_path: Path) -> None:
    config = AblationConfig(tokens=4096, eval_every=1024, batch_tokens=1024)
    setting = Setting(scores="s", output="o", baseline="b")
    training = Training(arm="raw", seed=0, setting=setting, folder=str(tmp_path / "0"), identity="i", config=config)
    points = [Point(tokens=tokens, train_nats=None, scores={}) for tokens in range(0, 4097, 1024)]
    curve = Curve(
        arm="raw",
        seed=0,
        output="o",
        identity="i",
        rows=9,
        sequence_length=128,
        parameters=1,
        points=points,
        done=True,
    )
    curves.write(training.folder, curve)
    for tokens in (4096, 8192):
        _check_curve(replace(training, config=replace(config, tokens=tokens)), replace=False)
    shorter = replace(training, config=replace(config, tokens=2048))
    with pytest.raises(RequestError, match=r"seed 0, was trained on 4,096 tokens, more than the 2,048.*--replace"):
        _check_curve(shorter, replace=False)
    assert curves.read(training.folder) == curve
    _check_curve(shorter, replace=True)
    assert curves.read(training.folder) is None


HELDOUT = [{"name": "heldout"}]


@pytest.mark.parametrize(
    ("changes", "section", "error", "said"),
    [
        (
            {"pack": {"sequence_length": 128}},
            {"evaluators": HELDOUT, "target": {"metric": "heldout.source"}},
            RequestError,
            r"pack\.validation_fraction: 0, so no text is held out",
        ),
        ({"pack": {"sequence_length": 128}}, {"influence": {}}, RequestError, r"pack\.validation_fraction: 0"),
        ({}, {"batch_tokens": 100}, RequestError, r"ablation\.batch_tokens: 100 is less than one sequence of 128"),
        ({}, {"outputs": {"mine": "nowhere"}}, MillError, r"nowhere/MANIFEST\.json is missing"),
        (
            {},
            {"model": {"checkpoint": "./nowhere"}},
            RequestError,
            r"ablation\.model\.checkpoint: '\./nowhere' can't be",
        ),
        (
            {},
            {
                "evaluators": [{"name": "heldout", "options": {"path": "nowhere"}}],
                "target": {"metric": "heldout.source"},
            },
            MillError,
            r"nowhere/stages/score/MANIFEST\.json is missing",
        ),
    ],
)
def test_mistakes_are_told_before_an_arm_is_made(
    tmp_path: Path, byte_tokenizer: str, changes: dict[str, Any], section: dict[str, Any], error: Any, said: str
) -> None:
    config = config_in(tmp_path, byte_tokenizer, **section)
    config = from_mapping(to_mapping(config) | changes)
    with pytest.raises(error, match=said):
        ablate(config)
    assert not Path(config.output).exists()
