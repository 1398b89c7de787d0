"""The load that all sides of `benchmarks.feeding` carry, and our side: GenerateMissing in a Beam pipeline.

Every request is made by the augment stage's own planner, so that prompts, caps, seeds and ledger rows are those of a
real run. A turn is timed from when the first request is handed over until the last result is durable; what runners and
peers do before that (building graphs, looking for their server) is left out for all of them alike.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import apache_beam as beam
import numpy as np
import psutil  # type: ignore[import-untyped]
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from augment.engines.config import ModelConfig, SamplingConfig
from augment.feeding.config import FeedingConfig
from augment.feeding.worker import WorkOrder
from augment.ledger.reading import read_ledger
from augment.recipes.protocol import RecipeRequest
from augment.requests.closing import ClosingConfig
from augment.requests.planner import TracePlanner
from augment.requests.tiers import TierRequest
from augment.transforms import GenerateMissing
from sharding.hashing import fraction_of
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request, ScoredSegment

MODEL = "served"
"""The name of the one model in the planner."""

MAX_MODEL_LEN = 512
WORDS_PER_PROMPT = 24

Element = tuple[Request, list[int]]
"""What GenerateMissing takes: a request and the samples it lacks."""


@dataclass(frozen=True)
class Turn:
    """One side, once over the load.

    Attributes:
        tokens: generated.
        elapsed_s: from when the first request is handed over until the last result is there to stay.
        engine_cpu_s: seconds of CPU that the engine's processes spent meanwhile; 0 where it has none.
    """

    tokens: int
    elapsed_s: float
    engine_cpu_s: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.elapsed_s

    @property
    def tokens_per_cpu_second(self) -> float:
        """How well the engine's batches were filled; what else the machine does hardly shows in it."""
        return self.tokens / self.engine_cpu_s if self.engine_cpu_s else math.nan


@dataclass(frozen=True)
class Load:
    """Requests, and the planner that made them."""

    planner: TracePlanner
    elements: list[Element]

    def texts(self) -> list[str]:
        """The prompts as text, control tokens included; a server reads the same token ids out of it."""
        tokenizer = load_tokenizer(self.planner.tokenizer)
        return [tokenizer.decode(request.prompt_token_ids) for request, _ in self.elements]


def make_load(
    model: ModelConfig,
    folder: Path,
    *,
    tokenizer: str,
    count: int,
    caps: Sequence[int],
    task: str = "Explain in one sentence",
    sampling: SamplingConfig | None = None,
    recipe: str | None = None,
) -> Load:
    """So many requests with caps drawn from `caps` by a hash of their id, in an order that has nothing to do with them.

    Args:
        folder: where the prompt template is kept.
        tokenizer: the training tokenizer.
        task: what the prompts ask for; decides how long the answers are.
        recipe: that makes each of them, within the same caps; None: one call.
    """
    template = folder / f"prompt-{zlib.crc32(task.encode()):08x}.txt"
    template.write_text(f"{task}: {{text}}")
    tiers = tuple(
        TierRequest(
            tier=f"up to {cap}",
            model=MODEL,
            prompt=str(template),
            samples=1,
            max_tokens=cap,
            min_tokens=0,
            expected_tokens=float(cap),
            recipe=None
            if recipe is None
            else RecipeRequest(name=recipe, prompt=str(template), model=MODEL, max_tokens=cap),
        )
        for cap in caps
    )
    planner = TracePlanner(
        tiers=tiers,
        models={MODEL: model},
        sampling=sampling or SamplingConfig(),
        closing=ClosingConfig(enabled=False),  # one call per trace, as on every other side
        tokenizer=tokenizer,
    )
    elements: list[Element] = []
    for segment in _segments(tokenizer, count):
        made = planner.requests([segment], _Drawn(len(caps)))
        elements += [(request, [0]) for request in made if isinstance(request, Request)]
    return Load(planner, elements)


class _Drawn:
    """A tier by lot, and all of a segment shown."""

    def __init__(self, num_tiers: int) -> None:
        self._num_tiers = num_tiers

    def tiers(self, segments: Sequence[ScoredSegment]) -> list[int]:
        return [int(fraction_of(segment.segment_id) * self._num_tiers) for segment in segments]

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        return len(segment.input_ids)

    def focus(self, segment: ScoredSegment, text: str) -> tuple[str, ...]:
        return ()


def _segments(tokenizer: str, count: int) -> Iterator[ScoredSegment]:
    """Short passages of the Python documentation; one that comes again is numbered."""
    encode = load_tokenizer(tokenizer).encode
    words = " ".join(topics[name] for name in sorted(topics)).split()
    nothing = np.empty(0, np.float16)
    seen: set[str] = set()
    for number in range(count):
        start = number * WORDS_PER_PROMPT % (len(words) - WORDS_PER_PROMPT)
        text = " ".join(words[start : start + WORDS_PER_PROMPT])
        if text in seen:
            text = f"{number}. {text}"
        seen.add(text)
        yield ScoredSegment(
            doc_id=f"doc{number}",
            segment_index=0,
            num_segments=1,
            token_start=0,
            input_ids=encode(text),
            surprisal_nats=nothing,
            entropy_nats=nothing,
            memory_nats=nothing,
            difficulty_nats=0.0,
        )


class StartClock:
    """Notes when the first element of a pipeline of this process passes `note`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_s: float | None = None

    def reset(self) -> None:
        with self._lock:
            self._at_s = None

    def note(self) -> None:
        with self._lock:
            if self._at_s is None:
                self._at_s = time.perf_counter()

    def elapsed_s(self) -> float:
        with self._lock:
            assert self._at_s is not None, "nothing has passed"
            return time.perf_counter() - self._at_s


clock = StartClock()


def note_start(element: Element) -> Element:
    """Passes an element on. Beam finds it by name, so that it is this process's clock that it starts."""
    clock.note()
    return element


def run_ours(
    load: Load,
    ledger_url: str,
    *,
    flush_rows: int = 256,
    flush_seconds: float = 10.0,
    feeding: FeedingConfig | None = None,
    shuffle_folder: str = "",
) -> Turn:
    """Our turn: the requests through GenerateMissing on the in-process runner, into a ledger of their own.

    Args:
        shuffle_folder: where its shuffles go, as those of a run do; "": there are none.
    """
    clock.reset()
    options = PipelineOptions([], local_shuffle_folder=shuffle_folder)
    order = WorkOrder(
        run_id="benchmark",  # one for all turns: they share an engine
        began_ms=time.time_ns() // 1_000_000,
        ledger_url=ledger_url,
        flush_rows=flush_rows,
        flush_seconds=flush_seconds,
    )
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        _ = (
            pipeline
            | beam.Create(load.elements, reshuffle=False)
            | beam.Reshuffle()
            | "Start" >> beam.Map(note_start)
            | GenerateMissing(load.planner, feeding or FeedingConfig(), order)
        )
    elapsed_s = clock.elapsed_s()
    rows = {row.key: row for row in read_ledger(ledger_url, columns=["key", "thought_tokens", "step", "made_from"])}
    ended = sum(not row.step for row in rows.values())
    asked = sum(len(samples) for _, samples in load.elements)
    if ended != asked:
        raise AssertionError(f"{asked} requests left {ended} outcomes in the ledger")
    return Turn(sum(row.thought_tokens for row in rows.values() if not row.composed), elapsed_s)


def take_turns(sides: Mapping[str, Callable[[int], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Every side once per round, one after the other, so that what disturbs the machine meets them all."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, take in sides.items():
            before_s = engine_cpu_s()
            taken = take(number)
            turn = dataclasses.replace(taken, engine_cpu_s=engine_cpu_s() - before_s)
            turns[name].append(turn)
            speeds = f"{turn.tokens_per_second:,.1f} tokens/s, {turn.tokens_per_cpu_second:,.1f} per CPU second"
            print(f"  round {number + 1}: {name}: {turn.tokens:,} tokens, {speeds}", flush=True)
    return turns


def engine_cpu_s() -> float:
    """Seconds of CPU that the processes this one has started, and theirs, have spent so far."""
    total_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def median(values: Iterable[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))
