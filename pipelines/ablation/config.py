"""The `ablation` section of the config: the small model that is trained on every arm, and what it is asked then."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.errors import RequestError

EVALUATORS = {
    "heldout": "pipelines.ablation.evaluators.heldout:Heldout",
    "hard_tokens": "pipelines.ablation.evaluators.hard_tokens:HardTokens",
    "own_thought": "pipelines.ablation.evaluators.own_thought:OwnThought",
}
"""The evaluators by the names they have in a config, and where they are; see `pipelines.ablation.evaluators`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StudentConfig:
    """The decoder that is trained: a small Llama of these sizes, or what `config` or `checkpoint` names."""

    layers: int = Field(default=4, ge=1, description="Transformer layers.")
    width: int = Field(default=256, ge=8, description="Size of a hidden state; a multiple of heads.")
    heads: int = Field(default=4, ge=1, description="Attention heads.")
    feed_forward: int | None = Field(
        default=None, ge=8, description="Size of the feed-forward layer; null: 8/3 of the width, in eights."
    )
    tied: bool = Field(default=True, description="Whether input and output embeddings are the same weights.")
    config: str | None = Field(
        default=None,
        min_length=1,
        description="Hub id or folder whose config.json says the architecture, with new weights.",
    )
    checkpoint: str | None = Field(
        default=None, min_length=1, description="Hub id or folder of a model whose training goes on."
    )

    @model_validator(mode="after")
    def _fits(self) -> StudentConfig:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width: {self.width} is no even multiple of heads {self.heads}")
        if self.config is not None and self.checkpoint is not None:
            raise ValueError("checkpoint: there is a config as well; have one of them")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluatorConfig:
    """What a student is asked at every point of its curve."""

    name: str = Field(min_length=1, description=f"{', '.join(EVALUATORS)}, or your own as file.py:Class.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the evaluator's class.")

    @model_validator(mode="after")
    def _is_there(self) -> EvaluatorConfig:
        if self.name not in EVALUATORS and ":" not in self.name:
            raise ValueError(
                f'name: {self.name!r} is none of {", ".join(EVALUATORS)}; one of your own is named as "file.py:Class" '
                'or "module:Class"'
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TargetConfig:
    """What is to be reached: arms are compared by the tokens that they take to it."""

    metric: str = Field(default="heldout.source", min_length=1, description="A score, as EVALUATOR.NAME.")
    value: float | None = Field(
        default=None, description="The score to reach; null: what the baseline has at its end, seed by seed."
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InfluenceConfig:
    """The influence check: whether a trace's value foretells what training on it does."""

    traces: int = Field(default=256, ge=8, description="Traces that are tried, one step of training each.")
    learning_rate: float = Field(default=0.1, gt=0, description="Of that one step of plain gradient descent.")
    reference_tokens: int = Field(default=4096, ge=64, description="Held-out tokens whose loss is measured.")
    arm: str | None = Field(
        default=None, description="The arm whose traces and student are taken; null: the first one with thoughts."
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AblationConfig:
    """`ablation:` in the config: what `thoughtmill ablate` trains on every arm, and what it measures."""

    arms: tuple[str, ...] = Field(
        default=("raw", "uniform", "adaptive", "shuffled"),
        description="Control arms, by the names of `thoughtmill arms`.",
    )
    outputs: dict[str, str] = Field(
        default_factory=dict, description="Finished outputs of your own that are trained on as well, by a name."
    )
    whole_arms: bool = Field(
        default=False,
        description="Train on all that an arm has, and again on what it has less of; false: cut all to the sequences "
        "of raw.",
    )
    baseline: str = Field(default="raw", description="The arm that the others are compared with.")
    model: StudentConfig = Field(default_factory=StudentConfig, description="The student.")
    tokens: int = Field(
        default=10_000_000, gt=0, description="Training tokens of each student, thoughts and padding counted."
    )
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="A student for each, of weights and order."
    )
    batch_tokens: int = Field(default=8192, gt=0, description="Tokens of one step.")
    micro_batch_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Tokens of one forward pass, where memory doesn't hold a step's; null: a step's.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: for the matrices of the layers, at AdamW's size of step; AdamW for the rest.",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="After the warm-up.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled, on matrices.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Longer gradients are cut to this length.")
    warmup_steps: int = Field(default=100, ge=0, description="Steps in which the learning rate rises from 0.")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant",
        description="The learning rate after the warm-up. One that falls makes what is reached early hang on the end.",
    )
    average_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Evaluators ask the running mean of the weights, of which each step keeps this share; null: the "
        "weights as they are. It takes the noise of a constant learning rate out of the curves.",
    )
    evaluators: tuple[EvaluatorConfig, ...] = Field(
        default=(EvaluatorConfig(name="heldout"), EvaluatorConfig(name="hard_tokens")),
        min_length=1,
        description="What students are asked.",
    )
    eval_every: int | None = Field(
        default=None, gt=0, description="Training tokens between evaluations; null: a twentieth of `tokens`."
    )
    target: TargetConfig = Field(default_factory=TargetConfig, description="What is to be reached.")
    device: str = Field(
        default="auto", min_length=1, description="auto: a GPU where there is one; or as torch names it."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: of the forward pass; weights stay in float32."
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one student.")
    parallel: int | None = Field(
        default=None, ge=1, description="Students trained side by side; null: as many as cores or GPUs allow."
    )
    influence: InfluenceConfig | None = Field(default=None, description="The influence check; null: none.")

    @model_validator(mode="after")
    def _fits(self) -> AblationConfig:
        names = [*self.arms, *self.outputs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"arms: {name!r} is there more than once, outputs included")
            if not name or name in (".", "..") or set("/\\\0:") & set(name):
                raise ValueError(f"outputs: {name!r} is no name of a folder")
        if self.baseline not in names:
            raise ValueError(f"baseline: {self.baseline!r} is not one of {', '.join(names) or 'no arms'}")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: {list(self.seeds)} must differ and be at least 0")
        evaluators = [evaluator.name for evaluator in self.evaluators]
        if len(set(evaluators)) != len(evaluators):
            raise ValueError(f"evaluators: {', '.join(evaluators)} must differ")
        if self.influence is not None and self.influence.arm not in (None, *names):
            raise ValueError(f"ablation.influence.arm: {self.influence.arm!r} is not one of {', '.join(names)}")
        return self

    @property
    def evaluation_tokens(self) -> int:
        """Training tokens from one point of a curve to the next."""
        return self.eval_every or max(1, self.tokens // 20)

    def rows_of_step(self, sequence_length: int) -> tuple[int, int]:
        """How many sequences a step has, and how many of them one forward pass.

        Raises:
            RequestError: not even one.
        """
        found: list[int] = []
        for key in ("batch_tokens", "micro_batch_tokens"):
            tokens = getattr(self, key)
            if tokens is not None and tokens < sequence_length:
                raise RequestError(f"ablation.{key}: {tokens} is less than one sequence of {sequence_length} tokens")
            found.append((tokens or self.batch_tokens) // sequence_length)
        return found[0], min(found)

    def students_at_once(self, gpus: int) -> int:
        """How many are trained side by side, on a machine with so many GPUs."""
        if self.parallel is not None:
            return self.parallel
        if gpus and self.device in ("auto", "cuda"):
            return gpus
        return max(1, len(os.sched_getaffinity(0)) // self.threads)
