"""Kill the run at random moments, start it again: the same shards, and nothing that was finished is generated twice."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.run import mill
from pipelines.yaml_config import load
from sharding import storage
from sharding.records.types import LedgerRow
from sharding.storage import manifest

FLUSH_ROWS = 4
NUM_KILLS = 20


def ledger_keys(output: Path) -> list[str]:
    parts = sorted((output / "ledger").glob("part-*.arrow"))
    return [row.key for part in parts for row in storage.read_records(str(part), LedgerRow, columns=("key",))]


def hashes(output: str) -> dict[str, str]:
    return {entry.name: entry.sha256 for entry in manifest.require(output, "pack").files["shards"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_and_repeat_at_most_what_was_unflushed(
    tmp_path: Path, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    rng = random.Random(0)
    words = [f"word{rng.randrange(900)}" for _ in range(12_000)]
    source = write_jsonl([{"id": str(i), "text": " ".join(words[i * 100 : (i + 1) * 100])} for i in range(120)])
    capacity = 8
    sections = {
        "models": {
            "pretend": {
                "engine": "rehearsal",
                "name": "pretend",
                "engine_args": {"capacity": capacity, "tokens_per_second": 400},
            }
        },
        "ledger": {"flush_rows": FLUSH_ROWS, "flush_seconds": 0.2},
    }
    config_path = tmp_path / "mill.yaml"
    config_path.write_text(yaml.safe_dump(rehearsal_config(source, **sections)))
    config = load(str(config_path))
    undisturbed = load(str(config_path), [f"output={tmp_path / 'undisturbed'}", "models.pretend.engine_args={}"])
    mill(undisturbed)
    # Everything before the generation is done; what is killed is the stage that costs money.
    mill(config, stages=["score"])

    kills_while_generating = 0
    for _ in range(NUM_KILLS):
        before = len(ledger_keys(tmp_path / "out"))
        process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", "run", str(config_path)])
        # Most at a random moment after the first new part, however long the start takes here; some before it.
        deadline = time.monotonic() + (rng.uniform(0.2, 4.0) if rng.random() < 0.2 else 60.0)
        generating = False
        while process.poll() is None and time.monotonic() < deadline:
            if not generating and len(ledger_keys(tmp_path / "out")) > before:
                generating, deadline = True, time.monotonic() + rng.uniform(0.0, 1.0)
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills_while_generating += len(ledger_keys(tmp_path / "out")) > before
        if (tmp_path / "out" / manifest.SUCCESS_NAME).exists():
            break
    assert kills_while_generating >= 5, "no kill met the generation: the test shows nothing"

    mill(config)
    assert hashes(config.output) == hashes(undisturbed.output)
    keys = Counter(ledger_keys(tmp_path / "out"))
    assert set(keys) == set(ledger_keys(tmp_path / "undisturbed"))
    # A killed run may have finished, and not flushed, what was in flight; flushed rows are never made again.
    assert max(keys.values()) == 1
