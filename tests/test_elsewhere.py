"""An output can be looked at from anywhere: copied, moved, without its models, and unchanged by it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines import report
from pipelines.documents.inspect import Wanted, inspect
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.watch import status
from pipelines.watch.files import ledger_beside
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage import manifest
from tests.conftest import rehearsal_tree

Made = tuple[Path, dict[str, Any]]


def printed(*parts: Any) -> str:
    console = Console(width=400, file=io.StringIO())
    for part in parts:
        console.print(part)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def looked_at(output: str) -> dict[str, Any]:
    """All that is to be seen of an output, but for where it is and how late it is."""
    found = status.read(output)
    found["generation"].pop("seconds_since_last")
    shown = printed(*inspect(output, Wanted(limit=8), plain=True))
    checked = verify(output)
    page = report.render(output)
    assert "can't be shown" not in page
    assert checked.ok, checked.problems
    return {
        "status": {**found, "output": ""},
        "inspect": shown,
        "verify": (checked.checked.files, checked.checked.tokens, checked.checked.documents),
        "report": [page.count(mark) for mark in ("<span", "<svg", "<td", "<article", "thought")],
    }


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Made:
    """The folder of a run with relative paths, its ledger beside the output; and what is seen of it there."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(byte_tokenizer, home / "tokenizer")
    lines = [f'{{"id": "{i}", "text": "{f"Document {i} says {i * i}. " * 30}"}}' for i in range(8)]
    (home / "source.jsonl").write_text("\n".join(lines))
    tree = rehearsal_tree(home, "./tokenizer", "source.jsonl", output="out", ledger={"path": "ledger"})
    with pytest.MonkeyPatch.context() as there:
        there.chdir(home)
        mill(from_mapping(tree))
        return home, looked_at("out")


@pytest.fixture
def elsewhere(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, seen from a folder that knows neither its models nor its paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THOUGHTMILL_HOME", str(tmp_path / "nothing"))
    for name in ("out", "ledger"):
        shutil.copytree(made[0] / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def test_from_another_folder(made: Made, elsewhere: Path) -> None:
    """It was said that 0 of 40 generations are in the ledger, and 0 spent."""
    home, seen = made
    assert seen["status"]["generation"]["generations"] > 0 and "thought" in seen["inspect"]
    assert looked_at(str(home / "out")) == seen


def test_copied_and_moved_and_nothing_is_written(made: Made, elsewhere: Path) -> None:
    before = files(elsewhere)
    assert looked_at(str(elsewhere / "out")) == made[1]
    assert files(elsewhere) == before
    page = elsewhere.parent / "page.html"
    assert report.write(str(elsewhere / "out"), page) == str(page) and page.stat().st_size > 10_000
    assert files(elsewhere) == before
    moved = elsewhere.rename(elsewhere.parent / "moved")
    assert looked_at(f"{moved}/out/") == made[1]
    assert verify(moved / "out", deep=True).ok


def test_a_ledger_that_stayed_behind_is_found_where_it_was(made: Made, elsewhere: Path) -> None:
    shutil.rmtree(elsewhere / "ledger")
    assert looked_at(str(elsewhere / "out"))["status"] == made[1]["status"]


def test_what_is_absent_is_said_to_be_absent(made: Made, elsewhere: Path) -> None:
    home, seen = made
    shutil.rmtree(elsewhere / "ledger")
    (home / "ledger").rename(home / "away")
    try:
        found = status.read(elsewhere / "out")
    finally:
        (home / "away").rename(home / "ledger")
    known, at_home = found["generation"], seen["status"]["generation"]
    for name in ("generations", "thought_tokens", "spent"):
        assert known[name] == at_home[name] > 0, "as the manifest has it"
    assert known["dollars"] is None and known["gpu_hours"] is None
    said = printed(status.render(found))
    assert "counted when they were made" in said and "isn't here" in said


def test_a_plan_of_an_earlier_version(elsewhere: Path, made: Made) -> None:
    """It has the ledger's path as the config has it."""
    (elsewhere / "ledger").rename(elsewhere / "out" / "ledger")
    url = str(elsewhere / "out/stages/augment/plan.json")
    plan = storage.read_bytes(url).decode()
    old = plan.replace('"ledger_beside": "../ledger"', '"ledger_beside": ""')
    old = old.replace(f'"ledger": "{made[0]}/ledger"', '"ledger": "out/ledger"')
    assert old.count('"out/ledger"') == 1
    storage.write_bytes(url, old.encode())
    assert status.read(elsewhere / "out")["generation"]["generations"] > 0


@pytest.mark.parametrize("beside", ["../../../../etc/../x", "a/../../b", "/etc", "..", "../" * 9 + "x"])
def test_no_place_is_named_that_is_not_beside(elsewhere: Path, beside: str) -> None:
    url = str(elsewhere / "out/stages/augment/plan.json")
    text = storage.read_bytes(url).decode().replace('"../ledger"', f'"{beside}"')
    storage.write_bytes(url, text.encode())
    with pytest.raises(MillError, match="no place beside it"):
        status.read(elsewhere / "out")


def test_a_tokenizer_that_is_another_or_none(elsewhere: Path, made: Made) -> None:
    path = elsewhere / "out/stages/score/tokenizer/tokenizer.json"
    for content, words in ((b"{}", "another tokenizer"), (b'{"model": {"vocab": 3}}', "another tokenizer")):
        path.write_bytes(content)
        with pytest.raises(MillError, match=words):
            list(inspect(str(elsewhere / "out"), Wanted()))
    shutil.rmtree(path.parent)  # as an earlier version left it
    load_tokenizer.cache_clear()
    with pytest.raises(MillError, match="there is no such folder"):
        list(inspect(str(elsewhere / "out"), Wanted()))
    assert manifest.read(elsewhere / "out", "score") is not None


@pytest.mark.parametrize(
    ("output", "ledger", "beside"),
    [
        ("/a/out", "/a/out/ledger", "ledger"),
        ("/a/out/", "/a/out/deep/ledger/", "deep/ledger"),
        ("/a/out", "/a/shared", "../shared"),
        ("/a/out/arms/raw", "/a/out/ledger", "../../ledger"),
        ("memory://b/out/arms/raw", "memory://b/out/ledger", "../../ledger"),
        ("/b/out", "memory://b/out/ledger", ""),
        ("/a/out", "/b/ledger", ""),
        ("/out", "/ledger", ""),
    ],
)
def test_which_ledgers_move_along(output: str, ledger: str, beside: str) -> None:
    assert ledger_beside(output, ledger) == beside
