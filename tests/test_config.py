"""The config: mistakes name the key, the value and what is allowed; what is written reads back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.yaml_config import from_mapping, load
from sharding.errors import RequestError

EXAMPLES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def tree(rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return rehearsal_config("in.jsonl")


MISTAKES = [
    ({"sorce": {}}, ["sorce", "unknown key", "source"]),
    ({"source": {"path": "x", "txt_field": "t"}}, ["source.txt_field", "unknown key", "text_field"]),
    ({"source": {}}, ["source.path", "required"]),
    ({"source": {"path": 5}}, ["source.path", "5", "string"]),
    ({"source": {"path": "x", "format": "csv"}}, ["source.format", "'csv'", "jsonl"]),
    ({"pack": {"sequence_length": 3}}, ["pack.sequence_length", "3", "16"]),
    ({"pack": {"sequence_length": "8192"}}, ["pack.sequence_length", "'8192'", "integer"]),
    ({"pack": {"sequence_length": 64, "raw_fraction": 2.0}}, ["pack.raw_fraction", "2.0"]),
    ({"layout": "behind"}, ["layout", "'behind'", "after_document"]),
    ({"difficulty": {"scorer": "causal_lm"}}, ["difficulty", "model"]),
    ({"difficulty": {"scorer": "rehearsal", "threshold_nats": float("nan")}}, ["difficulty.threshold_nats"]),
    ({"difficulty": {"scorer": "none"}}, ["budget.policy", "adaptive", "uniform or fixed"]),
    (
        {
            "difficulty": {"scorer": "none"},
            "budget": {
                "policy": "uniform",
                "thinking_tokens": 10,
                "tiers": [{"name": "a", "model": "pretend", "prompt": "brief", "max_tokens": 9, "samples": 2}],
            },
            "select": {"value": "continuation_gain"},
        },
        ["select.value", "continuation_gain", "needs a scorer"],
    ),
    ({"models": {"m": {"engine": "vlm", "name": "x"}}}, ["models.m.engine", "'vlm'", "vllm"]),
    ({"models": {"m": {"engine": "vllm"}}}, ["models.m.name", "required"]),
    ({"models": {"m": {"engine": "vllm", "name": "x", "max_len": 4}}}, ["models.m.max_len", "max_model_len"]),
    ({"models": {}}, ["budget.tiers.1.model", "'pretend'"]),
    ({"budget": {"thinking_tokens": 10}}, ["budget.tiers", "required"]),
    ({"budget": {"thinking_tokens": 10, "dollars": 1.0, "tiers": [{"name": "skip"}]}}, ["budget", "dollars"]),
    (
        {"budget": {"thinking_tokens": 10, "tiers": [{"name": "a", "model": "pretend"}]}},
        ["budget.tiers.0", "max_tokens"],
    ),
    (
        {
            "budget": {
                "thinking_tokens": 10,
                "tiers": [{"name": "a", "model": "pretend", "prompt": "brief", "max_tokens": 9999}],
            }
        },
        ["budget.tiers.0.max_tokens", "9999", "max_model_len"],
    ),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES, ids=[" ".join(said) for _, said in MISTAKES])
def test_a_mistake_names_key_value_and_what_is_allowed(
    tree: dict[str, Any], change: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(RequestError) as raised:
        from_mapping({**tree, **change})
    assert all(part in str(raised.value) for part in said), str(raised.value)


def test_resolved_config_reads_back(tree: dict[str, Any], tmp_path: Path) -> None:
    config = from_mapping(tree)
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml_config.dump(config))
    assert load(str(path)) == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("budget.thinking_tokens_per_source_token=0.25", 0.25),
        ("budget.tiers.1.max_tokens=32", 32),
        ("budget.tiers.1.max_tokens=3.2e1", 32),
        ("models.pretend.revision=abc", "abc"),
        ("card.license=mit", "mit"),
    ],
)
def test_overrides(tree: dict[str, Any], tmp_path: Path, override: str, value: object) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    node: Any = load(str(path), [override])
    for key in override.split("=")[0].split("."):
        node = node[int(key)] if key.isdigit() else node[key] if isinstance(node, dict) else getattr(node, key)
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize("override", ["budget", "=5", "budget..x=1", "budget.tiers.9.name=x", "output.x=1"])
def test_wrong_overrides(tree: dict[str, Any], tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RequestError, match="--set"):
        load(str(path), [override])


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n- 2", "a: b: c", "\x00"])
def test_no_config_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"c\.yaml"):
        load(str(path))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"absent\.yaml"):
        load(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    assert isinstance(load(str(path)), MillConfig)
