"""The `difficulty` section of the config: which scorer reads the text, and what counts as hard."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from difficulty.ngrams import MemoryConfig
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DifficultyConfig:
    """How every token gets its nats, and how documents are cut into segments."""

    scorer: Literal["causal_lm", "rehearsal"] = Field(
        default="causal_lm", description="What scores the text; rehearsal needs no model and its scores mean nothing."
    )
    model: str | None = Field(
        default=None, min_length=1, description="The scoring model: a folder, a fetched model's name or a hub id."
    )
    revision: str | None = Field(default=None, description="Hub revision of the scoring model.")
    reference_model: str | None = Field(
        default=None,
        min_length=1,
        description="A stronger model; difficulty is then the loss in excess of its (Rho-1), in nats.",
    )
    memory: MemoryConfig | None = Field(
        default=None, description="Count the corpus's n-grams: a token they predict is not hard; null: no memory."
    )
    memory_path: str | None = Field(
        default=None, min_length=1, description="Use the memory that an earlier run stored here, instead of counting."
    )
    threshold_nats: float = Field(default=2.0, ge=0, description="Surprisal above which a token is hard, in nats.")
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
        if self.scorer == "causal_lm" and self.model is None:
            raise ValueError("scorer causal_lm needs difficulty.model; only scorer rehearsal works without")
        if self.scorer == "rehearsal" and self.reference_model is not None:
            raise ValueError("difficulty.reference_model needs scorer causal_lm; leave it out for a rehearsal")
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
