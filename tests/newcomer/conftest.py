"""What a newcomer has: a home with one fetched model, and an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.newcomer import WANTED_S, make_home, told_by


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the examples' model stands for a small tokenizer, and nothing is fetched."""
    home = make_home(tmp_path_factory.mktemp("home"))
    return {"THOUGHTMILL_HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def patience_s(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds until a command has to have said something: five, or thirty of the barest command on a busy machine."""
    return max(WANTED_S, 30 * told_by(["--version"], Path(tmp_path_factory.mktemp("bare")), environment).wall_s)
