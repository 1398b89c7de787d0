"""The root config: one YAML file is one run.

The sections are dataclasses beside the code they configure; this module composes them and checks what two of them have
to agree on. `yaml_config` reads them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from augment.contexts.config import RetrievalConfig
from augment.engines.config import ModelConfig, SamplingConfig
from augment.feeding.config import FeedingConfig
from augment.recipes import BUILT_IN, SINGLE, STEPS
from augment.requests.closing import ClosingConfig
from augment.selection.config import SelectConfig
from augment.selection.values import JUDGED
from difficulty.budget.policies import policy_module
from difficulty.budget.tiers import POLICIES, BudgetConfig
from difficulty.config import DifficultyConfig
from pipelines.ablation.config import AblationConfig
from sharding.config import STRICT
from sharding.packing.config import Layout, PackConfig
from sharding.packing.epochs import why_one_trace
from sharding.sources import NearCopiesConfig, Source, SourceConfig, misplaced_key
from sharding.storage.output import Output


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LedgerConfig:
    """Where finished generations are kept, and when they become durable."""

    path: str | None = Field(
        default=None,
        description="Folder of the ledger, shared by runs if you like; null: `ledger` in the output, or in round.of.",
    )
    flush_rows: int = Field(default=256, gt=0, description="Write a ledger part after this many generations.")
    flush_seconds: float = Field(default=10.0, gt=0, description="Write a ledger part at least this often, in seconds.")
    max_failed_fraction: float = Field(
        default=0.01, ge=0, le=1, description="More failed requests than this share stop the run."
    )
    max_empty_fraction: float = Field(
        default=0.5, ge=0, le=1, description="More generations without any text than this share stop the run."
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundConfig:
    """A further round on the same documents, for another scorer."""

    of: str = Field(min_length=1, description="Output of the round before, whose ledger this one goes on with.")


Workers = Literal["auto"] | Annotated[int, Field(ge=1)]
"""As many worker processes as pay, or so many: see `pipelines.workers`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeliveryConfig:
    """A later delivery of documents to a finished corpus; `thoughtmill append` writes this section."""

    of: str = Field(min_length=1, description="Output whose corpus the documents join.")
    number: int = Field(ge=1, le=99_999, description="Which delivery it is, from 1.")
    allocation: Literal["first", "own"] = Field(
        default="first",
        description="first: the tiers begin at the cut points of the output it joins; own: a plan for its own budget.",
    )


TrainingContentSection = Literal["1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.1", "3.2", "3.3"]
"""A section of the template: see `pipelines.card.training_content`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CardConfig:
    """What only the owner of the data knows; goes into the dataset card."""

    name: str = Field(default="thinking-augmented corpus", min_length=1, description="Title of the dataset.")
    language: tuple[str, ...] = Field(default=(), description="Language codes of the text, such as en.")
    license: str | None = Field(default=None, description="Licence of the corpus, as the hub spells it.")
    source_datasets: tuple[str, ...] = Field(default=(), description="Hub ids of the source datasets.")
    generator_license: str | None = Field(
        default=None, description="Licence of the generators, and what it says of their outputs, in words."
    )
    biases: str | None = Field(default=None, description="Biases of the source text that are known, in words.")
    personal_information: str | None = Field(
        default=None, description="Personal or sensitive information in the source text, in words."
    )
    training_content: dict[TrainingContentSection, str] = Field(
        default_factory=dict,
        description="For the EU's summary of training content: section of the template, such as 2.3, → what to say.",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MillConfig:
    """Everything a run needs."""

    source: SourceConfig | None = Field(default=None, description="Where the raw text is.")
    sources: tuple[SourceConfig, ...] = Field(
        default=(), description="Several places, each with a `name`, instead of `source`."
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="Exact copies of a text, over all sources: keep, or drop all but the first."
    )
    near_copies: NearCopiesConfig = Field(
        default_factory=NearCopiesConfig, description="Documents that are nearly the same, over all sources."
    )
    output: str = Field(min_length=1, description="Folder of the results, in any fsspec store.")
    scored: str | None = Field(
        default=None, min_length=1, description="Output of another run whose scores this one uses; null: its own."
    )
    round: RoundConfig | None = Field(
        default=None,
        description="Of a further round: score again, with a checkpoint in difficulty.model; null: the first.",
    )
    delivery: DeliveryConfig | None = Field(
        default=None, description="Of a later delivery to a finished corpus, made by `thoughtmill append`; null: none."
    )
    tokenizer: str = Field(min_length=1, description="The training tokenizer: a folder, fetched model or hub id.")
    difficulty: DifficultyConfig
    models: dict[str, ModelConfig] = Field(default_factory=dict, description="The generators, by a name of your own.")
    budget: BudgetConfig
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    closing: ClosingConfig = Field(default_factory=ClosingConfig)
    feeding: FeedingConfig = Field(default_factory=FeedingConfig)
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    retrieval: RetrievalConfig = Field(default_factory=RetrievalConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    layout: Layout = Field(default="after_document", description="Where thoughts stand relative to the source.")
    pack: PackConfig
    card: CardConfig = Field(default_factory=CardConfig)
    workers: Workers = Field(
        default="auto",
        description="Worker processes of Beam's local runner, in every stage: a number, or auto, which is as many as "
        "cores where there is enough to do, and one where it loads a model. Beam's own options come first.",
    )
    ablation: AblationConfig = Field(
        default_factory=AblationConfig, description="The small model that `thoughtmill ablate` trains on every arm."
    )

    @property
    def ledger_url(self) -> str:
        """The folder of the ledger."""
        return self.ledger.path or Output(self.output if self.round is None else self.round.of).ledger

    @property
    def gain_difficulty(self) -> DifficultyConfig:
        """The scorer that gains are measured with: that of the first stage, unless `select.gain.scorer` names one."""
        return self.difficulty if self.select.gain.scorer is None else DifficultyConfig(**self.select.gain.scorer)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """The sources with the keys they stand under."""
        if self.source is not None:
            return (Source("source", self.source),)
        return tuple(Source(f"sources.{i}", source) for i, source in enumerate(self.sources))

    @model_validator(mode="after")
    def _sources_fit(self) -> MillConfig:
        if self.source is not None and self.sources:
            raise ValueError("sources: there is a source as well; have either source or sources")
        if self.source is None and not self.sources:
            raise ValueError("source: is required, or sources for several")
        names = [source.name for source in self.sources]
        for i, name in enumerate(names):
            if not name:
                raise ValueError(f"sources.{i}.name: is required, to tell several sources apart")
            if name in names[:i]:
                raise ValueError(f"sources.{i}.name: {name!r} is the name of sources.{names.index(name)} already")
        for source in self.all_sources:
            if problem := misplaced_key(source.config):
                raise ValueError(f"{source.key}.{problem}")
        return self

    @model_validator(mode="after")
    def _near_copies_fit(self) -> MillConfig:
        if self.near_copies.action == "drop" and self.duplicates == "keep":
            raise ValueError(
                "near_copies.action: drop needs duplicates: drop, and duplicates is keep: an exact copy is as near as "
                "can be; set duplicates: drop, or near_copies.action: mark"
            )
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> MillConfig:
        names = [source.config.name for source in self.all_sources]
        # A delivery may bring documents of some of the sources; the weights are those of the whole corpus.
        for name in self.pack.source_weights if self.delivery is None else ():
            if name not in names:
                known = ", ".join(repr(name) for name in names)
                raise ValueError(f"pack.source_weights.{name}: no source has this name; the sources are {known}")
        return self

    @model_validator(mode="after")
    def _scored_elsewhere(self) -> MillConfig:
        if self.scored is not None and self.scored.rstrip("/") == self.output.rstrip("/"):
            raise ValueError(f"scored: {self.scored!r} is the output itself; name another run's, or leave it out")
        return self

    @model_validator(mode="after")
    def _round_of_another(self) -> MillConfig:
        if self.round is not None and self.round.of.rstrip("/") == self.output.rstrip("/"):
            raise ValueError(f"round.of: {self.round.of!r} is the output itself; a further round has one of its own")
        return self

    @model_validator(mode="after")
    def _scorer_suffices(self) -> MillConfig:
        if self.difficulty.scorer != "none":
            return self
        thinking = [tier for tier in self.budget.tiers if tier.model is not None]
        policy = self.budget.policy
        scored = ("difficulty", "gain")
        if thinking and policy_module(policy).AXIS in scored:
            others = " or ".join(name for name in POLICIES if policy_module(name).AXIS not in scored)
            raise ValueError(f"budget.policy: {policy} needs a scorer, and difficulty.scorer is none; name {others}")
        if thinking and self.layout == "at_hard_span":
            raise ValueError("layout: at_hard_span needs a scorer, and difficulty.scorer is none; name another layout")
        return self

    @model_validator(mode="after")
    def _gain_scorer_is_one(self) -> MillConfig:
        try:
            scorer = self.gain_difficulty.scorer
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["select.gain.scorer", *map(str, first["loc"])])
            raise ValueError(f"{key}: {first['msg']}; its keys are those of difficulty") from error
        gain = self.select.value_name in ("continuation_gain", "self_gain", *JUDGED)
        thinks = any(tier.model for tier in self.budget.tiers)
        if scorer == "none" and gain and thinks and self.select.values_traces(has_scorer=False):
            raise ValueError(f"select.value: {self.select.value_name} needs a scorer, and difficulty.scorer is none")
        return self

    @model_validator(mode="after")
    def _recipes_fit(self) -> MillConfig:
        for i, tier in enumerate(self.budget.tiers):
            key, known = f"budget.tiers.{i}", STEPS.get(tier.recipe)
            if tier.recipe not in (SINGLE, *BUILT_IN) and ":" not in tier.recipe:
                raise ValueError(
                    f"{key}.recipe: {tier.recipe!r} is none of {', '.join([SINGLE, *BUILT_IN])}; one of your own is "
                    'named as "file.py:name" or "module:name"'
                )
            for name, step in tier.steps.items():
                if known is not None and name not in known:
                    raise ValueError(f"{key}.steps.{name}: recipe {tier.recipe} has the steps {', '.join(known)}")
                if step.model is None or tier.model not in self.models:
                    continue
                if step.model not in self.models:
                    raise ValueError(f"{key}.steps.{name}.model: {step.model!r} is not one of models")
                wanted, given = self.models[step.model].accelerator, self.models[tier.model].accelerator
                if wanted != given:
                    raise ValueError(
                        f"{key}.steps.{name}.model: {step.model} wants the accelerator {wanted}, and the tier's model "
                        f"{tier.model} {given}: the calls of a recipe are made by one machine"
                    )
        return self

    @model_validator(mode="after")
    def _contraction_fits(self) -> MillConfig:
        name = self.budget.contraction_model
        if name is None:
            return self
        if name not in self.models:
            allowed = ", ".join(sorted(self.models)) or "none is defined"
            raise ValueError(f"budget.contraction_model: {name!r} is not one of models: {allowed}")
        room, tokens = self.models[name].max_model_len, self.budget.contraction_tokens
        if 2 * tokens >= room:
            raise ValueError(
                f"budget.contraction_tokens: {tokens} leaves no room in models.{name}.max_model_len={room} for a "
                "contraction, the one before it and a segment"
            )
        return self

    @model_validator(mode="after")
    def _retrieval_is_used(self) -> MillConfig:
        if self.retrieval.corpus is not None and not self.budget.retrieves:
            raise ValueError(
                f"retrieval.corpus: {self.retrieval.corpus!r} is set, and no tier shows passages: set the context "
                "of one to retrieved, or leave it out"
            )
        if self.retrieval.server is not None and not self.budget.retrieves:
            raise ValueError(
                f"retrieval.server: {self.retrieval.server.url!r} is set, and no tier shows passages: set the context "
                "of one to retrieved, or leave it out"
            )
        if self.budget.retrieves and self.difficulty.scorer == "none":
            raise ValueError(
                "difficulty.scorer: a tier shows passages on what is hard, which none doesn't tell; name a scorer"
            )
        return self

    @model_validator(mode="after")
    def _epochs_can_show_other_traces(self) -> MillConfig:
        why = why_one_trace({"keep": self.select.keep, "trim": self.select.trim, "shuffle": self.select.shuffle})
        if self.pack.trace_per_epoch > 1 and why is not None:
            raise ValueError(f"pack.trace_per_epoch: {self.pack.trace_per_epoch} epochs with other traces, and {why}")
        return self

    @model_validator(mode="after")
    def _judge_exists(self) -> MillConfig:
        if self.select.judge is not None and self.select.judge.model not in self.models:
            raise ValueError(f"select.judge.model: {self.select.judge.model!r} is not one of models")
        return self

    @model_validator(mode="after")
    def _models_exist(self) -> MillConfig:
        for i, tier in enumerate(self.budget.tiers):
            if tier.model is not None and tier.model not in self.models:
                allowed = ", ".join(sorted(self.models)) or "none is defined"
                raise ValueError(f"budget.tiers.{i}.model: {tier.model!r} is not one of models: {allowed}")
            if tier.model is not None and tier.max_tokens is not None:
                room = self.models[tier.model].max_model_len
                if tier.max_tokens >= room:
                    raise ValueError(
                        f"budget.tiers.{i}.max_tokens: {tier.max_tokens} leaves no room for a prompt in "
                        f"models.{tier.model}.max_model_len={room}"
                    )
        return self
