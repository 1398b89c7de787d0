"""A second round: scored again, on the ledger of the first."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml
from rich.console import Console

from augment.ledger.reading import read_ledger
from pipelines import cli
from pipelines.cli import summary
from pipelines.config import MillConfig
from pipelines.rounds import in_round
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from tests.test_stages import documents

AGAIN = {"scorer": "rehearsal", "segment_tokens": 64, "measure": "beyond_entropy", "threshold_nats": 1.0}


@pytest.fixture
def first(rehearsal_config: Callable[..., dict[str, Any]], write_jsonl: Callable[..., str]) -> dict[str, Any]:
    return rehearsal_config(write_jsonl(documents()))


def second_of(tree: dict[str, Any], **sections: Any) -> MillConfig:
    """A further round; what another measure finds hard stands for what a checkpoint does."""
    output = f"{tree['output']}-2"
    return from_mapping({**tree, "output": output, "round": {"of": tree["output"]}, "difficulty": AGAIN, **sections})


def test_a_second_round_buys_only_what_is_new(first: dict[str, Any]) -> None:
    made = mill(from_mapping(first))
    ledger = from_mapping(first).ledger_url
    bought = {row.key for row in read_ledger(ledger)}
    config = second_of(first)
    assert config.ledger_url == ledger
    again = mill(config)
    counts = again["augment"].counts
    rows = list(read_ledger(ledger))
    assert counts["found"] > 0 and counts["generated"] > 0, "some segments are asked about as before, some are not"
    assert counts["found"] + counts["generated"] == counts["generations"]
    assert len(rows) == len({row.key for row in rows}) == len(bought) + counts["generated"]
    assert again["augment"].facts["round"] | {"scorer": ""} == {"number": 2, "of": first["output"], "scorer": ""}
    assert again["pack"].counts["tokens_source"] == made["pack"].counts["tokens_source"], "the same documents"
    assert verify(config.output).problems == []

    console = Console(width=300, file=io.StringIO())
    console.print(summary.render(config.output))
    for text in (console.file.getvalue(), (Path(config.output) / "README.md").read_text()):  # type: ignore[attr-defined]
        assert f"Round 2: scored again with rehearsal after {first['output']}" in text
    assert "round" not in made["augment"].facts

    third = from_mapping(
        {**first, "output": f"{first['output']}-3", "round": {"of": config.output}, "ledger": {"path": ledger}}
    )
    mill(third)
    assert mill(third)["augment"].facts["round"]["number"] == 3


def test_the_flag_makes_rounds_of_one_config(
    first: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    path, runner = tmp_path / "mill.yaml", typer.testing.CliRunner()
    path.write_text(yaml.safe_dump(first))
    other = ["--set", "difficulty.measure=beyond_entropy", "--set", "difficulty.threshold_nats=1"]
    for words in (
        ["run"],
        ["check", "--round", "2", *other],
        ["score", "--round", "2", *other],
        ["augment", "--round", "2", *other],
    ):
        done = runner.invoke(cli.app, [words[0], str(path), *words[1:]])
        assert done.exit_code == 0, (words, done.output, done.exception)
    output = first["output"]
    assert f"a round after {output}, in {output}-round-2" in done.output
    second = manifest.require(f"{output}-round-2", "augment")
    assert second.facts["round"]["number"] == 2 and second.counts["found"] > 0
    assert not Path(f"{output}-round-2", "ledger").exists()
    third = ["--round", "3", "--set", "difficulty.threshold_nats=3"]
    for stage in ("score", "augment"):
        done = runner.invoke(cli.app, [stage, str(path), *third])
        assert done.exit_code == 0, (done.output, done.exception)
    made = manifest.require(f"{output}-round-3", "augment")
    assert made.facts["round"] | {"scorer": ""} == {"number": 3, "of": f"{output}-round-2", "scorer": ""}
    assert made.counts["found"] > 0, "the ledger is that of the first"


def test_a_round_that_the_flag_can_not_make(first: dict[str, Any]) -> None:
    config = from_mapping(first)
    assert in_round(config, 1) is config
    named = in_round(from_mapping({**first, "ledger": {"path": "shared"}}), 2)
    assert named.ledger_url == "shared"
    with pytest.raises(RequestError, match=r"--round: the config says itself .*round\.of: "):
        in_round(second_of(first), 3)
    with pytest.raises(MillError, match=r"MANIFEST\.json is missing"):
        mill(in_round(config, 2))


@pytest.mark.parametrize(
    ("sections", "kind", "message"),
    [
        ({"round": {"of": "nowhere"}}, MillError, "nowhere"),
        ({"difficulty": {"scorer": "rehearsal", "segment_tokens": 64}}, RequestError, "name the checkpoint in"),
        ({"difficulty": AGAIN | {"segment_tokens": 32}}, RequestError, r"difficulty\.segment_tokens: is 32, and 64"),
        ({"ledger": {"path": "elsewhere"}}, RequestError, r"ledger\.path: .* or all would be bought again"),
    ],
)
def test_what_is_no_further_round(
    first: dict[str, Any], sections: dict[str, Any], kind: type[MillError], message: str
) -> None:
    mill(from_mapping(first), stages=("score", "augment"))
    with pytest.raises(kind, match=message):
        mill(second_of(first, **sections))


def test_a_round_of_itself(first: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"round\.of: .* is the output itself"):
        second_of(first, output=first["output"])
