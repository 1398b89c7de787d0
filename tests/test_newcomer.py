"""Small things that whoever tries it for the first time stumbles over."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from augment.selection.gates.leaked_sentences import without_leaked_opening
from pipelines.arms import result as arms
from pipelines.joints import Choices, holdback_of
from pipelines.plan import make_plan, show
from pipelines.plan.allocations import allocation_for
from pipelines.plan.evidence import gather
from pipelines.plan.pilot import pick_segments
from pipelines.run import mill
from pipelines.stage import Did
from pipelines.terminal import counted
from pipelines.yaml_config import from_mapping
from sharding import tally
from sharding.errors import RequestError

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


def test_shells_complete() -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "thoughtmill", "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "complete" in done.stdout, done.stderr


def test_what_takes_a_while_is_told() -> None:
    with tally.at("loading a model"), tally.at("loading a model"):
        assert tally.doing() == "loading a model"
    assert tally.doing() == ""
