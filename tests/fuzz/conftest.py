"""The summary of what was thrown at the readers, printed at the end of the test run."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import settings

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


if "FUZZ_S" in os.environ:
    settings.register_profile("fuzz", deadline=None, derandomize=False, database=None, print_blob=True)
    settings.load_profile("fuzz")


def fuzzed(test: Callable[..., None]) -> Callable[..., None]:
    """A test that `make fuzz` does again, with other inputs and a folder of its own, until FUZZ_S seconds are over."""

    @functools.wraps(test)
    def repeated(*args: Any, **kwargs: Any) -> None:
        until = time.monotonic() + float(os.environ.get("FUZZ_S", 0))
        folder = kwargs.get("tmp_path")
        for number in itertools.count():
            if folder is not None:
                kwargs["tmp_path"] = folder / f"round-{number}"
                kwargs["tmp_path"].mkdir()
            test(*args, **kwargs)
            if time.monotonic() >= until:
                return
            if folder is not None:
                shutil.rmtree(kwargs["tmp_path"])

    return repeated


def random_of(seed: int) -> random.Random:
    """Of that seed; in `make fuzz` of another each time, which is logged and so stands beside a failure."""
    if "FUZZ_S" in os.environ:
        seed = time.time_ns()
        logging.getLogger(__name__).warning("seed %d", seed)
    return random.Random(seed)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Tells what was tried, and how many times each outcome came of it."""
    return lambda what, outcomes: record_property(PROPERTY, [what, dict(outcomes)])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == PROPERTY:
                rows.setdefault(value[0], Counter()).update(value[1])
    if not rows:
        return
    terminalreporter.section("bad input")
    for what, outcomes in sorted(rows.items()):
        shown = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        terminalreporter.write_line(f"{what}: {sum(outcomes.values()):,} tried: {shown}")
