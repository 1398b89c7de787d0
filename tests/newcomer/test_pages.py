"""README and quickstart, literally and from an empty folder; three corpora through the same commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.newcomer import MODEL, Told, table_of, told_by, trial, write_corpora
from pipelines.terminal import Terminal
from pipelines.yaml_config import load
from sharding.storage import manifest
from tests.test_docs import ROOT, blocks

LARGE_MB = float(os.environ.get("THOUGHTMILL_TRIAL_MB", "0.2"))
"""Of the large corpus."""


def lines_of(page: Path) -> list[list[str]]:
    """The words of each command in a page, in its order."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def show(measured: list[tuple[str, Told]]) -> None:
    """The times of each command; `pytest -s` shows them."""
    Terminal().print(table_of(measured))


def check(name: str, told: Told, patience_s: float) -> None:
    assert told.code == 0, f"{name}\n{told.err}"
    assert "Traceback" not in told.err, told.err
    assert told.first_output_s <= patience_s, f"{name} said nothing for {told.first_output_s:.1f} s"


@pytest.mark.slow
def test_the_quickstart_works_from_an_empty_folder(
    tmp_path: Path, environment: dict[str, str], patience_s: float
) -> None:
    page, measured = ROOT / "docs" / "quickstart.md", []
    for words in lines_of(page):
        assert words[0] == "thoughtmill", words
        measured.append((" ".join(words), told_by(words[1:], tmp_path, environment)))
        check(*measured[-1], patience_s)
    show(measured)
    assert len(measured) == 10 and (tmp_path / "out" / "mill" / "report.html").is_file()
    [code] = blocks(page, "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ of \d+ traces kept", done.stdout) and "out/again/report.html" in done.stdout


@pytest.mark.slow
def test_the_readme_works_from_an_empty_folder(tmp_path: Path, environment: dict[str, str], patience_s: float) -> None:
    """Its example generates with vLLM for minutes, so it is rehearsed; `make demo` is what CI runs."""
    commands = lines_of(ROOT / "README.md")
    for words in (words for words in commands if words[0] == "make"):
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    looking = [words for words in commands if words[0] == ".venv/bin/thoughtmill"]
    using = [words for words in commands if words[0] == "thoughtmill"]
    assert len(looking) == 3 and len(using) == 5 and len([w for w in commands if w[0] == "make"]) + 8 == len(commands)
    measured = []
    for words in (*using, *looking):
        if words[1] == "init":
            words = [*words, "--example", "rehearsal", "--output", "out/demo"]
        if words[1] == "inspect":
            words = [word if word != "deep" else "brief" for word in words]
        measured.append((" ".join(words), told_by(words[1:], tmp_path, environment)))
        check(*measured[-1], patience_s)
    show(measured)
    assert manifest.require(str(tmp_path / "out" / "two"), "pack").counts["rows"] > 0


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, dict[str, Told]]:
    """The three corpora through the commands that a newcomer types."""
    folder = tmp_path_factory.mktemp("trial")
    sources = write_corpora(folder, int(LARGE_MB * 1e6))
    measured: list[tuple[str, Told]] = []
    for name, source in sources.items():
        for command, told in trial(folder, environment, name, source):
            again = command in dict(measured)
            measured.append((f"{command} again" if again else command, told))
    show(measured)
    return folder, dict(measured)


@pytest.mark.slow
def test_three_corpora_are_milled_and_a_second_run_does_nothing(
    tried: tuple[Path, dict[str, Told]], patience_s: float
) -> None:
    folder, measured = tried
    assert len(measured) == 18
    for name, told in measured.items():
        check(name, told, patience_s)
        if name.endswith("again"):
            assert "Everything was done already" in told.out
    for name in ("manual", "prose", "large"):
        kept = manifest.require(str(folder / "out" / name), "select").counts
        assert 0 < kept["kept"] <= kept["candidates"]


@pytest.mark.slow
def test_the_card_says_the_language_and_no_licence_that_nobody_gave(tried: tuple[Path, dict[str, Told]]) -> None:
    folder, measured = tried
    languages = {name: load(str(folder / f"{name}.yaml")).card.language for name in ("manual", "prose", "large")}
    assert languages == {"manual": ("en",), "prose": ("ja", "zh"), "large": ("en",)}
    for name in languages:
        card: Any = load(str(folder / f"{name}.yaml")).card
        assert card.license is None and "card.license" not in measured[f"{name}: init"].out
        assert not re.search("^license:", (folder / "out" / name / "README.md").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["tokenize", "own-prompt"])
def test_examples_run_as_they_are(tmp_path: Path, environment: dict[str, str], example: str) -> None:
    for words in (["init", "mill.yaml", "--example", example, "--sample"], ["run", "mill.yaml", "--quiet"]):
        told = told_by(words, tmp_path, environment)
        assert told.code == 0, told.err
    output = str(tmp_path / load(str(tmp_path / "mill.yaml")).output)
    prompts = set(manifest.require(output, "augment").facts["prompts"])
    assert prompts == (set() if example == "tokenize" else {"brief", "own-prompt.txt"})


@pytest.mark.slow
@pytest.mark.model
def test_the_real_model_plans_what_the_readme_shows(tmp_path: Path, small_model: str) -> None:
    assert Path(small_model).name == MODEL
    init = told_by(["init", "mill.yaml", "--sample"], tmp_path, {})
    assert init.code == 0 and "card.license: psfl" in init.out, init.err
    plan = told_by(["plan", "mill.yaml", "--sample-documents", "2"], tmp_path, {})
    assert plan.code == 0 and "loading the scorer" in plan.err and "deep" in plan.out, plan.err
