"""No command is silent: numbers within the first seconds, in a log too; what a plan has scored is not scored again."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml
from rich.console import Console

from difficulty import scoring
from difficulty.config import DifficultyConfig
from pipelines import cli
from pipelines.plan import evidence, make_plan
from pipelines.run import mill
from pipelines.watch import progress
from pipelines.watch.progress import Progress
from pipelines.yaml_config import from_mapping
from sharding import tally
from sharding.errors import MillError

Tree = dict[str, Any]


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., Tree]) -> Tree:
    texts = [f"Document {i} says {i * i} and what all say. " * 20 for i in range(12)]
    return rehearsal_config(write_jsonl([{"id": str(i), "text": text} for i, text in enumerate(texts)]))


def first_output_s(words: Sequence[str], folder: Path) -> tuple[float, str]:
    """Seconds until a command says something into a pipe, and what it has said in the end."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pipelines.cli", *words]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        first = process.stderr.read(1)
        took_s = time.monotonic() - began
        said = (first + process.stderr.read()).decode()
    assert process.returncode == 0, said
    return took_s, said


@pytest.mark.slow
def test_plan_and_score_speak_within_five_seconds(tree: Tree, tmp_path: Path) -> None:
    """Of processor time of an idle machine: how long this one takes to begin with is measured and left out."""
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(tree))
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import apache_beam"], check=True)
    beam_s = time.monotonic() - began
    for command in ("plan", "score"):
        took_s, said = first_output_s([command, "mill.yaml"], tmp_path)
        assert said.startswith(f"{command} mill.yaml ...") and took_s < max(5.0, 3 * beam_s), (took_s, beam_s)


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=120)


def said(console: Console) -> list[str]:
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


def test_a_log_gets_lines_soon_and_then_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.FIRST_LOG_S <= 2
    shown = Progress(str(tmp_path), console(), log_s=60.0)
    now = shown._began
    due = [second for second in range(400) if shown._is_due(now + second)]
    assert due == [2, 4, 8, 16, 32, 64, 124, 184, 244, 304, 364]


def test_what_comes_before_the_first_stage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOOK_S", 0.01)
    out = console()
    with Progress(str(tmp_path), out, log_s=0.01), tally.at("reading what is new of the 3 files"):
        until = time.monotonic() + 20
        while not said(out) and time.monotonic() < until:
            time.sleep(0.01)
    assert re.fullmatch(r"starting, \d+ s: reading what is new of the 3 files", said(out)[0])


def test_numbers_move_while_a_model_scores(tmp_path: Path) -> None:
    snapshot = {"stage": "plan", "elapsed_s": 3.0, "counts": {"pieces": 2, "scored_tokens": 4096}, "warning": None}
    told = progress.line({**snapshot, "tokens_per_second": 1365.3, "generation": None, "doing": ""})
    assert told == "plan, 3 s: done 2 pieces; scored 4,096 of the scorer's tokens; rate 1,365 tokens/s"


def test_a_plan_leaves_its_scores_to_the_score_stage(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    score = scoring.score_documents

    def listening(scorer: Any, texts: Sequence[str], byte_ends: Any) -> Any:
        asked.extend(texts)
        return score(scorer, texts, byte_ends)

    monkeypatch.setattr(scoring, "score_documents", listening)
    config = from_mapping(tree)
    make_plan(config, sample_documents=5)
    assert len(asked) == 5
    scored = mill(config, stages=["score"])["score"]
    assert len(asked) == len(set(asked)) == 12, "each once"
    assert scored.facts["reused"]["documents"] == 5
    fresh = mill(from_mapping({**tree, "output": f"{config.output}-fresh"}), stages=["score"])["score"]
    assert [entry.sha256 for entry in scored.files["segments"]] == [e.sha256 for e in fresh.files["segments"]]


@pytest.mark.slow
def test_the_forecast_of_scoring_counts_the_loading_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken for a part of the rate: 3.3 minutes were planned, and 13 seconds taken."""
    make = evidence.make_scorer

    def slowly(config: DifficultyConfig) -> Any:
        time.sleep(1.0)
        return make(config)

    monkeypatch.setattr(evidence, "make_scorer", slowly)
    made = make_plan(from_mapping(tree), sample_documents=3)
    assert 1.0 < made["score"]["seconds_here"]["value"] < 3.0


@pytest.mark.parametrize(
    "words",
    [
        *(["run"], ["score"], ["plan"], ["run", "--round", "2"], ["arms"], ["ablate"]),
        *(["append", "--source", "later.jsonl"], ["remove"], ["provenance"]),
    ],
)
def test_a_command_speaks_before_it_looks(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it imports takes seconds on a busy machine, with nothing said."""
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    path = str(tmp_path / "absent.yaml")
    done = typer.testing.CliRunner().invoke(cli.app, [words[0], path, *words[1:]])
    assert isinstance(done.exception, MillError)
    begun = f"{' '.join([words[0], path, *words[1:]])} ...\n"
    assert done.stderr == begun
    assert typer.testing.CliRunner().invoke(cli.app, [words[0], path, *words[1:], "--quiet"]).stderr == ""
