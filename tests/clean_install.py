"""The wheel, and environments that have it alone: how the package is used where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOPS = sorted({name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]})
MODULES = [f"{module}.py" for module in PROJECT["tool"]["setuptools"]["py-modules"]]


def build_wheel(tree: Path, folder: Path) -> Path:
    """The wheel, built from a copy of the checkout in `tree`."""
    for name in (*TOPS, "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", *MODULES):
        shutil.copy(ROOT / name, tree)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(tree),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


def environment_with(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """An environment that has the wheel alone: the folders of its programs and of its packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    bin_folder = folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    return bin_folder, site


def installed_with(wheel: Path, folder: Path) -> Path:
    """The programs of an environment that has the wheel, and what it requires from the one that runs the tests."""
    bin_folder, site = environment_with(wheel, folder)
    # Of a folder named in a .pth the .pth files don't count: so none that leads to the checkout.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


def clean_environ() -> dict[str, str]:
    """This process's environment without what leads to its own packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command outside the checkout, in an environment that doesn't lead there."""
    return subprocess.run(
        words,
        cwd=folder,
        env={**clean_environ(), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
