"""Every command and every Python example in the documentation runs."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.shards.export import export
from sharding.storage import manifest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text()) if found == language]


@pytest.fixture
def workspace(
    tmp_path: Path,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with a finished run in out/demo and the config mill.yaml, which stands in for what `init` writes."""
    source = write_jsonl([{"id": str(i), "text": f"Document number {i} says this. " * 60} for i in range(6)])
    tree = rehearsal_config(source, output="out/demo")
    monkeypatch.chdir(tmp_path)
    mill(from_mapping(tree))
    (tmp_path / "gone.txt").write_text("3\n")
    write_jsonl([{"id": f"later-{i}", "text": f"Later number {i} says that. " * 60} for i in range(3)], "later.jsonl")
    key = Ed25519PrivateKey.generate()
    raw = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    (tmp_path / "signing_key").write_bytes(key.private_bytes(*raw))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / "signing_key.pub").write_bytes(public)
    (tmp_path / "stand-in.yaml").write_text(yaml.safe_dump({**tree, "output": "out/mill"}))
    return tmp_path


def run(line: str, workspace: Path) -> None:
    words = shlex.split(line, comments=True)
    environment = {**os.environ, "NO_COLOR": "1"}
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    else:
        assert words[0] in ("thoughtmill", ".venv/bin/thoughtmill"), f"no test knows how to run: {line}"
        if words[1] == "run":
            # The first run made an output that the second one, with another budget, is told to replace.
            words.insert(2, "--replace")
        command = [sys.executable, "-m", "pipelines.cli", *words[1:]]
        done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False, env=environment)
        if words[1] == "init":
            shutil.copy(workspace / "stand-in.yaml", workspace / words[2])
    assert done.returncode == 0, f"{line}\n{done.stderr}"


BY_NEWCOMER = ("README.md", "quickstart.md")
"""Pages whose commands tests/newcomer runs, one after the other and in an empty folder."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "bash") and p.name not in BY_NEWCOMER], ids=lambda page: page.name
)
def test_commands_run(page: Path, workspace: Path) -> None:
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            if line.strip():
                run(line, workspace)


PYTHON_BLOCKS = [
    pytest.param(
        block,
        id=f"{page.name}-{number}",
        marks=[pytest.mark.model] if "smollm2" in block else [pytest.mark.slow],
    )
    for page in PAGES
    if page.name != "quickstart.md"
    for number, block in enumerate(blocks(page, "python"))
]


# What the page on formats stands in for: an output, its exports and its sequence length.
PLACES = {
    "path/to/output": "out/demo",
    "s3://bucket/output": "out/demo",
    "path/to/arrays": "out/arrayrecord",
    "path/to/target": "out/parquet",
    "target/train": "out/datatrove/train",
    "8192": "512",
}


# Modules whose lines run in places of their own, in tests of tests/test_trainers.py; or by hand, as the page says.
IN_PLACES_OF_THEIR_OWN = {
    "olmo_core": "test_olmo_core_reads_the_shards",
    "streaming": "test_streaming_reads_the_shards",
    "trl": "test_trl_trains_on_the_parquet",
}
BY_HAND = {"torchtitan": "They were run by hand"}


def modules_of(block: str) -> list[str]:
    return re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE)


def test_what_is_skipped_here_runs_elsewhere() -> None:
    trainers = (ROOT / "tests" / "test_trainers.py").read_text(encoding="utf-8")
    for module, test in IN_PLACES_OF_THEIR_OWN.items():
        (body,) = re.findall(rf"^def {test}\(.*?(?=^def |\Z)", trainers, re.MULTILINE | re.DOTALL)
        (word,) = re.findall(r'documented\("(.+?)"\)', body)
        assert module in modules_of(next(block for page in PAGES for block in blocks(page, "python") if word in block))
    for module, said in BY_HAND.items():
        pages = [page for page in PAGES if any(module in modules_of(block) for block in blocks(page, "python"))]
        assert pages and all(said in " ".join(page.read_text(encoding="utf-8").split()) for page in pages)


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_runs(block: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in modules_of(block):
        if importlib.util.find_spec(module) is None:
            elsewhere = IN_PLACES_OF_THEIR_OWN.get(module)
            where = f"in {elsewhere}" if elsewhere else "by hand" if module in BY_HAND else "where it is"
            pytest.skip(f"{module} isn't installed: these lines run {where}")
    if any(place in block for place in PLACES):
        for name in ("arrayrecord", "parquet", "datatrove"):
            export("out/demo", name, f"out/{name}")
        for place, stands_for in PLACES.items():
            block = block.replace(place, stands_for)
    block = block.replace('"mill.yaml"', '"stand-in.yaml"')
    monkeypatch.setenv("HF_HOME", str(workspace / "cache"))
    done = subprocess.run([sys.executable, "-c", block], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which isn't there"


CLAIMS = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs" / "claims.md").read_text(), re.MULTILINE)[1:]


@pytest.mark.parametrize(("claim", "shown_by"), CLAIMS, ids=[claim for claim, _ in CLAIMS])
def test_what_the_readme_claims_is_shown_by_what_is_there(claim: str, shown_by: str) -> None:
    assert claim in " ".join((ROOT / "README.md").read_text().split())
    path = ""
    for named in re.findall(r"`([^`]+)`", shown_by):
        found, _, test = named.partition("::")
        path = found or path
        if "/" in path and "." in path:
            assert (ROOT / path).is_file(), path
            assert not test or f"def {test}(" in (ROOT / path).read_text(), named
    assert "`" in shown_by or ".md)" in shown_by or "not ours" in shown_by


CHAINS = re.findall(r"^# (\w+\.py): .*\n((?:.+\n)+)", blocks(ROOT / "README.md", "py")[0], re.MULTILINE)


@pytest.mark.parametrize(("stage", "chain"), CHAINS, ids=[stage for stage, _ in CHAINS])
def test_the_chains_of_the_readme_are_those_of_the_stages(stage: str, chain: str) -> None:
    code = [line.strip() for line in (ROOT / "pipelines" / stage).read_text().splitlines()]
    lines = [line.strip() for line in chain.splitlines()]
    assert len(lines) > 3
    assert [line for line in lines if line not in code] == []


def test_the_readme_has_a_chain_for_every_stage() -> None:
    assert [f"{stage}.py" for stage in manifest.STAGES] == [stage for stage, _ in CHAINS]
