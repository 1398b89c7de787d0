"""Progress: a panel on a terminal, lines in a log, the same from elsewhere; never a reason for a run to fail."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.watch import progress
from pipelines.watch.progress import Progress
from pipelines.yaml_config import from_mapping
from sharding import storage, tally
from sharding.errors import MillError
from sharding.storage import manifest
from sharding.storage.output import Output

SNAPSHOT: dict[str, Any] = {
    "stage": "score",
    "elapsed_s": 125.0,
    "counts": {"documents": 5, "segments": 40, "tokens": 12_000},
    "tokens_per_second": 96.0,
    "generation": None,
    "warning": None,
}
GENERATION: dict[str, Any] = {
    "generations": 10,
    "generations_planned": 30.0,
    "thought_tokens": 900,
    "thought_tokens_planned": 5000.0,
    "unit": "dollars",
    "spent": 0.5,
    "budget": 2.0,
    "dollars": 0.5,
    "gpu_hours": None,
    "processes": 3,
    "in_flight": 8,
    "waiting": 40,
    "failed": 2,
    "seconds_since_last": 1.0,
    "tokens_per_second": 100.0,
    "seconds_left": 7200.0,
}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOOK_S", 0.02)
    monkeypatch.setattr(progress, "PUBLISH_S", 0.05)


def console_of(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, no_color=True)


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_a_line_says() -> None:
    told = progress.line(SNAPSHOT)
    assert told == "score, 2 min: done 5 documents, 40 segments, 12,000 tokens; rate 96 tokens/s"
    choosing = {**SNAPSHOT, "stage": "select", "counts": {"candidates": 40, "kept": 30}, "tokens_per_second": None}
    assert progress.line(choosing) == "select, 2 min: kept 75% of 40 candidates"
    nothing = {**SNAPSHOT, "counts": {}, "tokens_per_second": None}
    assert progress.line(nothing) == "score, 2 min"


def test_what_a_line_says_of_generation() -> None:
    snapshot = {**SNAPSHOT, "stage": "augment", "counts": {}, "tokens_per_second": None, "generation": GENERATION}
    told = progress.line({**snapshot, "warning": "the store is slow"})
    for words in (
        "10 of about 30",
        "0.5 of 2 dollars",
        "2 failed",
        "8 in flight and 40 waiting",
        "100 tokens/s",
        "about 2.0 h",
        "the store is slow",
    ):
        assert words in told, told
    console = console_of(terminal=True)
    console.print(progress.render({**snapshot, "warning": "[not markup]"}))
    assert "[not markup]" in said(console) and "0.5 of 2 dollars" in said(console)


@pytest.mark.parametrize("seconds, words", [(5.4, "5 s"), (99.0, "99 s"), (600.0, "10 min"), (36_000.0, "10.0 h")])
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_a_log_gets_lines_and_a_terminal_a_panel_that_goes(tmp_path: Path) -> None:
    for terminal in (False, True):
        console = console_of(terminal=terminal)
        with Progress(str(tmp_path), console, log_s=0.05) as shown:
            shown.stage("score")
            tally.add(documents=3, tokens=700)
            wait_for(lambda console=console: "700 tokens" in said(console))  # type: ignore[misc]
            shown.stage(None)
        assert "3 documents" in said(console)
        assert ("\x1b[" in said(console)) == terminal


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_over_before_the_next_line_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    """A model that is loaded in a second, while lines come once a minute."""
    monkeypatch.setattr(progress, "FIRST_LOG_S", 0.0)
    console = console_of(terminal=False)
    with Progress(str(tmp_path), console, quiet=quiet, publish=False) as shown:
        shown.stage("plan")
        wait_for(lambda: quiet or "plan" in said(console))  # the first line, behind which the next is a minute away
        monkeypatch.setattr(shown, "_next_line", float("inf"))
        with tally.at("loading the scorer"):
            pass
        wait_for(lambda: not tally._begun)
    assert ("loading the scorer" in said(console)) != quiet


def test_quiet_says_nothing_but_publishes(tmp_path: Path) -> None:
    console = console_of(terminal=True)
    with Progress(str(tmp_path), console, quiet=True, log_s=0.0) as shown:
        shown.stage("score")
        tally.add(documents=3)
        wait_for(lambda: bool((progress.published(str(tmp_path)) or {"counts": 0})["counts"]))
    assert said(console) == ""
    assert progress.published(str(tmp_path)) is None, "it goes when the run does"


def test_another_stage_is_published_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PUBLISH_S", 60.0)
    with Progress(str(tmp_path), console_of(terminal=False), quiet=True) as shown:
        for stage in ("score", "pack"):
            shown.stage(stage)
            wait_for(lambda stage=stage: (progress.published(str(tmp_path)) or {}).get("stage") == stage)  # type: ignore[misc]


def test_what_was_published_long_ago_is_of_a_run_that_is_gone(tmp_path: Path) -> None:
    url = Output(str(tmp_path)).progress
    storage.write_json(url, {**SNAPSHOT, "at": time.time() - 10})
    assert (progress.published(str(tmp_path)) or {})["stage"] == "score"
    storage.write_json(url, {**SNAPSHOT, "at": time.time() - 100})
    assert progress.published(str(tmp_path)) is None
    storage.write_bytes(url, b"{half")
    with pytest.raises(MillError, match=r"progress\.json is not a snapshot of a run"):
        progress.published(str(tmp_path))


def test_the_last_warning_is_shown_and_logging_is_as_before(tmp_path: Path) -> None:
    heard = logging.getLogger("augment")
    before = (heard.level, heard.propagate, list(heard.handlers))
    with Progress(str(tmp_path), console_of(terminal=False), quiet=True) as shown:
        shown.stage("augment")
        logging.getLogger("augment.ledger").warning("the store said %d", 503)
        assert (shown.snapshot() or {})["warning"] == "the store said 503"
    assert (heard.level, heard.propagate, list(heard.handlers)) == before


def test_a_store_that_refuses_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(url: str, value: Any) -> None:
        tried.append(url)
        raise MillError("no")

    monkeypatch.setattr(storage, "write_json", refuse)
    with Progress(str(tmp_path), console_of(terminal=False), quiet=True) as shown:
        shown.stage("score")
        wait_for(lambda: len(tried) > 1)


def test_looking_takes_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def slow(output: str) -> dict[str, Any]:
        looks.append(output)
        time.sleep(0.1)
        return {"generation": GENERATION}

    monkeypatch.setattr(progress.status, "read", slow)
    watched = Progress(str(tmp_path), console_of(terminal=False), quiet=True)
    watched.stage("augment")
    for _ in range(50):
        assert (watched.snapshot() or {})["generation"] == GENERATION
    assert len(looks) == 1, "the next look is due in ten seconds"


@pytest.fixture
def config(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> MillConfig:
    source = write_jsonl({"id": str(i), "text": f"text {i} and {i * 7} " * 40} for i in range(8))
    return from_mapping(rehearsal_config(source))


@pytest.mark.slow
def test_a_real_run_counts_what_it_did(config: MillConfig) -> None:
    seen: dict[str, dict[str, int]] = {}

    def on_stage(stage: str, done: Any, did: Any) -> None:
        if done is None:
            tally.clear()
        else:
            seen[stage] = tally.read()

    made = mill(config, on_stage=on_stage)
    assert seen["score"]["tokens"] == made["score"].counts["source_tokens"]
    assert seen["score"]["documents"] == seen["pack"]["documents"] == 8
    assert seen["select"]["candidates"] == made["select"].counts["candidates"] > 0
    assert seen["select"]["kept"] == made["select"].counts["kept"]


def watching(monkeypatch: pytest.MonkeyPatch, states: list[tuple[Any, Any]]) -> None:
    left: Iterator[tuple[Any, Any]] = iter(states)
    monkeypatch.setattr(progress, "state", lambda output: next(left))


@pytest.mark.slow
def test_watch_ends_with_the_run(config: MillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    mill(config)
    found = progress.status.read(config.output)
    unfinished = {**found, "complete": False, "generation": {**found["generation"], "processes": 0}}
    at_work = {**unfinished, "generation": {**found["generation"], "processes": 2}}
    for terminal in (False, True):
        watching(monkeypatch, [(None, SNAPSHOT), (unfinished, SNAPSHOT), (at_work, None), (found, SNAPSHOT)])
        console = console_of(terminal=terminal)
        progress.watch(config.output, console, log_s=0.0)
        assert "12,000 tokens" in said(console) and "(complete)" in said(console)
    watching(monkeypatch, [(unfinished, None)])
    progress.watch(config.output, console_of(terminal=False))  # nobody is at work: it doesn't wait for ever


def test_watch_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="holds no run"):
        progress.watch(str(tmp_path), console_of(terminal=False))
    assert manifest.read(str(tmp_path), "score") is None
    assert json.loads(json.dumps(SNAPSHOT)) == SNAPSHOT


def test_one_of_a_thing_is_one() -> None:
    counts = {"pieces": 1, "documents": 1, "segments": 2, "tokens": 1}
    assert dict(progress.facts(SNAPSHOT | {"counts": counts}))["done"] == "1 piece, 1 document, 2 segments, 1 token"
