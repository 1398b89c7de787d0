"""The mistakes of a first hour: each message names the key, its value and the way out."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharding.storage.lease import Lease
from tests.test_errors import check

RUN = ["run", "{config}"]


def setting(*overrides: str) -> list[str]:
    return [*RUN, *(word for override in overrides for word in ("--set", override))]


MISTAKES: dict[str, tuple[list[str], int, list[str]]] = {
    "a typo in a key": (
        setting("difficulty.treshold_nats=2"),
        2,
        ["difficulty.treshold_nats: unknown key", "did you mean threshold_nats?"],
    ),
    "a wrong text field": (
        setting("source.text_field=body"),
        1,
        ["source.text_field: 'body'", "the record has id, text", "source.max_quarantined"],
    ),
    "a typo in a model's name": (
        setting("tokenizer=smollm2-135m-instrct"),
        2,
        ["tokenizer", "smollm2-135m-instrct", "did you mean smollm2-135m-instruct?"],
    ),
    "a prompt file that isn't there": (
        setting("budget.tiers.1.prompt=prompts/mine.txt"),
        2,
        ["prompts/mine.txt", "brief, expert, focus, rephrase", "no readable file"],
    ),
    "a language that is none": (
        setting("select.gates.language.allowed=[english]"),
        2,
        ["select.gates.language.allowed", "english", "known: ", " en, "],
    ),
    "a budget in dollars without a price": (
        setting("budget.dollars=5"),
        2,
        ["models.pretend.dollars_per_million_tokens: not set", "set it, or give the budget as thinking_tokens"],
    ),
    "a server that is down": (
        setting(
            "models.pretend.engine=endpoint",
            "models.pretend.urls=[http://127.0.0.1:{port}]",
            "models.pretend.name={tokenizer}",
            "models.pretend.max_wait_s=1",
        ),
        1,
        ["127.0.0.1:{port}", "no connection", "run again when they take requests"],
    ),
    "an output that can't be written": (
        setting("output={tmp}/file/out"),
        1,
        ["cannot create", "{tmp}/file/out", "Not a directory"],
    ),
}


@pytest.fixture
def places(
    tmp_path: Path,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
    byte_tokenizer: str,
) -> Iterator[dict[str, str]]:
    """What stands for what in the commands; the port is nobody's while a test runs."""
    write_jsonl([{"id": str(i), "text": f"Document {i} says this. " * 40} for i in range(8)])
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(rehearsal_config("source.jsonl")))
    (tmp_path / "file").write_text("")
    (tmp_path / "elsewhere").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listened to by nobody
        yield {
            "{config}": "mill.yaml",
            "{tmp}": str(tmp_path),
            "{tokenizer}": byte_tokenizer,
            "{port}": str(taken.getsockname()[1]),
        }


# These run a stage, or load transformers, before the mistake shows.
SLOW = ("a wrong text field", "a prompt file that isn't there", "a server that is down", "a typo in a model's name")


@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MISTAKES]
)
def test_a_mistake_is_told(
    mistake: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check(MISTAKES[mistake], places, monkeypatch, capfd)


def test_a_relative_path_is_looked_for_in_the_folder_of_the_command(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    case = (["run", "../mill.yaml"], 2, ["source.path", "'source.jsonl'", "name an existing file, folder or glob"])
    check(case, places, monkeypatch, capfd)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_second_run_at_the_same_time_is_refused(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with Lease(str(tmp_path / "out"), "score"):
        check(
            (
                RUN,
                2,
                ["output: {tmp}/out is being written by another run", "wait for it, end it, or name another output"],
            ),
            places,
            monkeypatch,
            capfd,
        )
