"""The summary of what was thrown at the readers, printed at the end of the test run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

PROPERTY = "bad input"
Tally = Callable[[str, Mapping[str, int]], None]


def rounds(count: int) -> Iterator[tuple[int, random.Random]]:
    """Random generators with their seeds: the same few every time, or new ones for FUZZ_S seconds (`make fuzz`)."""
    if "FUZZ_S" in os.environ:
        until, seed = time.monotonic() + float(os.environ["FUZZ_S"]), time.time_ns()
        while time.monotonic() < until:
            yield seed, random.Random(seed)
            seed += 1
    else:
        yield from ((seed, random.Random(seed)) for seed in range(count))


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
