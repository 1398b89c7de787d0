"""Reading a config: YAML and `--set`, and every mistake as an error that names key, value and way out."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import TypeAdapter

from difficulty.budget.tiers import NUMBERS
from pipelines import yaml_tree
from pipelines.config import MillConfig
from pipelines.secrets import without_secrets
from sharding import storage
from sharding.errors import RequestError, similar

MAX_CONFIG_BYTES = 1 << 20


def load(path: storage.Location, overrides: Sequence[str] = ()) -> MillConfig:
    """The config of a YAML file with `key.path=value` overrides on top.

    Raises:
        RequestError: the file is absent or no YAML, or a key is unknown, of the wrong type or out of range.
    """
    path = os.fspath(path)
    tree = yaml_tree.parse(_read(path), path)
    if not isinstance(tree, dict):
        what = "nothing" if tree is None else type(tree).__name__
        raise RequestError(f"the config {path} holds {what}, not a mapping of keys")
    for override in overrides:
        _apply(tree, override)
    _switch_unit(tree, [override.partition("=")[0] for override in overrides])
    return from_mapping(tree, path)


def from_mapping(tree: Mapping[str, Any], origin: str = "config") -> MillConfig:
    """The validated config of a nested mapping; errors name `origin`.

    Raises:
        RequestError: as `load`.
    """
    tree = yaml_tree.with_home(tree)
    try:
        # JSON mode: lists become the tuples of the frozen dataclasses while every other type stays strict.
        return _adapter().validate_json(json.dumps(tree, default=_refuse_value))
    except pydantic.ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors(include_url=False))
        raise RequestError(f"{origin}: the config is not valid:\n{problems}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """A config or section as plain JSON values, defaults included."""
    return json.loads(TypeAdapter(type(config)).dump_json(config))


def dump(config: MillConfig | Mapping[str, Any]) -> str:
    """The resolved config, also as `to_mapping` gives it, as YAML that `load` reads back."""
    tree = config if isinstance(config, Mapping) else to_mapping(config)
    return yaml.dump(_literal(tree), Dumper=yaml_tree.Dumper, sort_keys=False, allow_unicode=True)


def _adapter() -> TypeAdapter[MillConfig]:
    return TypeAdapter(MillConfig)


def _read(path: str) -> str:
    """The text of a config: UTF-8, whatever the locale."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise RequestError(f"the config {path} is larger than {MAX_CONFIG_BYTES:,} bytes: is it a config?")
        if b"\0" in data:
            raise RequestError(
                f"the config {path} is not UTF-8 text: it holds zero bytes, as UTF-16 does; save it as UTF-8"
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the config {path} is not UTF-8 text: {error}; save it as UTF-8") from error


def _literal(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {yaml_tree.literal(key): _literal(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_literal(value) for value in tree]
    return yaml_tree.literal(tree) if isinstance(tree, str) else tree


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
    value = yaml_tree.parse(text, f"--set {path}")
    if isinstance(node, list):
        node[_index(node, keys[-1], path)] = value
    else:
        node[keys[-1]] = value


def _switch_unit(tree: dict[str, Any], overridden: Sequence[str]) -> None:
    """A budget that is set in one unit takes the place of the file's in another: a run has one."""
    budget = tree.get("budget")
    named = [number for number in NUMBERS if f"budget.{number}" in overridden]
    if not isinstance(budget, dict) or not any(budget.get(number) is not None for number in named):
        return
    for number in NUMBERS:
        if number not in named:
            budget.pop(number, None)


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
        allowed = _keys_at(problem["loc"][:-1])
        return f"{path}: unknown key; allowed here: {', '.join(allowed)}{similar(str(problem['loc'][-1]), allowed)}"
    if kind in ("missing", "missing_argument"):
        return f"{path}: is required"
    if kind == "value_error" and (not path or "." in message.split(":")[0]):
        return message  # a check across sections names its own keys
    shown = _as_written(without_secrets(problem["input"]))
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    if kind == "string_type" and isinstance(problem["input"], int | float):
        message += "; quote it to make it text"
    return f"{path}: {shown} is not allowed: {message}"


def _as_written(value: Any) -> str:
    """A value as YAML has it, on one line; texts in quotes, so that their ends are seen."""
    if value is None or isinstance(value, dict | list | tuple | bool):
        try:
            tree = list(value) if isinstance(value, tuple) else value
            text: str = yaml.dump(_literal(tree), Dumper=yaml_tree.Dumper, default_flow_style=True, width=1000)
        except yaml.YAMLError:
            return repr(value)
        return text.removesuffix("\n").removesuffix("\n...")
    return repr(value)


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
