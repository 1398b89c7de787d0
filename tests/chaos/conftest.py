"""Faults on purpose: what every such test shares, and the summary that is printed at the end of the test run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import MillConfig, from_mapping
from tests.chaos.jobs import documents, hashes, run_here
from tests.conftest import rehearsal_tree

PROPERTY = "faults"


@dataclass
class Account:
    """What a test did to a run, and what came of it.

    Attributes:
        fault: in a few words.
        injected: how many times.
        lost: generations that were paid for, were durable and had to be made again, or shards that differ.
        again: generations that were made again because they were not durable yet.
    """

    fault: str = ""
    injected: int = 0
    lost: int = 0
    again: int = 0


@pytest.fixture
def account(record_property: Callable[[str, object], None]) -> Any:
    """Fill it in; it is printed with all others when the test has passed."""
    filled = Account()
    yield filled
    assert filled.fault and filled.injected, "a test of faults that injected none shows nothing"
    record_property(PROPERTY, [filled.fault, filled.injected, filled.lost, filled.again])


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
        tree["ledger"] = {"flush_rows": 4, "flush_seconds": 0.2}
        return {**tree, **sections}


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Job:
    from tests.chaos.jobs import ledger_keys

    folder = tmp_path_factory.mktemp("undisturbed")
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    blank = Job(str(source), byte_tokenizer, {}, frozenset(), {})
    config = blank.config(folder)
    elapsed_s = run_here(config)
    return Job(str(source), byte_tokenizer, hashes(config), frozenset(ledger_keys(config)), elapsed_s)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        value
        for report in terminalreporter.stats.get("", [])
        if report.when == "teardown"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if not rows:
        return
    terminalreporter.section("faults injected on purpose")
    for fault, injected, lost, again in sorted(rows):
        terminalreporter.write_line(f"{fault}: {injected} injected, survived, lost={lost}, made again={again}")
    total, lost = sum(row[1] for row in rows), sum(row[2] for row in rows)
    terminalreporter.write_line(f"{total} faults injected, {total} survived, lost={lost}")
