"""A process of a job that shares its engine with others: run by `tests.test_host`, with an engine that is scripted.

Arguments: a folder for its log, its name, the job, how many requests. Appends to `engines.log` when it starts and ends
an engine, prints the keys it has got, and then waits for its standard input to be closed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from augment.engines import reaper
from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest, RequestRejected
from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.tickets import Completed

TOKENS = 5


class LoggingEngine:
    """Takes the machine's memory and a process of its own, as a real engine does."""

    family, version, capacity, memory_share = "scripted", "1", 8, 0.9

    def __init__(self, model: ModelConfig) -> None:
        self._name = model.name
        self._child: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        mark = reaper.new_mark()
        self._child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(120)"], env={**os.environ, reaper.MARK_VARIABLE: mark}
        )
        note(f"start {self._name} {os.getpid()} {self._child.pid}")

    async def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
            note(f"end {self._name} {os.getpid()}")

    async def generate(self, request: GenerationRequest) -> Generation:
        await asyncio.sleep(0.03)
        if request.key.endswith("-bad"):
            raise RequestRejected("not this one")
        return Generation(
            text=f"{request.key} of {len(request.prompt_token_ids)}",
            token_ids=np.arange(TOKENS, dtype=np.uint32),
            sum_logprobs=-0.5,
            finish_reason="stop",
            engine_version="1",
        )


def note(line: str) -> None:
    with (Path(sys.argv[1]) / "engines.log").open("a") as log:
        log.write(line + "\n")


def main(name: str, job: str, count: int, models: list[str]) -> None:
    feeding = FeedingConfig(backoff_s=0.05)
    for model_name in models:
        feeder = registry.acquire(ModelConfig(engine="vllm", name=model_name), feeding, job=job)
        ticket = feeder.ticket()
        for i in range(count):
            key = f"{name}-{model_name}-{i}" + ("-bad" if i == 0 else "")
            ticket.submit(GenerationRequest(key=key, prompt_token_ids=np.arange(i, dtype=np.uint32), max_tokens=9))
        for result in ticket.drain():
            if isinstance(result, Completed):
                assert result.generation.text == f"{result.request.key} of {len(result.request.prompt_token_ids)}"
                assert result.generation.token_ids.tolist() == list(range(TOKENS))
                print("got", result.request.key, flush=True)  # noqa: T201
            else:
                print("refused", result.key, result.error, flush=True)  # noqa: T201
        registry.release(feeder)
    print("done", flush=True)  # noqa: T201
    sys.stdin.read()
    registry.close_all()


if __name__ == "__main__":
    registry.create_engine = LoggingEngine  # type: ignore[assignment]
    main(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5].split(","))
