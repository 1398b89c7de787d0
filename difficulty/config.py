"""The `difficulty` section of the config: which scorer reads the text, and what counts as hard."""

from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from difficulty.memory.counting import MemoryConfig
from difficulty.surprisal import Measure
from sharding.config import STRICT
from sharding.models.connections import check_urls


@plain_dataclass(frozen=True)
class ScorerKind:
    """A scorer that a config can name.

    Attributes:
        module: where it is; see `difficulty.scorers`.
        needs_model: it scores with the model that `difficulty.model` names.
        asks_servers: that model is on the servers of `difficulty.urls`.
        has_reference: it can score against a `difficulty.reference_model`.
        has_entropy: it gives an entropy with the surprisal; one that asks servers, from `difficulty.top_logprobs`.
        packages, extra: what it needs beyond the core, and the extra that brings it.
    """

    module: str
    needs_model: bool = True
    asks_servers: bool = False
    has_reference: bool = False
    has_entropy: bool = True
    packages: tuple[str, ...] = ()
    extra: str = ""


SCORERS = {
    "causal_lm": ScorerKind(
        "difficulty.scorers.causal_lm", has_reference=True, packages=("torch", "transformers"), extra="score"
    ),
    "endpoint": ScorerKind("difficulty.scorers.endpoint", asks_servers=True, packages=("httpx",), extra="endpoint"),
    "rehearsal": ScorerKind("difficulty.scorers.rehearsal", needs_model=False),
    "none": ScorerKind("difficulty.scorers.none", needs_model=False, has_entropy=False),
}
"""The scorers by the names they have in a config."""

if TYPE_CHECKING:
    ScorerName = str
else:
    ScorerName = Literal[tuple(SCORERS)]


DEFAULT_MEMORY = MemoryConfig()
"""What is taken where a config says nothing of a memory; known again by its identity."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DifficultyConfig:
    """How every token gets its nats, and how documents are cut into segments."""

    scorer: ScorerName = Field(
        default="causal_lm",
        description="What scores the text: a model in this process, or on servers; rehearsal makes nats up; none gives "
        "0 nats, where nothing hangs on difficulty.",
    )
    model: str | None = Field(
        default=None, min_length=1, description="The scoring model: a folder, a fetched model's name or a hub id."
    )
    revision: str | None = Field(default=None, description="Hub revision of the scoring model.")
    urls: tuple[str, ...] = Field(default=(), description="Servers of scorer endpoint (vLLM): http://host:port.")
    served_name: str | None = Field(
        default=None, min_length=1, description="What the servers call the model; null: its name."
    )
    api_key_env: str | None = Field(
        default=None,
        min_length=1,
        description="Environment variable with the key of the servers; null: they need none.",
    )
    timeout_s: float = Field(default=600.0, gt=0, description="For a whole answer of a server, seconds.")
    max_wait_s: float = Field(
        default=900.0,
        gt=0,
        description="How long no server may take a request (loading, full, away) before the run stops, seconds.",
    )
    max_in_flight: int | None = Field(default=None, gt=0, description="Windows at the servers at once; null: 16 each.")
    top_logprobs: int = Field(
        default=0, ge=0, description="Most likely tokens that servers report, for the entropy; 0: the token itself."
    )
    measure: Measure | None = Field(
        default=None,
        description="What a token's difficulty is. surprisal: its nats; excess: those in excess of reference_model's "
        "(Rho-1); beyond_entropy: those in excess of the entropy. null: excess with a reference_model, else surprisal.",
    )
    reference_model: str | None = Field(
        default=None, min_length=1, description="The stronger model of measure excess; of no other measure."
    )
    memory: MemoryConfig | None = Field(
        default=DEFAULT_MEMORY,
        description="Count the corpus's n-grams: a token they predict is not hard. On unless told otherwise, with a "
        "scorer that is a model and no memory_path; null: no memory.",
    )
    memory_path: str | None = Field(
        default=None, min_length=1, description="Use the memory that an earlier run stored here, instead of counting."
    )
    threshold_nats: float = Field(default=2.0, ge=0, description="Difficulty above which a token is hard, in nats.")
    segment_tokens: int = Field(default=512, ge=16, description="Longest segment, in training tokens.")
    context_tokens: int = Field(default=1024, ge=16, description="Window the model reads at once, in its tokens.")
    min_context: int = Field(
        default=256, ge=0, description="Tokens before each scored token, except at a document's start."
    )
    batch_tokens: int = Field(default=4096, ge=16, description="Padded tokens of one forward pass.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Number type of the weights; auto is bfloat16 on CUDA and float32 on the CPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the model runs.")
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the model.")

    @model_validator(mode="after")
    def _check(self) -> "DifficultyConfig":
        kind = SCORERS[self.scorer]
        if kind.needs_model and self.model is None:
            without = " and ".join(name for name, other in SCORERS.items() if not other.needs_model)
            raise ValueError(f"scorer {self.scorer} needs difficulty.model; only the scorers {without} work without")
        if not kind.has_reference and self.reference_model is not None:
            able = " or ".join(name for name, other in SCORERS.items() if other.has_reference)
            raise ValueError(f"difficulty.reference_model needs scorer {able}; leave it out for {self.scorer}")
        if self.memory is DEFAULT_MEMORY and (not kind.needs_model or self.memory_path is not None):
            object.__setattr__(self, "memory", None)  # frozen for all others
        self._check_measure(kind)
        self._check_servers(kind)
        if self.memory is not None and self.memory_path is not None:
            raise ValueError("difficulty.memory counts anew and difficulty.memory_path reuses; set one of them")
        if self.min_context >= self.context_tokens:
            raise ValueError(
                f"difficulty.min_context ({self.min_context}) must be below "
                f"difficulty.context_tokens ({self.context_tokens})"
            )
        if self.batch_tokens < self.context_tokens:
            raise ValueError(
                f"difficulty.batch_tokens ({self.batch_tokens}) must hold one window of "
                f"difficulty.context_tokens ({self.context_tokens})"
            )
        return self

    @property
    def token_measure(self) -> Measure:
        """The measure, where it isn't said too."""
        return self.measure or ("surprisal" if self.reference_model is None else "excess")

    def _check_measure(self, kind: ScorerKind) -> None:
        if self.token_measure == "excess" and self.reference_model is None:
            raise ValueError("difficulty.measure excess needs difficulty.reference_model, a stronger model")
        if self.token_measure != "excess" and self.reference_model is not None:
            raise ValueError(
                f"difficulty.reference_model is for measure excess; leave it out for measure {self.token_measure}"
            )
        if self.token_measure != "beyond_entropy":
            return
        if not kind.has_entropy:
            raise ValueError(f"difficulty.measure beyond_entropy needs an entropy, and scorer {self.scorer} gives none")
        if kind.asks_servers and not self.top_logprobs:
            raise ValueError(
                f"difficulty.measure beyond_entropy needs an entropy, and scorer {self.scorer} gives none with "
                "difficulty.top_logprobs 0; set it, such as 20 (servers allow as many as their --max-logprobs)"
            )

    def _check_servers(self, kind: ScorerKind) -> None:
        if kind.asks_servers:
            if not self.urls:
                raise ValueError(f"scorer {self.scorer} needs difficulty.urls, such as [http://localhost:8000]")
            check_urls(self.urls)
            return
        for name in ("urls", "served_name", "api_key_env", "max_in_flight", "top_logprobs"):
            if getattr(self, name):
                able = " or ".join(name for name, other in SCORERS.items() if other.asks_servers)
                raise ValueError(f"difficulty.{name} is for scorer {able}; scorer {self.scorer} asks no server")
