"""The summary of what was thrown at the readers, printed at the end of the test run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

PROPERTY = "bad input"
Tally = Callable[[str, Mapping[str, int]], None]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Tells what was tried, and how many times each outcome came of it."""
    return lambda what, outcomes: record_property(PROPERTY, [what, dict(outcomes)])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if not rows:
        return
    terminalreporter.section("bad input")
    for what, outcomes in sorted(rows, key=lambda row: row[0]):
        shown = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        terminalreporter.write_line(f"{what}: {sum(outcomes.values()):,} tried: {shown}")
