"""What a generator is: a model's config, one request, its result, and the protocol every engine fulfils.

`augment.feeding` keeps an engine full, `augment.registry` makes sure a worker process has one engine per model. Each
engine family is one module here, and `create_engine` is the only place that knows their names.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.errors import MillError
from sharding.http import check_urls

EngineFamily = Literal["vllm", "endpoint", "rehearsal"]

ELSEWHERE = "elsewhere"
"""Family of the engine that stands for one in another process of this machine; never in a ledger."""

_OWN_FIELD = {"model": "name", "revision": "revision", "max_model_len": "max_model_len"}
"""What prompts and keys depend on has a field of its own and can't be changed behind its back."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """One generator: which model, on which engine, and what it costs."""

    engine: EngineFamily = Field(
        description='Engine family: "vllm" (in this process), "endpoint" (servers) or "rehearsal" (no model).'
    )
    name: str = Field(min_length=1, description="Local folder, fetched model or hub id.")
    revision: str | None = Field(default=None, description="Revision on the hub; null: its main branch.")
    accelerator: str | None = Field(default=None, description='Beam resource hint, such as "type:nvidia-l4;count:1".')
    max_model_len: int = Field(default=4096, gt=0, description="Tokens of prompt and generation together.")
    max_in_flight: int | None = Field(
        default=None, gt=0, description="Requests at the engine at once; null: its capacity."
    )
    thinking: bool | None = Field(
        default=None, description="Use the model's thinking mode; null: if its template has one."
    )
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Passed to the engine as they are.")
    urls: tuple[str, ...] = Field(default=(), description="OpenAI-compatible servers of the model: http://host:port.")
    served_name: str | None = Field(
        default=None, min_length=1, description="What the servers call the model; null: its name."
    )
    api_key_env: str | None = Field(
        default=None,
        min_length=1,
        description="Environment variable with the key of the servers; null: they need none.",
    )
    timeout_s: float = Field(default=1800.0, gt=0, description="For a whole answer of a server, seconds.")
    dollars_per_million_tokens: float | None = Field(
        default=None, gt=0, description="Price of generated tokens, dollars."
    )
    tokens_per_gpu_second: float | None = Field(
        default=None, gt=0, description="Measured rate of generated tokens per GPU."
    )

    @model_validator(mode="after")
    def _engine_args_are_the_engine_s_own(self) -> ModelConfig:
        for taken, field in _OWN_FIELD.items():
            if taken in self.engine_args:
                raise ValueError(f"engine_args.{taken} is not allowed: set `{field}` of the model instead")
        return self

    @model_validator(mode="after")
    def _servers_are_an_endpoint_s(self) -> ModelConfig:
        if self.engine == "endpoint":
            if not self.urls:
                raise ValueError("engine endpoint needs `urls`, where its servers are, such as [http://localhost:8000]")
            check_urls(self.urls)
            return self
        for name in ("urls", "served_name", "api_key_env"):
            if getattr(self, name):
                raise ValueError(f"{name} is for engine endpoint; engine {self.engine} asks no server")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How tokens are drawn. The defaults for temperature and top_p are those of TPT (arXiv 2509.20186)."""

    temperature: float = Field(default=0.6, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus, share of probability.")
    seed: int = Field(default=0, ge=0, description="Of the run; the seed of each sample follows from its key.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end a generation, beside the model's own end.")
    repetition_detection: bool = Field(default=True, description="Let the engine end a generation that runs in a loop.")


@plain_dataclass(frozen=True, kw_only=True, eq=False)
class Closing:
    """How a generation that reaches its cap is brought to an end; see `augment.thoughts`.

    Attributes:
        reserve_tokens: kept back from the cap for the closing call, the phrase included.
        phrase, phrase_token_ids: what is put before the closing call's own tokens; may be empty.
    """

    reserve_tokens: int
    phrase: str
    phrase_token_ids: np.ndarray


@plain_dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """One generation to make.

    Attributes:
        key: the ledger key of the sample; names the request in messages and gives its jitter and its seed.
        prompt_token_ids: (prompt_tokens,) uint32 under the generator's tokenizer.
        max_tokens, min_tokens: cap and floor of the generated tokens.
        expected_tokens: what the generation is expected to take; the longest goes first. 0: `max_tokens`.
        seed: 31 bits, from the key.
        stop: texts that end the generation; kept in the text only with `include_stop`.
        closing: how to close the generation at its cap, or None to leave it cut.
    """

    key: str
    prompt_token_ids: np.ndarray
    max_tokens: int
    min_tokens: int = 0
    expected_tokens: float = 0.0
    temperature: float = 0.6
    top_p: float = 0.9
    seed: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    repetition_detection: bool = False
    closing: Closing | None = None


@plain_dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """What an engine made of a request.

    Attributes:
        text: the generated text, special tokens and stop text left out.
        token_ids: (generated_tokens,) uint32, what was paid for, special tokens included.
        sum_logprobs: sum over the tokens of ln p under the sampling distribution, or None.
        finish_reason: "stop" (the model or a stop text), "length" (the cap) or "repetition" (a loop was cut).
        engine_version: of the engine software.
        forced: a closing call was made.
    """

    text: str
    token_ids: np.ndarray
    sum_logprobs: float | None
    finish_reason: str
    engine_version: str
    forced: bool = False


class GenerationFailed(MillError):
    """This request failed this time; it may succeed when it is tried again.

    Attributes:
        retry_after_s: the engine has no room for so many seconds; it is tried again then, and this counts as no try.
            The engine sees to it that this doesn't go on for ever. None: the request was tried and failed.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestRejected(MillError):
    """The engine will never take this request, such as one too long for the model."""


class EngineDead(MillError):
    """The engine is gone with all that was in flight; a new one has to be started."""


class Engine(Protocol):
    """A generator at work. All coroutines run on one event loop, that of the `Feeder` that owns the engine.

    Attributes:
        family: of the ledger's `engine` column, or `ELSEWHERE`.
        version: of the engine software; known once started.
        capacity: requests in flight that keep it full; before `start` an estimate.
        memory_share: the share of the machine's accelerator memory it takes while it runs, 0 to 1.
    """

    @property
    def family(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def capacity(self) -> int: ...

    @property
    def memory_share(self) -> float: ...

    async def start(self) -> None:
        """Load the model. Called once, before the first `generate`.

        Raises:
            MillError: it can't be started: why, and the way out.
        """

    async def generate(self, request: GenerationRequest) -> Generation:
        """Make one generation; many run at once.

        Raises:
            RequestRejected: never to be tried again.
            GenerationFailed: to be tried again.
            EngineDead: the engine is gone.
        """

    async def close(self) -> None:
        """End everything the engine started, processes included. Safe to call twice and after a death."""


def create_engine(model: ModelConfig) -> Engine:
    """The engine of a model, not started yet."""
    if model.engine == "vllm":
        from augment.engines.vllm import VllmEngine

        return VllmEngine(model)
    if model.engine == "endpoint":
        from augment.engines.endpoint import EndpointEngine

        return EndpointEngine(model)
    from augment.engines.rehearsal import RehearsalEngine

    return RehearsalEngine(model)
