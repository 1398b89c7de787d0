"""Ours against the bare engine: one AsyncLLM in this process that serves both sides in turn.

The bare side submits every request at once, with the same token ids and sampling parameters, on the event loop that
the engine runs on, and collects; nothing else happens. It goes twice: in the order of the load, and in the best order
known beforehand, the longest cap first, which is the order that ours finds.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from augment.engines.config import ModelConfig
from augment.engines.protocol import GenerationRequest
from augment.engines.vllm import VllmEngine
from augment.feeding import registry, worker
from benchmarks.feeding_load import MAX_MODEL_LEN, Load, Turn, make_load, run_ours, take_turns
from sharding.records.types import sample_key

CAPS = (16, 32, 64, 96, 128)
LONG_TASK = "Explain at length, with an example, and name every step"
"""Most answers reach their cap."""


class BareVllm(VllmEngine):
    """Our engine, whose AsyncLLM can also be used without us."""

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await super().start()

    def run_bare(self, requests: Sequence[GenerationRequest]) -> Turn:
        """All requests at once. Called from any thread but the engine's."""
        asked = [(r.prompt_token_ids.tolist(), self._sampling_params(r)) for r in requests]
        return asyncio.run_coroutine_threadsafe(self._gather(asked), self._loop).result()

    async def _gather(self, asked: list[tuple[list[int], Any]]) -> Turn:
        async def one(token_ids: list[int], params: Any) -> int:
            prompt = {"type": "token", "prompt_token_ids": token_ids}
            async for output in self._engine.generate(prompt, params, request_id=f"bare-{next(_numbers)}"):
                last = output
            return len(last.outputs[0].token_ids)

        start = time.perf_counter()
        tokens = await asyncio.gather(*(one(*pair) for pair in asked))
        return Turn(sum(tokens), time.perf_counter() - start)


_numbers = itertools.count()


def generation_requests(load: Load) -> list[GenerationRequest]:
    """What ours asks of the engine for this load."""
    return [
        load.planner.generation_request(request, sample_key(request.request_key, 0)) for request, _ in load.elements
    ]


def compare(model_name: str, *, count: int, rounds: int, engine_args: dict[str, Any]) -> dict[str, list[Turn]]:
    """The turns of ours, of the bare engine, and of the bare engine given the longest cap first."""
    model = ModelConfig(engine="vllm", name=model_name, max_model_len=MAX_MODEL_LEN, engine_args=engine_args)
    engine = BareVllm(model)
    with tempfile.TemporaryDirectory() as name, mock.patch.object(registry, "create_engine", lambda _: engine):
        folder = Path(name)
        load = make_load(model, folder, tokenizer=model_name, count=count, caps=CAPS, task=LONG_TASK)
        requests = generation_requests(load)
        longest_first = sorted(requests, key=lambda r: -r.max_tokens)
        try:
            run_ours(Load(load.planner, load.elements[:8]), f"{folder}/warm-up")
            return take_turns(
                {
                    "ours": lambda number: run_ours(load, f"{folder}/ledger-{number}"),
                    "bare": lambda number: engine.run_bare(requests),
                    "bare, longest first": lambda number: engine.run_bare(longest_first),
                },
                rounds,
            )
        finally:
            worker.close_all()
