"""Ours on a simulated engine of known capacity, where the least time the load can take is known exactly.

The engine has so many slots and a clock: at every tick each request in a slot gets one token, and those that are done
make room for others that wait. It stands beside the event loop, on a thread of its own, as the core of a real engine
stands in a process of its own; what it is not given in time, its slots are empty for. T tokens on S slots need at least
`bound_steps` = max(ceil(T / S), longest) ticks, whatever the order.

Also what the ledger costs: the seconds the writer is at work for rows of realistic size, against the time that an
engine of a known rate takes to generate them.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.feeding import registry, worker
from augment.ledger import writer as ledger_writer
from benchmarks.feeding_bare import CAPS as REAL_CAPS
from benchmarks.feeding_load import Turn, make_load, run_ours
from sharding.hashing import fraction_of

SLOTS, STEP_S = 256, 0.005
REPLICAS = 8
CAPS = (64, 128, 256, 384, 512)

FASTEST_TOKENS_PER_SECOND = 8086.0
"""Of the published rates per H100 the highest: Qwen3-4B (datatrove's inference benchmark). The faster the engine, the
larger the ledger's share."""

LEDGER_TOKENS_PER_ROW = 1000
LEDGER_SPEED_UP = 60
"""The ledger's run goes so many times faster than that engine, and so does the writer's clock."""


def bound_steps(tokens: int, longest: int, slots: int) -> int:
    """The least number of steps in which any order can generate so many tokens: every slot full, or the longest."""
    return max(math.ceil(tokens / slots), longest)


def schedule_steps(lengths: Iterable[int], slots: int) -> int:
    """The steps it takes to generate these lengths in this order, when a free slot is always filled at once."""
    free_at = [0] * slots
    for length in lengths:
        heapq.heappush(free_at, heapq.heappop(free_at) + length)
    return max(free_at)


def gain_of_order(requests_per_slot: int, *, slots: int = 16, trials: int = 20) -> float:
    """How many times fewer steps it takes the longest first than as they come, of lengths as `feeding_bare` has them.

    The mean over draws. What is gained is the end of the work, when slots run empty: much of a short run, little of a
    long one.
    """
    random = np.random.default_rng(0)
    as_they_come = longest_first = 0
    for _ in range(trials):
        lengths = random.choice(REAL_CAPS, requests_per_slot * slots).tolist()
        as_they_come += schedule_steps(lengths, slots)
        longest_first += schedule_steps(sorted(lengths, reverse=True), slots)
    return as_they_come / longest_first


class SimulatedEngine:
    """Slots, ticks, and lengths that follow from the key as those of the rehearsal engine do: 0.1 to 1 of the cap.

    Args:
        read: what reading a prompt takes all slots when a request gets one, in ticks; None: nothing.

    Attributes:
        lengths: of everything generated.
        steps: ticks from the first arrival to the last end, those with empty slots included.
        read_steps: ticks' worth of reading prompts, on top of these.
    """

    family = version = "simulated"
    memory_share = 0.0

    def __init__(self, slots: int, step_s: float, read: Callable[[np.ndarray], float] | None = None) -> None:
        self.capacity = slots + slots // 4  # as augment.engines.vllm has it
        self._slots, self._step_s, self._read = slots, step_s, read
        self.read_steps = 0.0
        self.lengths: list[int] = []
        self.steps = 0
        self._arrived: deque[tuple[int, np.ndarray, asyncio.Future[None]]] = deque()
        self._something = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._tick, daemon=True)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        self._closed = True
        self._something.set()

    async def generate(self, request: GenerationRequest) -> Generation:
        length = min(request.max_tokens, math.ceil(request.max_tokens * (0.1 + fraction_of(request.key))))
        done = self._loop.create_future()
        self.lengths.append(length)
        self._arrived.append((length, request.prompt_token_ids, done))
        self._something.set()
        await done
        return Generation(
            text="word " * length,
            token_ids=np.arange(length, dtype=np.uint32),
            sum_logprobs=None,
            finish_reason="stop",
            engine_version="1",
        )

    def _tick(self) -> None:
        self._something.wait()
        step, ends = 0, list[tuple[int, int, asyncio.Future[None]]]()
        started = time.perf_counter()
        while not self._closed:
            while self._arrived and len(ends) < self._slots:
                length, prompt, done = self._arrived.popleft()
                self.read_steps += self._read(prompt) if self._read is not None else 0.0
                heapq.heappush(ends, (step + length, id(done), done))
            step += 1
            time.sleep(max(0.0, started + (step + self.read_steps) * self._step_s - time.perf_counter()))
            finished = []
            while ends and ends[0][0] <= step:
                finished.append(heapq.heappop(ends)[-1])
                self.steps = step
            if finished:
                self._loop.call_soon_threadsafe(_resolve, finished)


def _resolve(finished: list[asyncio.Future[None]]) -> None:
    for done in finished:
        if not done.done():
            done.set_result(None)


@dataclass(frozen=True)
class SimulatedRun:
    """What came of a run on the simulated engine.

    Attributes:
        tokens, longest: of what was generated.
        slots, step_s: of the engine.
        steps: ticks it took; see `SimulatedEngine`.
    """

    turn: Turn
    tokens: int
    longest: int
    slots: int
    step_s: float
    steps: int

    @property
    def bound_steps(self) -> int:
        return bound_steps(self.tokens, self.longest, self.slots)

    @property
    def bound_s(self) -> float:
        return self.bound_steps * self.step_s

    @property
    def ratio(self) -> float:
        """The bound's time over the time it took, from the first request to the last durable row."""
        return self.bound_s / self.turn.elapsed_s

    @property
    def ratio_of_steps(self) -> float:
        """The bound's ticks over the ticks it took: without what is before the first and after the last."""
        return self.bound_steps / self.steps


def simulate(
    tokenizer: str,
    *,
    count: int,
    slots: int = SLOTS,
    step_s: float = STEP_S,
    caps: Sequence[int] = CAPS,
    recipe: str | None = None,
) -> SimulatedRun:
    """So many requests through GenerateMissing to a simulated engine; each a run of a recipe where one is named."""
    model = ModelConfig(engine="rehearsal", name="simulated", max_model_len=2048)
    engine = SimulatedEngine(slots, step_s)
    with tempfile.TemporaryDirectory() as name, mock.patch.object(registry, "create_engine", lambda _: engine):
        load = make_load(model, Path(name), tokenizer=tokenizer, count=count, caps=caps, recipe=recipe)
        try:
            turn = run_ours(load, f"{name}/ledger")
        finally:
            worker.close_all()
    return SimulatedRun(turn, sum(engine.lengths), max(engine.lengths), slots, step_s, engine.steps)


def simulate_replicas(
    tokenizer: str,
    *,
    count: int,
    replicas: int = REPLICAS,
    slots: int = SLOTS // REPLICAS,
    step_s: float = STEP_S,
    caps: Sequence[int] = CAPS,
) -> SimulatedRun:
    """The same load on several simulated engines behind one feeder, with as many slots in all.

    The bound is that of one engine with all the slots: no way to share the load out takes fewer ticks.
    """
    model = ModelConfig(engine="rehearsal", name="simulated", max_model_len=2048, replicas=replicas)
    engines: list[SimulatedEngine] = []

    def make(_: ModelConfig) -> SimulatedEngine:
        engines.append(SimulatedEngine(slots, step_s))
        return engines[-1]

    with tempfile.TemporaryDirectory() as name, mock.patch.object(registry, "create_engine", make):
        load = make_load(model, Path(name), tokenizer=tokenizer, count=count, caps=caps)
        try:
            turn = run_ours(load, f"{name}/ledger")
        finally:
            worker.close_all()
    lengths = [length for engine in engines for length in engine.lengths]
    steps = max(engine.steps for engine in engines)
    return SimulatedRun(turn, sum(lengths), max(lengths), replicas * slots, step_s, steps)


@dataclass(frozen=True)
class LedgerCost:
    """What the ledger took: seconds in `add` and in writing parts, over the run's."""

    rows: int
    tokens: int
    parts: int
    add_s: float
    write_s: float
    run_s: float

    @property
    def share_of_wall(self) -> float:
        """Of the time in which the fastest known engine generates the rows."""
        return (self.add_s + self.write_s) * FASTEST_TOKENS_PER_SECOND / self.tokens


class _Stopwatch:
    def __init__(self) -> None:
        self.elapsed_s, self.times = 0.0, 0

    def around(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.elapsed_s += time.perf_counter() - start
                self.times += 1

        return timed


@contextmanager
def _stopwatches() -> Iterator[tuple[_Stopwatch, _Stopwatch]]:
    """Around the two places where the ledger works: taking a row in, and writing a part."""
    add, write = _Stopwatch(), _Stopwatch()
    writer = ledger_writer.LedgerWriter
    with (
        mock.patch.object(writer, "add", add.around(writer.add)),
        mock.patch.object(ledger_writer, "write_part", write.around(ledger_writer.write_part)),
    ):
        yield add, write


def ledger_cost(tokenizer: str, *, count: int, tokens_per_row: int = LEDGER_TOKENS_PER_ROW) -> LedgerCost:
    """What it costs to keep so many rows, the ledger's settings being the defaults."""
    capacity = 512
    cap = round(tokens_per_row / 0.595)  # the mean of min(1, 0.1 + u) over u in [0, 1)
    rate = FASTEST_TOKENS_PER_SECOND * LEDGER_SPEED_UP / capacity
    model = ModelConfig(
        engine="rehearsal",
        name="rehearsal",
        max_model_len=4 * cap,
        engine_args={"capacity": capacity, "tokens_per_second": rate},
    )
    with tempfile.TemporaryDirectory() as name, _stopwatches() as (add, write):
        load = make_load(model, Path(name), tokenizer=tokenizer, count=count, caps=(cap,))
        try:
            turn = run_ours(load, f"{name}/ledger", flush_seconds=10.0 / LEDGER_SPEED_UP)
        finally:
            worker.close_all()
    return LedgerCost(count, turn.tokens, write.times, add.elapsed_s, write.elapsed_s, turn.elapsed_s)
