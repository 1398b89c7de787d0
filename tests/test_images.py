"""The images are built from what is there: stages, paths, versions and extras that exist. No docker is needed."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ["Dockerfile", "Dockerfile.gpu"]
INSTRUCTIONS = {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = dict(re.findall(r"^([\w-]+)==([^ \n]+)", (ROOT / "requirements" / "lock.txt").read_text(), re.MULTILINE))


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a file, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def arguments(name: str) -> dict[str, str]:
    return dict(value.split("=", 1) for kind, value in instructions(name) if kind == "ARG" and "=" in value)


def filled(name: str, text: str) -> str:
    for key, value in arguments(name).items():
        text = text.replace(f"${{{key}}}", value)
    return text


@pytest.mark.parametrize("name", FILES)
def test_every_stage_and_path_exists(name: str) -> None:
    stages: list[str] = []
    for kind, value in instructions(name):
        assert kind in INSTRUCTIONS
        if kind == "FROM":
            image, _, stage = filled(name, value).partition(" AS ")
            assert "$" not in image
            assert ":" in image and not image.endswith(":latest"), f"{image} is not pinned"
            stages.append(stage)
        elif kind == "COPY":
            *sources, _ = [word for word in value.split() if not word.startswith("--")]
            origin = re.match(r"--from=(\S+)", value)
            if origin:
                assert origin[1] in stages
            else:
                for source in sources:
                    assert (ROOT / source).exists(), source
    assert stages == ["wheel", "beam", ""]
    assert instructions(name)[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]')


@pytest.mark.parametrize("name", FILES)
def test_a_worker_is_another_user_than_root_and_has_what_it_writes_to(name: str) -> None:
    steps = instructions(name)
    final = steps[max(i for i, (kind, _) in enumerate(steps) if kind == "FROM") :]
    assert final[-2][0] == "USER"
    user = filled(name, final[-2][1])
    assert user.isdigit() and int(user) > 0, "a number: who starts it may demand proof that it isn't root"
    made = next(value for kind, value in final if kind == "RUN" and "useradd" in value)
    assert f"--uid {user} --create-home mill" in made and "-o mill /opt/apache/beam-venv /models" in made
    environment = " ".join(value for kind, value in final if kind == "ENV").split()
    assert {"HOME=/home/mill", "HF_HOME=/models", "THOUGHTMILL_HOME=/models"} <= set(environment)
    installs = [i for i, (kind, value) in enumerate(final) if kind in ("RUN", "COPY")]
    assert max(installs) < len(final) - 2, "what is installed is root's, and no worker changes it"


@pytest.mark.parametrize("name", FILES)
def test_all_packages_reach_the_wheel_and_the_build_sees_them(name: str) -> None:
    copied = {word for kind, value in instructions(name) if kind == "COPY" for word in value.split()}
    tops = {package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    modules = {f"{module}.py" for module in PROJECT["tool"]["setuptools"]["py-modules"]}
    needed = {*tops, *modules, "configs", "pyproject.toml", PROJECT["project"]["readme"]}
    needed |= set(PROJECT["project"]["license-files"])
    assert needed <= copied
    assert ignored[0] == "*" and {f"!{path}" for path in (*needed, "requirements")} <= set(ignored)


@pytest.mark.parametrize("name", FILES)
def test_versions_are_pinned_and_agree(name: str) -> None:
    versions = arguments(name)
    assert versions["BEAM_VERSION"] == LOCKED["apache-beam"]
    assert versions["PYTHON_VERSION"] == PROJECT["project"]["requires-python"].removeprefix(">=")
    extras = {
        extra
        for kind, value in instructions(name)
        if kind == "RUN"
        for group in re.findall(r"\$\{wheel\}\[([\w,]+)\]", value)
        for extra in group.split(",")
    }
    assert (
        {"endpoint", "datasets", "s3", "gcs", "azure", "fast"}
        <= extras
        <= set(PROJECT["project"]["optional-dependencies"])
    )
    assert ("vllm" in extras) == (name == "Dockerfile.gpu")


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_is_held_to_the_lock(name: str) -> None:
    assert ("COPY", "requirements/lock.txt /wheels/lock.txt") in instructions(name)
    installs = [
        command
        for kind, value in instructions(name)
        if kind == "RUN"
        for command in value.split("&&")
        if "pip " in command
    ]
    assert len(installs) > 2
    assert all("-c /wheels/lock.txt" in command or "pip wheel" in command for command in installs)
    assert all("--no-build-isolation" in command for command in installs if "pip wheel" in command)
