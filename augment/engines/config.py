"""What a generator is: the sections `models` and `sampling` of the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.models.connections import check_urls

ENGINES = {
    "vllm": "augment.engines.vllm:VllmEngine",
    "endpoint": "augment.engines.endpoint:EndpointEngine",
    "rehearsal": "augment.engines.rehearsal:RehearsalEngine",
}
"""The engine families by the names they have in a config, and where they are."""

PACKAGES = {"vllm": (("vllm",), "vllm"), "endpoint": (("httpx",), "endpoint")}
"""What an engine needs beyond the core, and the extra that brings it."""

if TYPE_CHECKING:
    EngineFamily = str
else:
    EngineFamily = Literal[tuple(ENGINES)]

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
        default=None, gt=0, description="Requests at the engine, or at all its replicas, at once; null: what fits."
    )
    replicas: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        default=1,
        description='Engines of this model on a machine, each on accelerators of its own; "auto": as many as fit on '
        "those that are visible.",
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
    other_model: Literal["warn", "error"] = Field(
        default="warn",
        description="Where an answer names another model than the one asked for, as a router's fallback does: warn, "
        "with rows that name it, or stop.",
    )
    timeout_s: float = Field(default=1800.0, gt=0, description="For a whole answer of a server, seconds.")
    max_wait_s: float = Field(
        default=900.0,
        gt=0,
        description="How long no server may take a request (loading, full, away) before the run stops, seconds.",
    )
    dollars_per_million_tokens: float | None = Field(
        default=None, gt=0, description="Price of generated tokens, dollars."
    )
    tokens_per_gpu_second: float | None = Field(
        default=None, gt=0, description="Measured rate of generated tokens per GPU."
    )

    @property
    def resource_hints(self) -> dict[str, str]:
        """What Beam is told of the steps that have this model."""
        return {} if self.accelerator is None else {"accelerator": self.accelerator}

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
            if self.replicas != 1:
                raise ValueError("replicas is for engines on this machine; name the servers of a model in `urls`")
            return self
        for name in ("urls", "served_name", "api_key_env"):
            if getattr(self, name):
                raise ValueError(f"{name} is for engine endpoint; engine {self.engine} asks no server")
        return self

    @model_validator(mode="after")
    def _one_way_to_several_engines(self) -> ModelConfig:
        if self.replicas != 1 and self.engine_args.get("data_parallel_size", 1) != 1:
            raise ValueError(
                "replicas and engine_args.data_parallel_size are two ways to the same end: set one of them"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How tokens are drawn. The defaults for temperature and top_p are those of TPT (arXiv 2509.20186)."""

    temperature: float = Field(default=0.6, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus, share of probability.")
    seed: int = Field(default=0, ge=0, description="Of the run; the seed of each sample follows from its key.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end a generation, beside the model's own end.")
    repetition_detection: bool = Field(default=True, description="Let the engine end a generation that runs in a loop.")
