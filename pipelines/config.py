"""The root config: one YAML file is one run.

The sections are dataclasses beside the code they configure; this module composes them, reads YAML and `--set`
overrides, and turns every mistake into an error that names the full key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from augment.dispatch import FeedingConfig
from augment.engines import ModelConfig, SamplingConfig
from augment.selection import SelectConfig
from augment.thoughts import ClosingConfig
from difficulty.config import DifficultyConfig
from difficulty.tiers import BudgetConfig, ModelPrice
from sharding import shard_io
from sharding.config import STRICT
from sharding.errors import RequestError
from sharding.layout import Layout
from sharding.packing import PackConfig
from sharding.sources import Source, SourceConfig, misplaced_key


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LedgerConfig:
    """Where finished generations are kept, and when they become durable."""

    path: str | None = Field(
        default=None, description="Folder of the ledger, shared by runs if you like; null: `ledger` in the output."
    )
    flush_rows: int = Field(default=256, gt=0, description="Write a ledger part after this many generations.")
    flush_seconds: float = Field(default=10.0, gt=0, description="Write a ledger part at least this often, in seconds.")
    max_failed_fraction: float = Field(
        default=0.01, ge=0, le=1, description="More failed requests than this share stop the run."
    )


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
    output: str = Field(min_length=1, description="Folder of the results, in any fsspec store.")
    scored: str | None = Field(
        default=None, min_length=1, description="Output of another run whose scores this one uses; null: its own."
    )
    tokenizer: str = Field(min_length=1, description="The training tokenizer: a folder, fetched model or hub id.")
    difficulty: DifficultyConfig
    models: dict[str, ModelConfig] = Field(default_factory=dict, description="The generators, by a name of your own.")
    budget: BudgetConfig
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    closing: ClosingConfig = Field(default_factory=ClosingConfig)
    feeding: FeedingConfig = Field(default_factory=FeedingConfig)
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    layout: Layout = Field(default="after_document", description="Where thoughts stand relative to the source.")
    pack: PackConfig
    card: CardConfig = Field(default_factory=CardConfig)

    @property
    def ledger_url(self) -> str:
        """The folder of the ledger."""
        return self.ledger.path or shard_io.join(self.output, "ledger")

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
    def _weights_fit(self) -> MillConfig:
        names = [source.config.name for source in self.all_sources]
        for name in self.pack.source_weights:
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
    def _scorer_suffices(self) -> MillConfig:
        if self.difficulty.scorer != "none":
            return self
        thinking = [tier for tier in self.budget.tiers if tier.model is not None]
        if thinking and self.budget.policy == "adaptive":
            raise ValueError(
                "budget.policy: adaptive needs a scorer, and difficulty.scorer is none; name uniform or fixed"
            )
        gain = self.select.value_name in ("continuation_gain", "self_gain")
        if gain and any(self.select.values_tier(tier.samples) for tier in thinking):
            raise ValueError(f"select.value: {self.select.value_name} needs a scorer, and difficulty.scorer is none")
        if thinking and self.layout == "at_hard_span":
            raise ValueError("layout: at_hard_span needs a scorer, and difficulty.scorer is none; name another layout")
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


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e9 is a number (YAML 1.1 reads it as text), and a whole number when it is one."""


_Loader.add_implicit_resolver(
    "tag:thoughtmill,number", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = float(loader.construct_scalar(node))
    return int(value) if value.is_integer() else value


_Loader.add_constructor("tag:thoughtmill,number", _number)


def load(path: str, overrides: Sequence[str] = ()) -> MillConfig:
    """The config of a YAML file with `key.path=value` overrides on top.

    Raises:
        RequestError: the file is absent or no YAML, or a key is unknown, of the wrong type or out of range.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise RequestError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the config {path} is not UTF-8 text: {error}") from error
    tree = _parse_yaml(text, path)
    if not isinstance(tree, dict):
        raise RequestError(f"the config {path} holds {type(tree).__name__}, not a mapping of keys")
    for override in overrides:
        _apply(tree, override)
    return from_mapping(tree, path)


def from_mapping(tree: Mapping[str, Any], origin: str = "config") -> MillConfig:
    """The validated config of a nested mapping; errors name `origin`.

    Raises:
        RequestError: as `load`.
    """
    try:
        # JSON mode: lists become the tuples of the frozen dataclasses while every other type stays strict.
        return _adapter().validate_json(json.dumps(tree, default=_refuse_value))
    except pydantic.ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors(include_url=False))
        raise RequestError(f"{origin}: the config is not valid:\n{problems}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """A config or section as plain JSON values, defaults included."""
    return json.loads(TypeAdapter(type(config)).dump_json(config))


def dump(config: MillConfig) -> str:
    """The resolved config as YAML that `load` reads back."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def price_of(model: ModelConfig) -> ModelPrice:
    """A model's price, as the budget counts it."""
    return ModelPrice(
        dollars_per_million_tokens=model.dollars_per_million_tokens, tokens_per_gpu_second=model.tokens_per_gpu_second
    )


def _adapter() -> TypeAdapter[MillConfig]:
    return TypeAdapter(MillConfig)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{origin} is not valid YAML: {error}") from error


def _refuse_value(value: Any) -> Any:
    raise RequestError(f"the config holds {value!r} of type {type(value).__name__}; quote it to make it text")


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RequestError(f"--set {override!r}: write it as key.path=value")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        node = _child(node, key, ".".join(keys[: depth + 1]))
    value = _parse_yaml(text, f"--set {path}")
    if isinstance(node, list):
        node[_index(node, keys[-1], path)] = value
    else:
        node[keys[-1]] = value


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, key, path)]
    else:
        child = node.setdefault(key, {})
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise RequestError(f"--set {path}: holds {child!r}, which has no keys under it")
    return child


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise RequestError(f"--set {path}: the list has entries 0 to {len(node) - 1}")
    return int(key)


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    kind = problem["type"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key; allowed here: {', '.join(_keys_at(problem['loc'][:-1]))}"
    if kind in ("missing", "missing_argument"):
        return f"{path}: is required"
    if kind == "value_error" and (not path or "." in message.split(":")[0]):
        return message  # a check across sections names its own keys
    shown = repr(problem["input"])
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return f"{path}: {shown} is not allowed: {message}"


def _keys_at(location: Sequence[Any]) -> list[str]:
    """The keys the section at `location` allows."""
    kind: Any = MillConfig
    for part in location:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[part]
        elif isinstance(part, int | str):
            kind = _section_in(kind)
        if isinstance(kind, types.UnionType):
            kind = _section_in(kind)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _section_in(kind: Any) -> Any:
    """The section that an optional, a list or a mapping of sections holds; anything else as it is."""
    return next((member for member in typing.get_args(kind) if dataclasses.is_dataclass(member)), kind)
