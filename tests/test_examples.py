"""The example configs: each is loaded, questions change what they ask for, and the reference knows every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.testing

from pipelines import cli
from pipelines.cli import examples
from pipelines.tools import reference
from pipelines.yaml_config import load

DOCS = Path(__file__).parent.parent / "docs"
NAMES = sorted(examples.listing())


def test_there_is_one_for_every_place() -> None:
    assert {"demo", "tpt", "adaptive", "rehearsal", "dataflow", "spark"} <= set(NAMES)
    assert all(about.endswith(".") for about in examples.listing().values())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_valid_and_answers_change_three_keys(name: str, tmp_path: Path) -> None:
    examples.write(name, tmp_path / "plain.yaml")
    answers = {"path": 'my "raw"/*.jsonl # not a comment', "tokenizer": "org/model", "output": "gs://b/x: y"}
    examples.write(name, tmp_path / "asked.yaml", answers)
    plain, asked = load(str(tmp_path / "plain.yaml")), load(str(tmp_path / "asked.yaml"))
    assert plain.source is not None and asked.source is not None
    kept = {key: examples.value_of(name, key) for key in examples.QUESTIONS}
    assert kept == {"path": plain.source.path, "tokenizer": plain.tokenizer, "output": plain.output}
    assert (asked.source.path, asked.tokenizer, asked.output) == tuple(answers.values())
    before, after = ((tmp_path / f"{which}.yaml").read_text().splitlines() for which in ("plain", "asked"))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 3


def test_init_asks_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    target = tmp_path / "mill.yaml"
    runner = typer.testing.CliRunner()
    done = runner.invoke(
        cli.app, ["init", str(target), "--example", "rehearsal", "--ask"], input="texts/\n\nout/mine\n"
    )
    assert done.exit_code == 0, done.output
    config = load(str(target))
    assert config.source is not None and config.source.path == "texts/"
    assert (config.tokenizer, config.output) == ("smollm2-135m-instruct", "out/mine")


def test_the_reference_is_up_to_date() -> None:
    page = (DOCS / "reference.md").read_text()
    assert page == reference.render(), "run: python -m pipelines.tools.reference --write docs/reference.md"


def test_the_reference_describes_every_key() -> None:
    rows = re.findall(r"^\| `\w+` \|.*$", reference.render(), re.MULTILINE)
    assert len(rows) > 100
    undescribed = [row for row in rows if row.endswith("|  |")]
    assert not undescribed


def test_links_of_the_reference_lead_to_sections() -> None:
    page = reference.render()
    titles = {re.sub(r"[^\w-]", "", title.lower()) for title in re.findall(r"^## `?(.*?)`?$", page, re.MULTILINE)}
    assert set(re.findall(r"\(#(.*?)\)", page)) <= titles
