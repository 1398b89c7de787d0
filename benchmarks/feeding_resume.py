"""How soon generation starts again where a large ledger is there already: the augment stage, cut off near its end.

A corpus of short documents goes through the real score stage and the real augment stage, one rehearsed generation per
document, so that the ledger's parts are as a run leaves them. Then the stage's manifest and some parts are taken away,
as if the run had been killed, and the stage runs again: it makes all requests, reads the ledger, joins the two, and
hands the first missing request to the engine.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import registry
from augment.ledger.parts import ledger_parts
from pipelines.augment import Augment
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.storage import manifest

MAX_TOKENS = 256


@dataclass(frozen=True)
class Resume:
    """What came of it.

    Attributes:
        rows: finished generations in the ledger when the stage starts again.
        parts: ledger parts they are in.
        missing: generations that it lacks.
        starts_after_s: from the start of the stage until the engine gets its first request.
        starts_after_cpu_s: what this process spent of it on the CPU; what else the machine does shows less in it.
        fresh_starts_after_s: as `starts_after_s`, for the first run, with no ledger.
    """

    rows: int
    parts: int
    missing: int
    starts_after_s: float
    starts_after_cpu_s: float
    fresh_starts_after_s: float


class _NotingEngine(RehearsalEngine):
    """Notes when the first request comes, in time and in CPU time, and how many come."""

    first_at: tuple[float, float] | None = None
    count = 0

    async def generate(self, request: GenerationRequest) -> Generation:
        if self.first_at is None:
            self.first_at = (time.perf_counter(), time.process_time())
        self.count += 1
        return await super().generate(request)


def resume(tokenizer: str, *, rows: int, missing: int) -> Resume:
    """Time the start of an augment stage that finds about so many rows, and lacks about so many."""
    with tempfile.TemporaryDirectory() as name:
        config = _config(tokenizer, Path(name), rows + missing)
        mill(config, stages=["score"])
        fresh_s, _, made = _timed(config)
        # What a kill leaves: no manifest, and the ledger without its last parts.
        for file in (manifest.manifest_url(config.output, "augment"), _success(config.output)):
            storage.remove(file, config.output)
        parts = ledger_parts(config.ledger_url)
        gone = max(1, round(missing / (made / len(parts))))
        for url in parts[-gone:]:
            storage.remove(url, config.ledger_url)
        again_s, again_cpu_s, lacked = _timed(config)
    return Resume(made - lacked, len(parts) - gone, lacked, again_s, again_cpu_s, fresh_s)


def _timed(config: MillConfig) -> tuple[float, float, int]:
    """Runs the stage: seconds until its first generation, those of CPU among them, and how many generations came."""
    engines: list[_NotingEngine] = []

    def create(model: ModelConfig) -> _NotingEngine:
        engines.append(_NotingEngine(model))
        return engines[-1]

    with mock.patch.object(registry, "create_engine", create):
        start, start_cpu = time.perf_counter(), time.process_time()
        Augment(config).run()
    first, first_cpu = min(engine.first_at for engine in engines if engine.first_at is not None)
    return first - start, first_cpu - start_cpu, sum(engine.count for engine in engines)


def _success(output: str) -> str:
    return storage.join(manifest.stage_url(output, "augment"), manifest.SUCCESS_NAME)


def _config(tokenizer: str, folder: Path, documents: int) -> MillConfig:
    source = folder / "source.jsonl"
    with source.open("w") as file:
        for number in range(documents):
            text = f"Passage {number} says what {number * 7919 % 10007} means and why it follows. " * 3
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    tree: dict[str, Any] = {
        "source": {"path": str(source), "id_field": "id"},
        "output": str(folder / "out"),
        "tokenizer": tokenizer,
        "difficulty": {"scorer": "rehearsal", "segment_tokens": 256},
        "models": {"rehearsal": {"engine": "rehearsal", "name": "rehearsal"}},
        "closing": {"enabled": False},
        "budget": {
            "policy": "fixed",
            "fixed_tier": "all",
            "thinking_tokens": documents * MAX_TOKENS,
            "tiers": [{"name": "all", "model": "rehearsal", "prompt": "brief", "max_tokens": MAX_TOKENS}],
        },
        "pack": {"sequence_length": 512, "num_shards": 2},
    }
    return from_mapping(tree)
