"""Feeding on engines of known behaviour: full, in order, bounded, each result once, alive after deaths."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augment.engines import reaper
from augment.engines.config import ModelConfig
from augment.engines.protocol import (
    Closing,
    EngineDead,
    Generation,
    GenerationFailed,
    GenerationRequest,
    RequestRejected,
)
from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.stats import FeederStats
from augment.feeding.tickets import Completed, Failure, Partial, Result
from sharding.errors import MillError, RequestError
from sharding.hashing import fraction_of
from tests.engine_sources import Engines

QUICK = FeedingConfig(backoff_s=0.001, max_backoff_s=0.01)


def request(key: str, max_tokens: int = 8, **fields: Any) -> GenerationRequest:
    return GenerationRequest(key=key, prompt_token_ids=np.arange(4, dtype=np.uint32), max_tokens=max_tokens, **fields)


def generation(request: GenerationRequest, text: str = "done") -> Generation:
    return Generation(
        text=text,
        token_ids=np.zeros(request.max_tokens, np.uint32),
        sum_logprobs=None,
        finish_reason="stop",
        engine_version="0",
    )


class StepEngine:
    """Generates like a real engine: in steps, one token each for the requests in its slots; counts its steps."""

    family = version = "simulated"
    memory_share = 0.0

    def __init__(self, slots: int, step_s: float) -> None:
        self.capacity = slots + slots // 4
        self._slots = slots
        self._step_s = step_s
        self._running: list[list[Any]] = []
        self._waiting: list[list[Any]] = []
        self.steps = 0
        self._stepper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._stepper = asyncio.get_running_loop().create_task(self._step())

    async def close(self) -> None:
        if self._stepper is not None:
            self._stepper.cancel()

    async def generate(self, request: GenerationRequest) -> Generation:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append([request.max_tokens, done])
        await done
        return generation(request)

    async def _step(self) -> None:
        while True:
            room = self._slots - len(self._running)
            self._running += self._waiting[:room]
            del self._waiting[:room]
            await asyncio.sleep(self._step_s)
            self.steps += bool(self._running)
            for entry in self._running:
                entry[0] -= 1
                if entry[0] == 0:
                    entry[1].set_result(None)
            self._running = [entry for entry in self._running if entry[0]]
            for _ in range(8):  # a step of a real engine is long beside the turns of the loop that refill it
                await asyncio.sleep(0)


class ScriptedEngine:
    """Does with each request what a function says; counts what is in flight and how often it was started."""

    family = version = "scripted"
    memory_share = 0.0

    def __init__(self, script: Callable[[GenerationRequest], Any], capacity: int = 4) -> None:
        self.capacity = capacity
        self._script = script
        self.in_flight = self.most_in_flight = self.starts = self.closes = 0
        self.order: list[str] = []
        self.gate: asyncio.Event | None = None

    async def start(self) -> None:
        self.starts += 1

    async def close(self) -> None:
        self.closes += 1

    async def generate(self, request: GenerationRequest) -> Generation:
        self.order.append(request.key)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            outcome = self._script(request)
            if asyncio.iscoroutine(outcome):
                outcome = await outcome
        finally:
            self.in_flight -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome if isinstance(outcome, Generation) else generation(request)


@pytest.fixture
def feeders() -> Iterator[Callable[..., Feeder]]:
    made: list[Feeder] = []

    def make(engine: Any, memory: registry.SharedMemory | None = None, **arguments: Any) -> Feeder:
        factory = engine if callable(engine) else lambda: engine
        made.append(Feeder(Engines(factory, memory), name="model", **{"config": QUICK, **arguments}))
        return made[-1]

    yield make
    for feeder in made:
        feeder.close()


def run_all(feeder: Feeder, requests: list[GenerationRequest]) -> list[Result]:
    ticket = feeder.ticket()
    for one in requests:
        ticket.submit(one)
    return list(ticket.drain())


# --- full -------------------------------------------------------------------------------------------------------------


def test_the_engine_is_kept_full(feeders: Callable[..., Feeder]) -> None:
    """Bundles of mixed lengths on eight threads: within 2% of the least number of steps that the tokens can take."""
    engine = StepEngine(slots=64, step_s=0.001)
    feeder = feeders(engine)
    requests = [request(str(i), 1 + int(60 * fraction_of(str(i)) ** 2)) for i in range(4800)]

    def work(bundles: list[list[GenerationRequest]]) -> None:
        for bundle in bundles:
            assert len(run_all(feeder, bundle)) == len(bundle)

    workers = []
    for worker in range(8):
        own = requests[worker * 600 : (worker + 1) * 600]
        bundles = [own[at : at + 150] for at in range(0, 600, 150)]
        workers.append(threading.Thread(target=work, args=(bundles,)))
        workers[-1].start()
    for thread in workers:
        thread.join()
    tokens = sum(one.max_tokens for one in requests)
    assert tokens / 64 / engine.steps >= 0.98
    stats = feeder.stats()
    assert (stats.submitted, stats.completed, stats.failed, stats.generated_tokens) == (4800, 4800, 0, tokens)
    assert 0.95 * 80 < stats.mean_in_flight <= 80


def test_longest_expected_goes_first(feeders: Callable[..., Feeder]) -> None:
    engine = ScriptedEngine(lambda r: None, capacity=1)
    feeder = feeders(engine)
    opened = threading.Event()

    async def blocked() -> None:
        while not opened.is_set():
            await asyncio.sleep(0.001)

    engine._script = lambda r: blocked() if r.key == "first" else None
    ticket = feeder.ticket()
    ticket.submit(request("first"))
    while "first" not in engine.order:
        time.sleep(0.001)
    for key, expected in (("b", 20.0), ("d", 5.0), ("a", 30.0), ("c", 10.0)):
        ticket.submit(request(key, expected_tokens=expected))
    opened.set()
    assert len(list(ticket.drain())) == 5
    assert engine.order == ["first", "a", "b", "c", "d"]


def test_longest_goes_first_of_what_came_while_the_engine_started(feeders: Callable[..., Feeder]) -> None:
    starting, started = threading.Event(), threading.Event()

    class Slow(ScriptedEngine):
        async def start(self) -> None:
            starting.set()
            while not started.is_set():
                await asyncio.sleep(0.001)

    engine = Slow(lambda r: None, capacity=1)
    ticket = feeders(engine).ticket()
    ticket.submit(request("short", expected_tokens=1.0))
    assert starting.wait(5)
    ticket.submit(request("long", expected_tokens=9.0))
    started.set()
    assert len(list(ticket.drain())) == 2
    assert engine.order == ["long", "short"]


def test_no_more_in_flight_than_asked(feeders: Callable[..., Feeder]) -> None:
    for limit, expected in ((None, 4), (2, 2)):
        engine = ScriptedEngine(lambda r: asyncio.sleep(0.0005), capacity=4)
        run_all(feeders(engine, max_in_flight=limit), [request(str(i)) for i in range(40)])
        assert engine.most_in_flight == expected


def test_back_pressure(feeders: Callable[..., Feeder]) -> None:
    opened = threading.Event()

    async def blocked() -> None:
        while not opened.is_set():
            await asyncio.sleep(0.001)

    engine = ScriptedEngine(lambda r: blocked(), capacity=2)
    feeder = feeders(engine, config=FeedingConfig(max_waiting=5))
    ticket = feeder.ticket()
    submitted = 0

    def submit() -> None:
        nonlocal submitted
        for i in range(30):
            ticket.submit(request(str(i)))
            submitted += 1

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.1)
    assert submitted == 2 + 5
    opened.set()
    thread.join(5)
    assert len(list(ticket.drain())) == 30


def test_results_do_not_pile_up_in_the_feeder(feeders: Callable[..., Feeder]) -> None:
    feeder = feeders(ScriptedEngine(lambda r: None))
    ticket = feeder.ticket()
    for i in range(500):
        ticket.submit(request(str(i)))
    assert len(list(ticket.drain())) == 500
    del ticket
    time.sleep(0.01)
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, GenerationRequest)]


# --- each once --------------------------------------------------------------------------------------------------------


def test_bundles_get_their_own_results_exactly_once(feeders: Callable[..., Feeder]) -> None:
    feeder = feeders(ScriptedEngine(lambda r: asyncio.sleep(0.002 * fraction_of(r.key)), capacity=8))
    called: Counter[str] = Counter()

    class Counting:
        def keep(self, result: Result | Partial) -> None:
            called.update([result.request.key])

    got: dict[int, list[Result]] = {}

    def bundle(n: int) -> None:
        ticket = feeder.ticket(Counting())
        got[n] = []
        for i in range(100):
            ticket.submit(request(f"{n}/{i}"), context=(n, i))
            got[n] += ticket.take()
        got[n] += ticket.drain()
        assert ticket.take() == []
        assert list(ticket.drain()) == []

    threads = [threading.Thread(target=bundle, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert called == Counter({f"{n}/{i}": 1 for n in range(5) for i in range(100)})
    for n, results in got.items():
        assert sorted(result.context for result in results) == [(n, i) for i in range(100)]
    assert feeder.idle


def test_a_request_that_is_under_way_already_is_not_made_twice(feeders: Callable[..., Feeder]) -> None:
    """A bundle is run again while what its first attempt asked for is waiting or in flight."""
    opened = threading.Event()

    async def slow() -> None:
        while not opened.is_set():
            await asyncio.sleep(0.001)

    engine = ScriptedEngine(lambda r: slow(), capacity=2)
    feeder = feeders(engine, config=FeedingConfig(max_waiting=8))
    first, again = feeder.ticket(), feeder.ticket()
    for i in range(6):
        first.submit(request(str(i)))
    for i in range(9):
        again.submit(request(str(i)))
    opened.set()
    assert sorted(result.request.key for result in again.drain()) == [str(i) for i in range(9)]
    assert len(list(first.drain())) == 6
    assert sorted(engine.order) == [str(i) for i in range(9)]
    assert feeder.idle and feeder.stats().submitted == 9


def test_a_bundle_does_not_wait_for_another(feeders: Callable[..., Feeder]) -> None:
    opened = threading.Event()

    async def slow() -> None:
        while not opened.is_set():
            await asyncio.sleep(0.001)

    feeder = feeders(ScriptedEngine(lambda r: slow() if r.key == "slow" else None))
    one, other = feeder.ticket(), feeder.ticket()
    one.submit(request("slow"))
    other.submit(request("quick"))
    assert [result.request.key for result in other.drain()] == ["quick"]
    assert one.take() == []
    opened.set()
    assert [result.request.key for result in one.drain()] == ["slow"]


def test_what_the_sink_raises_stops_its_bundle_only(feeders: Callable[..., Feeder]) -> None:
    class Refusing:
        def keep(self, result: Result | Partial) -> None:
            raise OSError("disk full")

    feeder = feeders(ScriptedEngine(lambda r: None))
    ticket = feeder.ticket(Refusing())
    ticket.submit(request("a"))
    with pytest.raises(MillError, match="disk full"):
        list(ticket.drain())
    assert [type(result) for result in run_all(feeder, [request("b")])] == [Completed]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_request_is_tried_again(feeders: Callable[..., Feeder]) -> None:
    tries: Counter[str] = Counter()

    def script(r: GenerationRequest) -> Any:
        tries[r.key] += 1
        return GenerationFailed("hiccup") if tries[r.key] < 3 and r.key == "flaky" else None

    results = run_all(feeders(ScriptedEngine(script)), [request("flaky"), request("fine")])
    assert {r.request.key: (type(r), r.retries) for r in results} == {"flaky": (Completed, 2), "fine": (Completed, 0)}


def test_a_request_is_given_up_alone(feeders: Callable[..., Feeder]) -> None:
    tries: Counter[str] = Counter()

    def script(r: GenerationRequest) -> Any:
        tries[r.key] += 1
        return {"bad": GenerationFailed("no luck"), "long": RequestRejected("too long")}.get(r.key)

    feeder = feeders(ScriptedEngine(script))
    results = {r.request.key: r for r in run_all(feeder, [request(k) for k in ("a", "bad", "long", "b")])}
    assert isinstance(results["a"], Completed) and isinstance(results["b"], Completed)
    bad, long = results["bad"], results["long"]
    assert isinstance(bad, Failure) and (bad.key, bad.model, bad.error, bad.retries) == ("bad", "model", "no luck", 3)
    assert isinstance(long, Failure) and (long.error, long.retries) == ("too long", 0)
    assert (tries["bad"], tries["long"]) == (QUICK.max_attempts, 1)
    assert feeder.stats().failed == 2


def test_a_backoff_holds_no_slot(feeders: Callable[..., Feeder]) -> None:
    tries: Counter[str] = Counter()

    def script(r: GenerationRequest) -> Any:
        tries[r.key] += 1
        return GenerationFailed("busy") if r.key.startswith("bad") and tries[r.key] == 1 else None

    feeder = feeders(ScriptedEngine(script, capacity=1), config=FeedingConfig(backoff_s=0.2))
    ticket = feeder.ticket()
    for key in ("bad1", "bad2", "bad3", *map(str, range(50))):
        ticket.submit(request(key, expected_tokens=9.0 if key.startswith("bad") else 1.0))
    started = time.monotonic()
    order = [result.request.key for result in ticket.drain()]
    assert sorted(order[-3:]) == ["bad1", "bad2", "bad3"]
    assert 0.1 <= time.monotonic() - started < 1.0


def test_a_bug_in_an_engine_reaches_every_bundle(feeders: Callable[..., Feeder]) -> None:
    feeder = feeders(ScriptedEngine(lambda r: ZeroDivisionError("oops") if r.key == "bug" else asyncio.sleep(9)))
    one, other = feeder.ticket(), feeder.ticket()
    other.submit(request("waits"))
    one.submit(request("bug"))
    for ticket in (one, other):
        with pytest.raises(MillError, match="oops") as caught:
            list(ticket.drain())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(MillError, match="oops"):
        one.submit(request("late"))


def test_an_engine_that_cannot_start(feeders: Callable[..., Feeder]) -> None:
    class Broken(ScriptedEngine):
        async def start(self) -> None:
            raise MillError("no such model")

    engine = Broken(lambda r: None)
    feeder = feeders(engine)
    with pytest.raises(MillError, match="no such model"):
        run_all(feeder, [request("a"), request("b")])
    assert engine.closes == 1
    assert feeder.error is not None


@pytest.mark.parametrize("when", ["while it starts", "while it generates"])
def test_a_library_that_calls_for_an_exit_leaves_no_bundle_waiting(feeders: Callable[..., Feeder], when: str) -> None:
    class Exiting(ScriptedEngine):
        async def start(self) -> None:
            if when == "while it starts":
                raise SystemExit("bye")

    engine = Exiting(lambda r: SystemExit("bye") if r.key == "a" else asyncio.sleep(60))
    feeder = feeders(engine)
    with pytest.raises(MillError, match="bye"):
        run_all(feeder, [request("b"), request("a")])
    feeder.close()
    assert engine.closes == 1 and isinstance(feeder.error, SystemExit)
    with pytest.raises(MillError, match="bye"):
        run_all(feeder, [request("c")])


def test_an_engine_that_cannot_be_made(feeders: Callable[..., Feeder]) -> None:
    def make() -> ScriptedEngine:
        raise RequestError("engine_args.dtype: not allowed")

    with pytest.raises(MillError, match=r"engine_args\.dtype"):
        run_all(feeders(make), [request("a")])


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_dead_engine_is_replaced_and_nothing_is_lost(feeders: Callable[..., Feeder]) -> None:
    engines: list[ScriptedEngine] = []
    deaths = 0

    def script(r: GenerationRequest) -> Any:
        nonlocal deaths
        if r.key in ("100", "200") and deaths < 2 and len(engines) == deaths + 1:
            deaths += 1
            return EngineDead("killed")
        return asyncio.sleep(0.001)

    def make() -> ScriptedEngine:
        engines.append(ScriptedEngine(script, capacity=16))
        return engines[-1]

    feeder = feeders(make)
    results = run_all(feeder, [request(str(i)) for i in range(300)])
    assert sorted(r.request.key for r in results) == sorted(map(str, range(300)))
    assert all(isinstance(r, Completed) for r in results)
    assert [engine.starts for engine in engines] == [1, 1, 1]
    assert [engine.closes for engine in engines[:2]] == [1, 1]
    assert feeder.stats().restarts == 2


def test_the_request_that_kills_engines_is_found_and_given_up_alone(feeders: Callable[..., Feeder]) -> None:
    def script(r: GenerationRequest) -> Any:
        return EngineDead("out of memory") if r.key == "poison" else asyncio.sleep(0.002)

    feeder = feeders(lambda: ScriptedEngine(script, capacity=64))
    requests = [request(str(i)) for i in range(200)]
    requests.insert(20, request("poison"))
    results = {r.request.key: r for r in run_all(feeder, requests)}
    poison = results.pop("poison")
    assert isinstance(poison, Failure) and "out of memory" in poison.error and "alone" in poison.error
    assert len(results) == 200
    assert all(isinstance(r, Completed) for r in results.values())


def test_an_engine_that_only_dies_stops_the_run(feeders: Callable[..., Feeder]) -> None:
    engines: list[ScriptedEngine] = []

    def make() -> ScriptedEngine:
        engines.append(ScriptedEngine(lambda r: EngineDead("driver gone"), capacity=64))
        return engines[-1]

    feeder = feeders(make, config=FeedingConfig(max_restarts=3, backoff_s=0.001))
    with pytest.raises(MillError, match="driver gone"):
        run_all(feeder, [request(str(i)) for i in range(100)])
    assert len(engines) == 4
    assert all(engine.closes == 1 for engine in engines)


def test_an_engine_that_hangs_is_replaced(feeders: Callable[..., Feeder]) -> None:
    engines: list[ScriptedEngine] = []

    def make() -> ScriptedEngine:
        hang = not engines
        engines.append(ScriptedEngine(lambda r: asyncio.sleep(60 if hang else 0)))
        return engines[-1]

    feeder = feeders(make, config=FeedingConfig(stall_s=0.1, backoff_s=0.001))
    assert len(run_all(feeder, [request(str(i)) for i in range(10)])) == 10
    assert len(engines) == 2


CLOSING = Closing(reserve_tokens=4, phrase="", phrase_token_ids=np.empty(0, np.uint32))


@pytest.mark.parametrize(
    "trouble", [GenerationFailed("hiccup"), GenerationFailed("full", retry_after_s=0.01), EngineDead("gone")]
)
def test_a_failed_closing_call_alone_is_made_again(feeders: Callable[..., Feeder], trouble: MillError) -> None:
    calls: Counter[str] = Counter()

    def script(r: GenerationRequest) -> Any:
        name = "closing" if r.include_stop else "first"
        calls[name] += 1
        if name == "first":
            return Generation(
                text="and so on",
                token_ids=np.full(r.max_tokens, calls["first"], np.uint32),
                sum_logprobs=-1.0,
                finish_reason="length",
                engine_version="0",
            )
        return trouble if calls["closing"] < 2 else generation(r, " to the end.")

    feeder = feeders(lambda: ScriptedEngine(script))
    [done] = run_all(feeder, [request("a", max_tokens=16, closing=CLOSING)])
    assert isinstance(done, Completed) and done.generation.forced
    assert done.generation.text == "and so on to the end."
    assert done.generation.token_ids.tolist() == [1] * 12 + [0] * 4
    assert calls == {"first": 1, "closing": 2}


def test_an_engine_that_dies_while_it_starts_is_tried_again(feeders: Callable[..., Feeder]) -> None:
    engines: list[ScriptedEngine] = []

    class Shaky(ScriptedEngine):
        async def start(self) -> None:
            if len(engines) < 3:
                raise EngineDead("its owner is gone")

    def make() -> ScriptedEngine:
        engines.append(Shaky(lambda r: None))
        return engines[-1]

    feeder = feeders(make)
    assert len(run_all(feeder, [request(str(i)) for i in range(5)])) == 5
    assert len(engines) == 3 and [engine.closes for engine in engines] == [1, 1, 0]
    assert feeder.stats().restarts == 2


# --- closing, and several models --------------------------------------------------------------------------------------


def test_closing_fails_what_is_unfinished(feeders: Callable[..., Feeder]) -> None:
    engine = ScriptedEngine(lambda r: asyncio.sleep(60))
    feeder = feeders(engine)
    ticket = feeder.ticket()
    ticket.submit(request("a"))
    while not engine.in_flight:
        time.sleep(0.001)
    feeder.close()
    with pytest.raises(MillError, match="closed"):
        list(ticket.drain())
    with pytest.raises(MillError, match="closed"):
        ticket.submit(request("b"))
    assert engine.closes == 1
    feeder.close()


def test_closing_tells_the_bundles_before_a_starting_engine_has_ended(feeders: Callable[..., Feeder]) -> None:
    starting, may_end = threading.Event(), threading.Event()

    class Slow(ScriptedEngine):
        async def start(self) -> None:
            starting.set()
            await asyncio.sleep(60)

        async def close(self) -> None:
            while not may_end.is_set():
                await asyncio.sleep(0.001)
            await super().close()

    engine = Slow(lambda r: None)
    feeder = feeders(engine)
    told: list[str] = []

    def bundle() -> None:
        try:
            run_all(feeder, [request("a")])
        except MillError as error:
            told.append(str(error))

    thread = threading.Thread(target=bundle, daemon=True)
    thread.start()
    starting.wait(5)
    feeder.close(MillError("too many failed"), timeout_s=0.01)
    thread.join(5)
    closes, _ = engine.closes, may_end.set()
    assert (told, closes) == (["too many failed"], 0)
    feeder.close()
    assert engine.closes == 1


def test_an_engine_that_starts_all_the_same_when_closed_gets_no_request(feeders: Callable[..., Feeder]) -> None:
    starting = threading.Event()

    class Stubborn(ScriptedEngine):
        async def start(self) -> None:
            starting.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    engine = Stubborn(lambda r: None)
    feeder = feeders(engine)
    ticket = feeder.ticket()
    ticket.submit(request("a"))
    starting.wait(5)
    feeder.close(timeout_s=5)
    with pytest.raises(MillError, match="closed"):
        list(ticket.drain())
    assert not feeder._thread.is_alive() and (engine.order, engine.closes) == ([], 1)


@pytest.mark.parametrize(("share", "together"), [(0.9, False), (0.4, True)])
def test_models_take_turns_where_memory_is_short(feeders: Callable[..., Feeder], share: float, together: bool) -> None:
    memory = registry.SharedMemory()
    alive: set[str] = set()
    most = 0

    class Heavy(ScriptedEngine):
        memory_share = share

        def __init__(self, name: str) -> None:
            super().__init__(lambda r: asyncio.sleep(0.001))
            self.name = name

        async def start(self) -> None:
            nonlocal most
            alive.add(self.name)
            most = max(most, len(alive))

        async def close(self) -> None:
            alive.discard(self.name)

    pair = [feeders(lambda name=name: Heavy(name), memory=memory) for name in ("small", "large")]
    tickets = [feeder.ticket() for feeder in pair]
    for i in range(40):
        for ticket in tickets:
            ticket.submit(request(str(i)))
    for ticket in tickets:
        assert len(list(ticket.drain())) == 40
    assert most == (2 if together else 1)
    # And back to the first, whose engine was closed for the second where memory is short.
    assert len(run_all(pair[0], [request("again")])) == 1
    assert most == (2 if together else 1)


def test_the_registry_shares_one_feeder_per_model() -> None:
    model = ModelConfig(engine="rehearsal", name="pretend")
    one, same = registry.acquire(model), registry.acquire(ModelConfig(engine="rehearsal", name="pretend"))
    other = registry.acquire(ModelConfig(engine="rehearsal", name="other"))
    try:
        assert one is same
        assert other is not one
        assert len(run_all(one, [request("a")])) == 1
        registry.release(one)
        registry.release(same)
        assert registry.acquire(model) is one
        registry.close_all()
        assert one.error is not None
        assert registry.acquire(model) is not one
    finally:
        registry.close_all()


def test_models_of_one_name_are_counted_apart() -> None:
    """Two entries of `models` with one `name`: each has an engine of its own, unless they are equal in all."""
    here = ModelConfig(engine="rehearsal", name="pretend", dollars_per_million_tokens=1.0)
    there = ModelConfig(engine="rehearsal", name="pretend", dollars_per_million_tokens=2.0)
    try:
        cheap, dear = registry.acquire(here, name="cheap"), registry.acquire(there, name="dear")
        run_all(cheap, [request("a")])
        run_all(dear, [request(key) for key in "bcd"])
        assert {name: stats.completed for name, stats in registry.stats().items()} == {"cheap": 1, "dear": 3}
        assert registry.acquire(here, name="same") is cheap
        assert {name: stats.completed for name, stats in registry.stats().items()} == {"cheap, same": 1, "dear": 3}
    finally:
        registry.close_all()


def test_a_model_that_failed_does_not_hide_what_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    well, ill = ModelConfig(engine="rehearsal", name="well"), ModelConfig(engine="rehearsal", name="ill")
    failing = ScriptedEngine(lambda r: RequestError("the key is wrong"))
    make = registry.create_engine
    monkeypatch.setattr(registry, "create_engine", lambda model: failing if model is ill else make(model))
    try:
        run_all(registry.acquire(well), [request("a")])
        failed = registry.acquire(ill)
        with pytest.raises(RequestError, match="the key is wrong"):
            run_all(failed, [request("a")])
        registry.release(failed)
        assert registry.stats()["well"].completed == 1
        assert registry.acquire(ill) is not failed
        assert set(registry.stats()) == {"well", "ill"}
    finally:
        registry.close_all()


def test_no_constructor_takes_a_callback() -> None:
    """A reader meets control flow as code; functions that come in through a constructor hide who calls whom."""
    taken = []
    for folder in ("feeding", "engines"):
        for path in (Path(__file__).parent.parent / "augment" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    taken += [f"{path.name}: {a.arg}" for a in (*node.args.args, *node.args.kwonlyargs) if _is_call(a)]
    assert taken == []


def _is_call(argument: ast.arg) -> bool:
    return argument.annotation is not None and "Callable" in ast.unparse(argument.annotation)


def test_a_starved_engine_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    monkeypatch.setattr("augment.feeding.stats.time.monotonic", lambda: now)
    stats = FeederStats("model")
    stats.capacity = 100
    with caplog.at_level(logging.WARNING):
        for in_flight, seconds in ((10, 50.0), (0, 5.0), (30, 25.0), (0, 1.0)):
            stats.observe(in_flight)
            now += seconds
    assert stats.busy_s == 75.0
    assert stats.mean_in_flight == pytest.approx((10 * 50 + 30 * 25) / 75)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the engine of model had 17 requests in flight on average and could take 100"
    ]


def test_an_engine_that_is_never_idle_and_never_full_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("augment.feeding.stats.time.monotonic", lambda: now)
    starved, full, shared = FeederStats("starved"), FeederStats("full"), FeederStats("shared")
    for stats in (starved, full, shared):
        stats.capacity = 100
    shared.elsewhere = True
    with caplog.at_level(logging.WARNING):
        for i in range(100):
            for stats, in_flight in ((starved, 20), (full, 80), (shared, 20)):
                stats.observe(in_flight + i % 3)
            now += 1.0
    assert [record.getMessage().split(" had")[0] for record in caplog.records] == ["the engine of starved"]


# --- the rehearsal engine ---------------------------------------------------------------------------------------------


def test_rehearsal_depends_on_the_key_alone(feeders: Callable[..., Feeder]) -> None:
    from augment.engines.rehearsal import RehearsalEngine

    model = ModelConfig(engine="rehearsal", name="pretend")
    requests = [request(str(i), max_tokens=50) for i in range(300)]

    def texts(order: list[GenerationRequest]) -> dict[str, tuple[str, str, int]]:
        results = run_all(feeders(lambda: RehearsalEngine(model)), order)
        generations = {r.request.key: r.generation for r in results if isinstance(r, Completed)}
        return {key: (g.text, g.finish_reason, len(g.token_ids)) for key, g in generations.items()}

    found = texts(requests)
    assert found == texts(requests[::-1])
    assert len({text for text, _, _ in found.values()}) == 300
    capped = [length for _, reason, length in found.values() if reason == "length"]
    assert 10 < len(capped) < 60 and set(capped) == {50}
    assert all(1 <= length <= 50 for _, _, length in found.values())


def test_rehearsal_refuses_other_options() -> None:
    from augment.engines.rehearsal import RehearsalEngine

    for args in ({"dtype": "float32"}, {"capacity": 0}, {"tokens_per_second": "fast"}, {"capacity": True}):
        with pytest.raises(RequestError, match=f"engine_args.{next(iter(args))}"):
            RehearsalEngine(ModelConfig(engine="rehearsal", name="pretend", engine_args=args))


# --- orphans ----------------------------------------------------------------------------------------------------------

ABANDON = """
import os, subprocess, sys
from augment.engines import reaper
mark = reaper.new_mark()
reaper.watch(mark)
sleeper = "import time; print('up', flush=True); time.sleep(60)"
marked = {**os.environ, reaper.MARK_VARIABLE: mark}
children = [subprocess.Popen([sys.executable, "-c", sleeper], env=e, stdout=subprocess.PIPE) for e in (marked, None)]
for child in children:
    child.stdout.readline()
print(*(child.pid for child in children), flush=True)
os.kill(os.getpid(), 9)
"""


EXIT = """
import atexit
from tests.test_feeding import QUICK, Engines, Feeder, ScriptedEngine, request

class Engine(ScriptedEngine):
    async def start(self):
        atexit.register(print, "the engine's libraries")
    async def close(self):
        print("the engine")

feeder = Feeder(Engines(lambda: Engine(lambda r: None)), name="model", config=QUICK)
ticket = feeder.ticket()
ticket.submit(request("a"))
print(len(list(ticket.drain())))
"""


def test_an_engine_ends_before_its_libraries_when_the_interpreter_exits() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=30, check=False, cwd=root
    )
    assert (done.stdout, done.stderr) == ("1\nthe engine\nthe engine's libraries\n", "")


def test_what_a_killed_owner_leaves_behind_is_ended() -> None:
    import psutil

    owner = subprocess.run(
        [sys.executable, "-c", ABANDON],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=30,
        check=False,
    )
    marked, unmarked = map(int, owner.stdout.split())
    try:
        deadline = time.monotonic() + 10
        while psutil.pid_exists(marked) and psutil.Process(marked).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the marked process is still there"
            time.sleep(0.05)
        assert psutil.pid_exists(unmarked)
    finally:
        psutil.Process(unmarked).kill()


def test_marked_processes_are_found_by_title_too() -> None:
    mark = reaper.new_mark()
    program = (
        "import setproctitle, sys, time; setproctitle.setproctitle(sys.argv[1]); print(1, flush=True); time.sleep(60)"
    )
    pytest.importorskip("setproctitle")
    titled = subprocess.Popen([sys.executable, "-c", program, f"VLLM-{mark}::EngineCore"], stdout=subprocess.PIPE)
    try:
        assert titled.stdout is not None
        titled.stdout.readline()
        assert [process.pid for process in reaper.marked_processes(mark)] == [titled.pid]
        reaper.end_marked(mark)
        assert titled.wait(5) != 0
        assert reaper.marked_processes(mark) == []
    finally:
        titled.kill()
