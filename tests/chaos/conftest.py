"""Faults on purpose: what every such test shares, and the summary that is printed at the end of the test run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import MillConfig
from pipelines.yaml_config import from_mapping
from tests.chaos.jobs import (
    FEW_DOCUMENTS,
    FLUSH_ROWS,
    MANY_DOCUMENTS,
    MadeLog,
    documents,
    hashes,
    ledger_keys,
    run_here,
)
from tests.conftest import rehearsal_tree

PROPERTY = "faults"


@dataclass
class Account:
    """What a test did to a run, and what came of it.

    Attributes:
        fault: in a few words.
        injected: how many times.
        lost: generations that were durable and were made again or are missing, and shards that differ.
        again: calls of the engine that were made again because what they gave was not durable yet.
    """

    fault: str = ""
    injected: int = 0
    lost: int = 0
    again: int = 0


@pytest.fixture
def account(record_property: Callable[[str, object], None]) -> Iterator[Account]:
    """Fill it in; it is printed with all others, as survived where the test has passed."""
    filled = Account()
    yield filled
    assert filled.fault and filled.injected, "a test of faults that injected none shows nothing"
    record_property(PROPERTY, [filled.fault, filled.injected, filled.lost, filled.again])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeLog:
    """Notes what the rehearsal engine makes, in this process and in every `Child` that is given it."""
    from augment.engines.rehearsal import RehearsalEngine

    log = MadeLog(tmp_path / "made.log")
    monkeypatch.setattr(RehearsalEngine, "generate", log.follow(RehearsalEngine))
    return log


@dataclass(frozen=True)
class Job:
    """A small job with its undisturbed result.

    Attributes:
        source: its documents.
        tokenizer: its tokenizer.
        expected: name → sha256 of the shards of an undisturbed run.
        keys: of all its generations.
        elapsed_s: of each stage of the undisturbed run.
    """

    source: str
    tokenizer: str
    expected: dict[str, str]
    keys: frozenset[str]
    elapsed_s: dict[str, float]

    def config(self, folder: Path, **sections: Any) -> MillConfig:
        """The job with its output in `folder`."""
        return from_mapping(self.tree(folder, **sections))

    def tree(self, folder: Path, **sections: Any) -> dict[str, Any]:
        tree = rehearsal_tree(folder, self.tokenizer, self.source)
        tree["ledger"] = {"flush_rows": FLUSH_ROWS, "flush_seconds": 0.2}
        return {**tree, **sections}


def undisturbed(folder: Path, tokenizer: str, num_documents: int) -> Job:
    """A job, run once as it should be."""
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents(num_documents)))
    config = Job(str(source), tokenizer, {}, frozenset(), {}).config(folder)
    elapsed_s = run_here(config)
    return Job(str(source), tokenizer, hashes(config), frozenset(ledger_keys(config)), elapsed_s)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Job:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), byte_tokenizer, FEW_DOCUMENTS)


@pytest.fixture(scope="session")
def large_job(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Job:
    """One that a run can be killed in many times before its generations are all there."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed-large"), byte_tokenizer, MANY_DOCUMENTS)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line a fault, and a total; what a test that failed had injected is not called survived."""
    every = [report for found in terminalreporter.stats.values() for report in found]
    reports = [report for report in every if isinstance(report, pytest.TestReport)]
    failed = {report.nodeid for report in reports if report.failed}
    total: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for report in reports:
        for name, value in report.user_properties:
            if name == PROPERTY and report.when == "teardown":
                fault, injected, lost, again = value
                survived = 0 if report.nodeid in failed else injected
                for i, number in enumerate((injected, survived, lost, again)):
                    total[fault][i] += number
    if not total:
        return
    terminalreporter.section("faults injected on purpose")
    for fault, (injected, survived, lost, again) in sorted(total.items()):
        terminalreporter.write_line(
            f"{fault}: {injected} injected, {survived} survived, lost={lost}, made again={again}"
        )
    injected, survived, lost, again = (sum(numbers) for numbers in zip(*total.values(), strict=True))
    terminalreporter.write_line(f"all: {injected} injected, {survived} survived, lost={lost}, made again={again}")
