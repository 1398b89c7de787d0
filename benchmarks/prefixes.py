"""What the order of sending is worth: prefix groups against longest first, and learned lengths against planned ones.

Called by `benchmarks.recipes`. **Prefix groups**: documents of several segments, each of whose prompts shows all of the
document before it, two samples of each, through GenerateMissing to simulated engines. Such an engine has a prefix cache
of bounded size, in which blocks that were not used for longest make room for new ones; a token of a prompt that is not
in it takes all slots `PREFILL_COST` of the time of a token. **Learned lengths**: the order in which `feeding.waiting`
sends two tiers one of which is much shorter than planned, as an exact schedule of slots, without a clock.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast
from unittest import mock

import numpy as np

from augment.engines.config import ModelConfig, SamplingConfig
from augment.engines.protocol import GenerationRequest
from augment.feeding import registry, worker
from augment.feeding.config import FeedingConfig
from augment.feeding.lengths import LearnedLengths
from augment.feeding.tickets import Job
from augment.feeding.waiting import PREFILL_COST, Waiting
from augment.requests.closing import ClosingConfig
from augment.requests.planner import TracePlanner
from augment.requests.tiers import TierRequest
from benchmarks.contexts import _words
from benchmarks.feeding_load import MODEL, Load, Turn, run_ours
from benchmarks.feeding_simulated import SimulatedEngine
from sharding.hashing import fraction_of
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request, ScoredSegment

DOCUMENTS, SEGMENTS, SEGMENT_TOKENS, SAMPLES = 60, 8, 128, 2
CAPS = (128, 256, 384, 512)
ENGINES, SLOTS, STEP_S = 2, 32, 0.005
CACHE_TOKENS = 50_000
"""Of an engine: the prompts and generations of its slots are 30,000 when all of them are full."""

SHORT_QUEUE = 128
"""An eighth of the load."""

BLOCK_TOKENS = 16
"""As vLLM has it."""


class PrefixCache:
    """Which blocks of prompts an engine has in memory: those used last, so many tokens of them.

    Attributes:
        tokens: of all prompts. missed: of them, those that were not there.
    """

    def __init__(self, room_tokens: int) -> None:
        self._room = room_tokens // BLOCK_TOKENS
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.tokens = self.missed = 0

    def read(self, prompt: np.ndarray) -> int:
        """Read a prompt, (tokens,); how many of its tokens were not there. A block is told by all that is before it."""
        data, before, found, is_there = prompt.tobytes(), 0, 0, True
        size = BLOCK_TOKENS * prompt.itemsize
        for start in range(0, len(data) - size + 1, size):
            before = hash((before, data[start : start + size]))
            is_there = is_there and before in self._blocks
            found += is_there
            self._blocks[before] = None
            self._blocks.move_to_end(before)
        while len(self._blocks) > self._room:
            self._blocks.popitem(last=False)
        missed = len(prompt) - found * BLOCK_TOKENS
        self.tokens += len(prompt)
        self.missed += missed
        return missed


def prefix_figures(tokenizer: str, **settings: Any) -> dict[str, float]:
    """Tokens per second of the engines' clock, in either order, with the share of the prompts' tokens that was read.

    `_short_queue`: where `SHORT_QUEUE` requests wait at most, so that a document's segments seldom meet there, and the
    samples of each alone go together. `_through_files`: the same, with requests that are dealt out by document before,
    through the files of the local runner's shuffle.
    """
    grouped, by_length = (run(tokenizer, prefix_groups=groups, **settings) for groups in (True, False))
    settings |= {"max_waiting": SHORT_QUEUE}
    short_grouped, short_by_length = (run(tokenizer, prefix_groups=groups, **settings) for groups in (True, False))
    by_document = run(tokenizer, prefix_groups=True, through_files=True, **settings)
    return {
        "prefix_ratio_to_longest_first_short_queue_through_files": by_document["tokens_per_second"]
        / short_by_length["tokens_per_second"],
        "prefix_prompt_share_read_short_queue_through_files": by_document["share_read"],
        "prefix_ratio_to_longest_first_short_queue": short_grouped["tokens_per_second"]
        / short_by_length["tokens_per_second"],
        "prefix_prompt_share_read_short_queue": short_grouped["share_read"],
        "longest_first_prompt_share_read_short_queue": short_by_length["share_read"],
        "prefix_tokens_per_second": grouped["tokens_per_second"],
        "longest_first_tokens_per_second": by_length["tokens_per_second"],
        "prefix_ratio_to_longest_first": grouped["tokens_per_second"] / by_length["tokens_per_second"],
        "prefix_wall_ratio_to_longest_first": by_length["elapsed_s"] / grouped["elapsed_s"],
        "prefix_prompt_share_read": grouped["share_read"],
        "longest_first_prompt_share_read": by_length["share_read"],
    }


def run(
    tokenizer: str,
    *,
    prefix_groups: bool,
    documents: int = DOCUMENTS,
    slots: int = SLOTS,
    step_s: float = STEP_S,
    cache_tokens: int = CACHE_TOKENS,
    max_waiting: int = FeedingConfig().max_waiting,
    through_files: bool = False,
) -> dict[str, float]:
    """The load once through GenerateMissing to `ENGINES` simulated engines with a prefix cache each.

    Args:
        through_files: whether shuffles go through files, as those of a run on one machine do.
    """
    model = ModelConfig(engine="rehearsal", name="simulated", max_model_len=4096, replicas=ENGINES)
    engines: list[SimulatedEngine] = []
    caches: list[PrefixCache] = []

    def make(_: ModelConfig) -> SimulatedEngine:
        cache = PrefixCache(cache_tokens)
        caches.append(cache)
        engines.append(SimulatedEngine(slots, step_s, lambda prompt: PREFILL_COST * cache.read(prompt) / slots))
        return engines[-1]

    load = load_of_documents(model, tokenizer, documents)
    feeding = FeedingConfig(prefix_groups=prefix_groups, max_waiting=max_waiting)
    with tempfile.TemporaryDirectory() as name, mock.patch.object(registry, "create_engine", make):
        try:
            folder = f"{name}/shuffle" if through_files else ""
            turn: Turn = run_ours(load, f"{name}/ledger", feeding=feeding, shuffle_folder=folder)
        finally:
            worker.close_all()
    ticks = max(engine.steps + engine.read_steps for engine in engines)
    return {
        "tokens_per_second": turn.tokens / (ticks * step_s),
        "elapsed_s": turn.elapsed_s,
        "share_read": sum(cache.missed for cache in caches) / sum(cache.tokens for cache in caches),
    }


def load_of_documents(
    model: ModelConfig,
    tokenizer: str,
    documents: int,
    *,
    segments: int = SEGMENTS,
    samples: int = SAMPLES,
    caps: Sequence[int] = CAPS,
    to_the_cap: bool = False,
) -> Load:
    """Requests for all segments of made-up documents, in the order of their keys, as the ledger's join has them.

    Args:
        segments: of a document. samples: of a request. caps: of which each segment gets one by lot.
        to_the_cap: whether a real model is kept from ending before its cap.
    """
    tiers = tuple(
        TierRequest(
            tier=f"up to {cap}",
            model=MODEL,
            prompt="expert",
            samples=samples,
            max_tokens=cap,
            min_tokens=cap if to_the_cap else 0,
            expected_tokens=float(cap),
        )
        for cap in caps
    )
    planner = TracePlanner(
        tiers=tiers,
        models={MODEL: model},
        sampling=SamplingConfig(repetition_detection=not to_the_cap),
        closing=ClosingConfig(enabled=False),
        tokenizer=tokenizer,
    )
    made: list[Request] = []
    for number in range(documents):
        found = planner.requests(_document(tokenizer, number, segments), _Drawn(len(caps)))
        made += [request for request in found if isinstance(request, Request)]
    made.sort(key=lambda request: request.request_key)
    return Load(planner, [(request, list(range(samples))) for request in made])


def _document(tokenizer: str, number: int, segments: int) -> list[ScoredSegment]:
    text = " ".join(_words(np.random.default_rng(number), segments * SEGMENT_TOKENS))
    ids = load_tokenizer(tokenizer).encode(text)[: segments * SEGMENT_TOKENS]
    nothing = np.empty(0, np.float16)
    return [
        ScoredSegment(
            doc_id=f"doc{number}",
            segment_index=index,
            num_segments=segments,
            token_start=index * SEGMENT_TOKENS,
            input_ids=ids[index * SEGMENT_TOKENS : (index + 1) * SEGMENT_TOKENS],
            surprisal_nats=nothing,
            entropy_nats=nothing,
            memory_nats=nothing,
            difficulty_nats=0.0,
        )
        for index in range(segments)
    ]


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


def learned_figures(*, slots: int = 16, rounds: Sequence[int] = (6, 12, 24, 50), trials: int = 20) -> dict[str, float]:
    """How many times fewer steps it takes by learned lengths than by planned ones, by requests per slot.

    One tier is planned with 1,024 tokens and takes 50 to 150, the other with 512 takes 100 to 512; half of each. The
    ratio of sums over draws. `learned_ratio_where_right`: the same of tiers that take what is planned on average, where
    there is nothing to gain; the least over the numbers of requests.
    """
    figures = {}
    nothing_to_gain = []
    for number in rounds:
        for misled in (True, False):
            planned = learned = 0
            for trial in range(trials):
                lengths = _two_tiers(np.random.default_rng((number, trial)), number * slots, misled=misled)
                planned += schedule(lengths, slots, learn=False)
                learned += schedule(lengths, slots, learn=True)
            if misled:
                figures[f"learned_ratio_to_planned_{number}"] = planned / learned
            else:
                nothing_to_gain.append(planned / learned)
    return figures | {"learned_ratio_where_right": min(nothing_to_gain)}


def _two_tiers(random: np.random.Generator, count: int, *, misled: bool) -> list[tuple[str, float, int]]:
    short = random.integers(50, 151, count // 2).tolist()
    long = random.integers(100, 513, count - count // 2).tolist()
    planned = (1024.0, 512.0) if misled else (100.0, 306.0)
    every = [("short", planned[0], length) for length in short] + [("long", planned[1], length) for length in long]
    return [every[number] for number in random.permutation(count).tolist()]


def schedule(requests: Sequence[tuple[str, float, int]], slots: int, *, learn: bool) -> int:
    """The steps that it takes to generate all of them in the order of `Waiting`, when a free slot is always filled.

    Args:
        requests: kind, planned and real length of each.
        learn: whether the lengths of those that have ended are told.
    """
    lengths = LearnedLengths()
    waiting = Waiting(lengths)
    real: dict[str, int] = {}
    for number, (kind, planned, length) in enumerate(requests):
        key = str(number)
        real[key] = length
        request = GenerationRequest(
            key=key, prompt_token_ids=np.empty(0, np.uint32), max_tokens=1, expected_tokens=planned, kind=kind
        )
        waiting.push(Job(request, None, cast(Any, None)))
    busy: list[tuple[int, int, str, int]] = []  # end, order, kind, length
    now = started = 0
    while waiting or busy:
        while waiting and len(busy) < slots:
            job = waiting.pop(slots=slots)
            length = real[job.request.key]
            heapq.heappush(busy, (now + length, started, job.request.kind, length))
            started += 1
        now, _, kind, length = heapq.heappop(busy)
        if learn:
            lengths.note(kind, length)
    return now
