"""The rehearsal engine: deterministic text without a model, to try a config where there is no GPU.

Stands in for any engine. Lengths vary with the key the way real traces do: most well below the cap, some at it. What
it touches is marked "rehearsal: not for training".
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time

import numpy as np

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest, Interrupted
from augment.traces import PARTIAL
from sharding.errors import RequestError
from sharding.hashing import fraction_of, text_number

VERSION = "1"

_TEXT = (
    "the a this that each first then here so because if when value text part rule case name line point step reason "
    "means holds follows needs gives takes keeps shows says would may must only also rather before after without "
    "passage argument object number type list result condition meaning example question answer difference"
)
_WORDS = tuple(_TEXT.split())

_OPTIONS = {"tokens_per_second": (int, float), "capacity": (int,)}


class RehearsalEngine:
    """Writes one word per token, drawn from the request's key and seed.

    `engine_args` may hold `tokens_per_second` (of one generation; absent: at once) and `capacity`.

    Raises:
        RequestError: another key in `engine_args`, or a value that is no positive number.
    """

    family = "rehearsal"
    version = VERSION
    memory_share = 0.0
    rehearsal = True

    def __init__(self, model: ModelConfig) -> None:
        for name, value in model.engine_args.items():
            if name not in _OPTIONS or isinstance(value, bool) or not isinstance(value, _OPTIONS[name]) or value <= 0:
                raise RequestError(
                    f"engine_args.{name} = {value!r} of the rehearsal engine: allowed are "
                    "tokens_per_second (a number above 0) and capacity (a whole number above 0)"
                )
        self.capacity: int = model.engine_args.get("capacity", 1024)
        self._tokens_per_second: float = model.engine_args.get("tokens_per_second", math.inf)
        self._interrupted = asyncio.Event()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def interrupt(self) -> None:
        self._interrupted.set()

    async def generate(self, request: GenerationRequest) -> Generation:
        # About one in ten is still going at the cap; the floor holds as it would in a real engine.
        wanted = math.ceil(request.max_tokens * (0.1 + fraction_of(f"{request.key}/{request.seed}")))
        length = max(request.min_tokens, min(wanted, request.max_tokens), 1)
        finished = wanted <= request.max_tokens
        seconds = length / self._tokens_per_second
        began = time.monotonic()
        if seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._interrupted.wait()
        made = length
        if self._interrupted.is_set():
            made = min(length, int((time.monotonic() - began) * self._tokens_per_second)) if seconds else 0
        seed = text_number(f"{request.key}/{request.seed}")
        token_ids = np.random.Generator(np.random.PCG64(seed)).integers(0, len(_WORDS), length, dtype=np.uint32)
        ended = finished and made == length
        generation = Generation(
            text=_sentences([_WORDS[i] for i in token_ids[:made]], ended),
            token_ids=token_ids[:made],
            sum_logprobs=None,
            finish_reason="stop" if finished else "length",
            engine_version=VERSION,
        )
        if made == length:
            return generation
        begun = dataclasses.replace(generation, finish_reason=PARTIAL) if made else None
        raise Interrupted("the rehearsal was told to end", begun)


def _sentences(words: list[str], finished: bool) -> str:
    """Words in sentences of eleven; without the last full stop unless the text is finished."""
    pieces = [" ".join(words[at : at + 11]).capitalize() for at in range(0, len(words), 11)]
    return ". ".join(pieces) + ("." if finished else "")
