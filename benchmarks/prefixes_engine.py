"""Prefix groups against longest first on a real engine with its prefix cache on: tokens per second, and cached share.

Called by `benchmarks.recipes`. Made-up documents, each prompt with the document before its segment, through
GenerateMissing to one vLLM engine. Its cache is about a third of what the load has read in the end: a corpus is never
in a cache as a whole, and where this one were, any order would find everything. Both orders take turns on one engine
behind one feeder, the second time the other way round, and each begins with an empty cache; longest first has requests
of no group, which is what `feeding.prefix_groups: false` makes of them. Every generation goes on to its cap, so that
all turns generate as much.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

from augment.engines.config import ModelConfig
from augment.engines.protocol import GenerationRequest
from augment.engines.vllm import VllmEngine
from augment.feeding import registry, worker
from augment.requests.planner import TracePlanner
from benchmarks.feeding_load import Load, Turn, median, run_ours, take_turns
from benchmarks.prefixes import load_of_documents
from sharding.records.types import Request

DOCUMENTS, SEGMENTS, SAMPLES = 8, 5, 1
CAPS = (16, 32, 48, 64)
SLOTS, ROUNDS = 6, 2
BLOCK_TOKENS, CACHE_BLOCKS = 32, 128
"""The CPU backend asks for blocks of a multiple of 32 tokens; the prompts and generations of full slots take 3,000."""

GROUPS, LONGEST_FIRST = "prefix groups", "longest first"


class CountedVllm(VllmEngine):
    """Our engine, which tells what its prefix cache has been asked for and has had."""

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await super().start()

    def forget(self) -> None:
        """Empty the prefix cache. Called from any thread but the engine's."""
        asyncio.run_coroutine_threadsafe(self._engine.reset_prefix_cache(), self._loop).result()

    def cached(self) -> tuple[int, int]:
        """Tokens of prompts that were looked for in the cache so far, and those that were there, by vLLM's metrics."""
        from vllm.v1.metrics.reader import get_metrics_snapshot

        found: dict[str, int] = {}
        for metric in get_metrics_snapshot():
            if metric.name in ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits"):
                found[metric.name] = found.get(metric.name, 0) + metric.value
        return found["vllm:prefix_cache_queries"], found["vllm:prefix_cache_hits"]


class WithoutGroups(TracePlanner):
    """A planner whose requests go by their length alone."""

    def generation_request(self, request: Request, key: str) -> GenerationRequest:
        return dataclasses.replace(super().generation_request(request, key), prefix_group="")

    @classmethod
    def of(cls, planner: TracePlanner) -> WithoutGroups:
        """The same planner otherwise."""
        return cls(**{field.name: getattr(planner, field.name) for field in dataclasses.fields(planner) if field.init})


def prefix_engine_figures(model_name: str, **settings: Any) -> dict[str, float]:
    """Tokens per second in either order, the ratio of the two, and of the prompts' tokens the share found in the cache.

    `prefix_engine_ratio_per_cpu`: the same by the engine's processor time, for a machine that others use too.
    """
    turns, cached = run_engine(model_name, **settings)
    speeds = {side: median(turn.tokens_per_second for turn in taken) for side, taken in turns.items()}
    per_cpu = {side: median(turn.tokens_per_cpu_second for turn in taken) for side, taken in turns.items()}
    return {
        "prefix_engine_tokens_per_second": speeds[GROUPS],
        "longest_first_engine_tokens_per_second": speeds[LONGEST_FIRST],
        "prefix_engine_ratio_to_longest_first": speeds[GROUPS] / speeds[LONGEST_FIRST],
        "prefix_engine_ratio_per_cpu": per_cpu[GROUPS] / per_cpu[LONGEST_FIRST],
        "prefix_engine_prompt_share_cached": cached[GROUPS],
        "longest_first_engine_prompt_share_cached": cached[LONGEST_FIRST],
    }


def run_engine(
    model_name: str,
    *,
    documents: int = DOCUMENTS,
    segments: int = SEGMENTS,
    rounds: int = ROUNDS,
    slots: int = SLOTS,
    cache_blocks: int = CACHE_BLOCKS,
) -> tuple[dict[str, list[Turn]], dict[str, float]]:
    """The turns of each order, and the share of the prompts' tokens that it found in the cache, over all its turns."""
    arguments = {
        "max_num_seqs": slots,
        "enable_prefix_caching": True,
        "disable_log_stats": False,  # the metrics
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": cache_blocks,
    }
    model = ModelConfig(engine="vllm", name=model_name, max_model_len=2048, engine_args=arguments)
    engine = CountedVllm(model)
    load = load_of_documents(
        model, model_name, documents, segments=segments, samples=SAMPLES, caps=CAPS, to_the_cap=True
    )
    loads = {GROUPS: load, LONGEST_FIRST: Load(WithoutGroups.of(load.planner), load.elements)}
    asked: dict[str, list[int]] = {side: [0, 0] for side in loads}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(registry, "create_engine", lambda _: engine):

        def take(side: str, number: int) -> Turn:
            engine.forget()
            before = engine.cached()
            turn = run_ours(loads[side], f"{folder}/{side} {number}")
            for place, (now, then) in enumerate(zip(engine.cached(), before, strict=True)):
                asked[side][place] += now - then
            return turn

        try:
            run_ours(Load(load.planner, load.elements[:4]), f"{folder}/warm-up")
            turns = alternating({side: functools.partial(take, side) for side in asked}, rounds)
        finally:
            worker.close_all()
    return turns, {side: hits / queries for side, (queries, hits) in asked.items()}


def alternating(sides: Mapping[str, Callable[[int], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Every side once per round, every other round in the opposite order: what goes steadily up or down meets both."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        once = {name: lambda _, take=sides[name], number=number: take(number) for name in names}
        for name, taken in take_turns(once, 1).items():
            turns[name] += taken
    return turns
