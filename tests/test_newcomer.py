"""Small things that whoever tries it for the first time stumbles over."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from rich.console import Console
from typer.testing import CliRunner

from augment.selection.gates.leaked_sentences import without_leaked_opening
from difficulty.budget.tiers import as_config
from pipelines.arms import result as arms
from pipelines.cli import app
from pipelines.documents.quarantine import quarantine
from pipelines.joints import Choices, holdback_of
from pipelines.plan import make_plan, show
from pipelines.plan.allocations import allocation_for
from pipelines.plan.evidence import gather
from pipelines.plan.pilot import pick_segments
from pipelines.run import mill
from pipelines.stage import Did
from pipelines.terminal import counted, shortened
from pipelines.yaml_config import from_mapping, load
from sharding import storage, tally
from sharding.errors import RequestError
from sharding.records.families import QUARANTINE
from sharding.records.types import Quarantined
from sharding.storage import manifest

Tree = dict[str, Any]


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., Tree]) -> Tree:
    return rehearsal_config(
        write_jsonl([{"id": str(i), "text": f"Document {i} says {i * i}. " * 30} for i in range(6)])
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The user wants me to explain this passage. Ice flows under pressure.", "Ice flows under pressure."),
        ("The user wants me to explain it.\nI should write like an expert. Ice flows.", "Ice flows."),
        ("用户要求我分析这段文字。冰川在压力下流动。", "冰川在压力下流动。"),
        ("Ice flows. The user wants me to explain this passage.", None),
        ("The user wants me to explain this passage.", None),  # nothing would be left
        ("The user wants to quit. Then the socket is closed.", None),
        ("", None),
    ],
)
def test_a_trace_loses_the_sentence_about_its_prompt_and_not_its_life(text: str, left: str | None) -> None:
    assert without_leaked_opening(text, " ") == (text if left is None else left)


def test_numbers_have_the_nouns_they_need() -> None:
    assert [counted(n, "segment") for n in (0, 1, 1200)] == ["0 segments", "1 segment", "1,200 segments"]
    assert [counted(n, "process") for n in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"layout": {"after": True}}, "layout: {after: true} is not allowed"),
        ({"pack": {"sequence_length": [1, 2]}}, r"pack.sequence_length: \[1, 2\] is not allowed"),
        ({"pack": {"sequence_length": None}}, "pack.sequence_length: null is not allowed"),
        ({"pack": {"sequence_length": "long"}}, "pack.sequence_length: 'long' is not allowed"),
    ],
)
def test_a_bad_value_is_shown_as_it_was_written(tree: Tree, sections: Tree, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        from_mapping(tree | sections)


def test_tables_fit_a_terminal(tree: Tree) -> None:
    numbers = dict.fromkeys(arms.ArmResult.__struct_fields__, 123456789012)
    one = arms.ArmResult(**{**numbers, "output": "o", "sequences": {"train": 123_456_789_012}, "rehearsal": False})
    for table in (
        show.render(make_plan(from_mapping(tree))),
        arms.render(dict.fromkeys(("raw", "uniform", "adaptive"), one)),
    ):
        console = Console(width=80, file=io.StringIO())
        console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert text.count("123,456,789,012") == 7 * 3


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_a_pilot_takes_as_many_segments_as_it_is_told(tree: Tree, count: int) -> None:
    config = from_mapping(tree)
    evidence = gather(config, 100)
    choices = Choices(allocation_for(config, evidence), holdback_of(config))
    taken = pick_segments(config, evidence, choices, count)
    assert len(taken) <= max(count, 2), "one of each tier at least"
    thinking = [tier for document in evidence.sample for tier in choices.tiers(document.segments) if tier]
    assert len(taken) >= min(count, len(thinking)), "a tier of few segments leaves the others more"


def test_a_finished_stage_is_made_again_by_force_and_buys_nothing(tree: Tree) -> None:
    config = from_mapping(tree)
    mill(config)
    did: list[tuple[str, Did]] = []

    def on_stage(stage: str, manifest: Any, what: Did | None) -> None:
        if what is not None:
            did.append((stage, what))

    mill(config, stages=["score", "augment"], on_stage=on_stage)
    again = mill(config, stages=["augment"], force=True, on_stage=on_stage)["augment"]
    assert did == [("score", Did.NOTHING), ("augment", Did.NOTHING), ("augment", Did.RAN)]
    assert again.counts["generated"] == 0 and again.counts["found"] > 0


@pytest.mark.parametrize(
    ("number", "unit"), [("thinking_tokens=5000", "tokens"), ("dollars=5", "dollars"), ("gpu_hours=0.5", "gpu_hours")]
)
def test_one_set_changes_the_unit_of_a_budget(tree: Tree, tmp_path: Path, number: str, unit: str) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert load(path, [f"budget.{number}"]).budget.unit == unit
    with pytest.raises(RequestError, match="exactly one of"):
        load(path, ["budget.dollars=5", "budget.gpu_hours=1"])
    assert load(path, ["budget.dollars=null"]).budget.thinking_tokens_per_source_token == 0.5


@pytest.mark.parametrize(
    ("number", "said"), [(1_740_210.0, "1740210"), (12_345.5, "12345.5"), (0.000123456, "0.000123456")]
)
def test_a_budget_is_told_as_one_writes_it(number: float, said: str) -> None:
    assert as_config(number) == said


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [("short", 5, "short"), ("https://host/a/long/path-1", 11, "https…ath-1"), ("abc", 2, "a…"), ("ab", 1, "a…")],
)
def test_ids_are_cut_in_the_middle(text: str, room: int, shown: str) -> None:
    assert shortened(text, room) == shown


def test_the_quarantine_of_both_stages_is_shown(tmp_path: Path) -> None:
    """Also of a stage that has given up because of it, and has no manifest."""
    output = str(tmp_path / "out")
    refused = [
        Quarantined(stage="augment", origin=f"d{i}#0", reason="generation_failed", detail="model m: no answer")
        for i in range(5)
    ]
    refused.append(
        Quarantined(
            stage="augment", origin="x#1", reason="unspelled", detail="can't be spelled", excerpt="\n \n one\ntwo"
        )
    )
    url = storage.join(manifest.stage_url(output, "augment"), "quarantine-00000-of-00001.arrow")
    storage.write_part(url, refused, QUARANTINE.schema())
    said = [line.plain for line in quarantine(output, 2)]
    assert said == [
        "augment, which has not finished: 6 segments and generations in quarantine",
        "generation_failed: 5",
        "  d0#0: model m: no answer",
        "  d1#0: model m: no answer",
        "unspelled: 1",
        "  x#1: can't be spelled",
        "     one",
    ]
    with pytest.raises(RequestError, match="nothing was scored"):
        list(quarantine(str(tmp_path / "nothing"), 2))


QUIET = (
    *("score", "augment", "select", "pack", "run", "plan", "arms", "ablate", "verify", "export", "report"),
    *("append", "remove", "compare", "provenance"),
)


@pytest.mark.parametrize("words", [[name] for name in QUIET] + [["ledger", "compact"], ["models", "fetch"]])
def test_long_commands_can_be_quiet(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    assert "--quiet" in {option for parameter in command.params for option in parameter.opts}


def test_quiet_says_nothing_of_what_went_well(tree: Tree, tmp_path: Path) -> None:
    config = from_mapping(tree)
    mill(config)
    for words in (
        ["report", config.output],
        ["ledger", "compact", config.ledger_url],
        ["export", config.output, "--to", "parquet", "--target", str(tmp_path / "parquet")],
    ):
        done = CliRunner().invoke(app, [*words, "--quiet"])
        assert (done.exit_code, done.output) == (0, ""), done.output
        assert CliRunner().invoke(app, words).output


def test_shells_complete() -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "thoughtmill", "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "complete" in done.stdout, done.stderr


def test_what_takes_a_while_is_told() -> None:
    with tally.at("loading a model"), tally.at("loading a model"):
        assert tally.doing() == "loading a model"
    assert tally.doing() == ""


def test_a_budget_that_buys_nothing_says_so(
    rehearsal_config: Callable[..., Tree], write_jsonl: Callable[..., str], tmp_path: Path
) -> None:
    source = write_jsonl([{"id": i, "text": "A few words about the weather."} for i in range(20)])

    def warned(budget: float) -> list[str]:
        tree = rehearsal_config(source, output=str(tmp_path / f"out-{budget}"))
        tree["budget"]["thinking_tokens_per_source_token"] = budget
        augmented = mill(from_mapping(tree), stages=("score", "augment"))["augment"]
        return [told for told in augmented.facts["warnings"] if "buys no thought" in told]

    [nothing] = warned(1e-6)
    assert (
        nothing.startswith("budget.thinking_tokens_per_source_token buys no thought: tier ") and "raise it" in nothing
    )
    assert warned(2.0) == []
