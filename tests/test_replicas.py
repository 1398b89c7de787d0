"""Several engines of one model behind one feeder: all full, each on its own accelerators, none brings others down."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from augment import engines
from augment.engines import reaper
from augment.engines.config import ModelConfig, SamplingConfig
from augment.engines.protocol import EngineDead, GenerationRequest
from augment.engines.vllm import VllmEngine
from augment.engines.vllm_settings import accelerators_of, slice_of
from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.registry import Registry, SharedMemory
from augment.feeding.tickets import Completed, Failure
from augment.requests.keys import make_request, what_decides_text
from sharding.errors import RequestError
from tests.engine_sources import Engines
from tests.test_feeding import QUICK, ScriptedEngine, StepEngine, request, run_all


def feed(*made: Any, **arguments: Any) -> Feeder:
    sources = [Engines(one if callable(one) else lambda one=one: one) for one in made]
    return Feeder(*sources, name="model", **{"config": QUICK, **arguments})


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


# --- fed --------------------------------------------------------------------------------------------------------------


def test_all_replicas_are_kept_full() -> None:
    simulated = [StepEngine(16, 0.01) for _ in range(3)]
    feeder = feed(*simulated)
    results = run_all(feeder, [request(str(i), max_tokens=5 + i % 8) for i in range(600)])
    stats = feeder.stats()
    feeder.close()
    tokens = sum(5 + i % 8 for i in range(600))
    assert len(results) == 600 and stats.capacity == 60
    steps = [one.steps for one in simulated]
    assert max(steps) <= 1.15 * tokens / (3 * 16) + 12, "each has its third of the work, and its slots are full"
    assert max(steps) - min(steps) <= 12


def test_the_longest_go_first_wherever_there_is_room() -> None:
    started: list[str] = []
    gate = asyncio.Event()

    class Gated(ScriptedEngine):
        async def start(self) -> None:
            await gate.wait()

    gated = [Gated(lambda r: None, capacity=1) for _ in range(2)]
    for one in gated:
        one.order = started
    feeder = feed(*gated)
    ticket = feeder.ticket()
    for length in (3, 9, 1, 7, 5):
        ticket.submit(request(str(length), max_tokens=length))
    until(lambda: feeder.stats().waiting == 5)
    feeder._loop.call_soon_threadsafe(gate.set)
    assert len(list(ticket.drain())) == 5
    feeder.close()
    assert started[:2] == ["9", "7"] and sorted(started) == ["1", "3", "5", "7", "9"]


def test_what_may_be_in_flight_is_shared_out() -> None:
    both = [ScriptedEngine(lambda r: asyncio.sleep(0.001), capacity=50) for _ in range(2)]
    feeder = feed(*both, max_in_flight=6)
    run_all(feeder, [request(str(i)) for i in range(60)])
    feeder.close()
    assert [one.most_in_flight for one in both] == [3, 3] and feeder.stats().capacity == 6


def test_one_that_dies_comes_back_while_the_others_go_on() -> None:
    may_start = asyncio.Event()
    made: list[ScriptedEngine] = []
    went_on: list[int] = []

    class Mortal(ScriptedEngine):
        """The first one of its place dies at its fifth request; the next one starts when it may."""

        async def start(self) -> None:
            await super().start()
            if len(made) > 1:
                await may_start.wait()

    def dies(one: GenerationRequest) -> Any:
        return EngineDead("killed") if len(made) == 1 and len(made[0].order) >= 5 else asyncio.sleep(0.001)

    def mortal() -> ScriptedEngine:
        made.append(Mortal(dies, capacity=4))
        return made[-1]

    def lives(one: GenerationRequest) -> Any:
        if len(made) > 1 and not may_start.is_set():
            went_on.append(1)
            if len(went_on) == 100:
                may_start.set()
        return asyncio.sleep(0.001)

    other = ScriptedEngine(lives, capacity=4)
    feeder = feed(mortal, other)
    results = run_all(feeder, [request(str(i)) for i in range(600)])
    stats = feeder.stats()
    feeder.close()
    assert Counter(type(result) for result in results) == {Completed: 600}
    assert len({result.request.key for result in results}) == 600
    assert len(went_on) >= 100, "the other one was given work while this one started"
    assert stats.restarts == 1 and len(made) == 2 and made[1].order and (made[0].closes, other.closes) == (1, 1)


def test_the_request_that_kills_engines_is_found_among_replicas() -> None:
    def script(one: GenerationRequest) -> Any:
        return EngineDead("killed") if one.key == "killer" else asyncio.sleep(0.001)

    two = [lambda: ScriptedEngine(script, capacity=8)] * 2
    feeder = feed(*two, config=dataclasses.replace(QUICK, max_restarts=50))
    results = run_all(feeder, [request(str(i)) for i in range(80)] + [request("killer", max_tokens=99)])
    feeder.close()
    (failed,) = [result for result in results if isinstance(result, Failure)]
    assert failed.key == "killer" and len(results) == 81


def test_an_engine_that_cannot_start_is_said_though_another_runs() -> None:
    class Broken(ScriptedEngine):
        async def start(self) -> None:
            raise RequestError("no such accelerator")

    feeder = feed(ScriptedEngine(lambda r: asyncio.sleep(0.01)), Broken(lambda r: None))
    with pytest.raises(RequestError, match="no such accelerator"):
        run_all(feeder, [request(str(i)) for i in range(400)])
    feeder.close()


def test_another_model_waits_until_all_replicas_have_let_go() -> None:
    memory = SharedMemory()
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def engine(name: str) -> ScriptedEngine:
        class Counted(ScriptedEngine):
            memory_share = 0.9

            async def start(self) -> None:
                running[name] += 1
                most[name] = max(most[name], running[name])
                assert sum(count > 0 for count in running.values()) == 1, "two models in one memory"

            async def close(self) -> None:
                running[name] -= 1

        return Counted(lambda r: asyncio.sleep(0.001))

    feeders = [
        Feeder(*(Engines(lambda name=name: engine(name), memory) for _ in range(2)), name=name, config=QUICK)
        for name in ("one", "two")
    ]
    for _ in range(2):
        for feeder in feeders:
            assert len(run_all(feeder, [request(str(i)) for i in range(40)])) == 40
    for feeder in feeders:
        feeder.close()
    assert most == {"one": 2, "two": 2} and running == {"one": 0, "two": 0}


# --- placed -----------------------------------------------------------------------------------------------------------


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"engine": "vllm", "name": "m", **fields})


def test_each_replica_has_its_own_accelerators() -> None:
    visible = ["3", "5", "GPU-ab", "7", "9"]
    one = model()
    assert [slice_of(one, visible, n, 3) for n in range(3)] == [["3"], ["5"], ["GPU-ab"]]
    two = model(engine_args={"tensor_parallel_size": 2})
    assert [slice_of(two, visible, n, 2) for n in range(2)] == [["3", "5"], ["GPU-ab", "7"]]
    with pytest.raises(RequestError, match="3 replicas of m on 2 accelerators each need 6, and 5 are visible"):
        slice_of(two, visible, 0, 3)
    assert accelerators_of(model(engine_args={"tensor_parallel_size": 4, "pipeline_parallel_size": 2})) == 8


@pytest.mark.parametrize(("visible", "size", "replicas"), [(8, 1, 8), (8, 2, 4), (7, 2, 3), (0, 1, 1), (1, 2, 1)])
def test_auto_is_as_many_as_fit(monkeypatch: pytest.MonkeyPatch, visible: int, size: int, replicas: int) -> None:
    from augment.engines import vllm

    monkeypatch.setattr(vllm, "accelerators", lambda: visible)
    one = model(replicas="auto", engine_args={"tensor_parallel_size": size})
    assert engines.count_replicas(one) == replicas
    assert engines.count_replicas(model(replicas=3)) == 3
    assert engines.count_replicas(ModelConfig(engine="rehearsal", name="r", replicas="auto")) == 1


def test_the_registry_places_them_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[int, int]] = []

    class Placed(ScriptedEngine):
        def place(self, replica: int, replicas: int) -> None:
            placed.append((replica, replicas))

    monkeypatch.setattr(registry, "create_engine", lambda model: Placed(lambda r: asyncio.sleep(0.001), capacity=5))
    process = Registry()
    feeder = process.acquire(model(replicas=3), QUICK)
    run_all(feeder, [request(str(i)) for i in range(60)])
    assert sorted(placed) == [(0, 3), (1, 3), (2, 3)] and process.stats()["m"].capacity == 15
    process.close_all()


def test_how_many_there_are_is_not_in_the_key() -> None:
    one = ModelConfig(engine="rehearsal", name="m")
    assert what_decides_text(one) == what_decides_text(dataclasses.replace(one, replicas=4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": "all"}, "replicas"),
        (
            {"engine": "endpoint", "urls": ("http://localhost:1",), "replicas": 2},
            "name the servers of a model in `urls`",
        ),
        ({"replicas": 2, "engine_args": {"data_parallel_size": 2}}, "two ways to the same end"),
    ],
)
def test_wrong_replicas(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**fields)


def test_rehearsals_have_replicas_too() -> None:
    process = Registry()
    one = ModelConfig(engine="rehearsal", name="m", replicas=2, engine_args={"capacity": 3, "tokens_per_second": 2000})
    feeder = process.acquire(one, QUICK)
    assert len(run_all(feeder, [request(str(i)) for i in range(30)])) == 30 and feeder.stats().capacity == 6
    process.close_all()


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)  # two starts of an engine, or three, on a machine that others use
def test_two_real_engines_and_one_is_killed(small_model: str) -> None:
    real = ModelConfig(
        engine="vllm",
        name=small_model,
        max_model_len=256,
        replicas=2,
        engine_args={"max_num_seqs": 4, "kv_cache_memory_bytes": 1 << 28},
    )
    feeder = registry.acquire(real, FeedingConfig(backoff_s=0.1))

    def asked(count: int, max_tokens: int) -> list[GenerationRequest]:
        fields: dict[str, Any] = {"sampling": SamplingConfig(), "max_tokens": max_tokens}
        prompt = np.arange(40, 60, dtype=np.uint32)
        return [make_request(f"{max_tokens}-{n}", prompt, **fields) for n in range(count)]

    try:
        ticket = feeder.ticket()
        for one in asked(16, 4):
            ticket.submit(one)
        assert len(list(ticket.drain())) == 16
        until(lambda: all(replica.engine is not None for replica in feeder._replicas), 600)
        for one in asked(16, 5):
            ticket.submit(one)
        assert len(list(ticket.drain())) == 16 and feeder.stats().capacity == 10
        pair = [replica.engine for replica in feeder._replicas]
        assert all(isinstance(one, VllmEngine) for one in pair)
        cores = {p.pid for p in multiprocessing.active_children() if "EngineCore" in p.name}
        marked = {p.pid for p in reaper.marked_processes(pair[0]._mark)}  # type: ignore[union-attr]
        assert len(cores) == 2 and len(cores & marked) == 1
        for one in asked(60, 12):
            ticket.submit(one)
        psutil.Process((cores & marked).pop()).kill()
        results = list(ticket.drain())
        assert len(results) == 60 and all(isinstance(one, Completed) for one in results)
        assert feeder.stats().restarts == 1 and feeder._replicas[1].engine is pair[1]
        assert feeder._replicas[0].engine is not pair[0]
    finally:
        registry.release(feeder)
        registry.close_all()
