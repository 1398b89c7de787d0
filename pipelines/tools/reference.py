"""Every key of the config, as Markdown, from the dataclasses themselves: `python -m pipelines.tools.reference`.

Prints docs/reference.md; `--write PATH` writes it there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from pipelines.config import MillConfig

HEAD = """# Every key of the config

Made from the code by `python -m pipelines.tools.reference`; don't edit it. Examples with comments:
`thoughtmill init --list`. A key that isn't listed, a wrong type or an impossible combination is an error that names the
key, the value and what is allowed. `--set budget.dollars=100` overrides a key; entries of a list have numbers:
`--set budget.tiers.1.samples=4`.
"""

_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}


def render() -> str:
    """The page."""
    return HEAD + "".join(_section("", MillConfig, {})).rstrip() + "\n"


def _section(path: str, section: type[Any], described: dict[type[Any], str]) -> Iterator[str]:
    described[section] = path
    title = f"`{path}`" if path else "The top"
    yield f"\n## {title}\n\n{_about(section)}\n\n| key | type | default | what |\n|---|---|---|---|\n"
    hints = typing.get_type_hints(section)
    below: list[tuple[str, type[Any]]] = []
    for name, field in section.__pydantic_fields__.items():
        inner, suffix = _inner(hints[name])
        what = field.description or ""
        if inner is None:
            kind = _kind(hints[name]) + _limits(field)
        else:
            key = f"{path}.{name}".lstrip(".") + suffix
            what = what or _about(inner)
            if inner not in described:
                described[inner] = key
                below.append((key, inner))
            kind = f"{'list of ' if '.N' in suffix else ''}[section](#{_anchor(described[inner])})"
        yield f"| `{name}` | {kind} | {_default(field)} | {_cell(what)} |\n"
    for key, inner in below:
        yield from _section(key, inner, described)


def _about(section: type[Any]) -> str:
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def _inner(hint: Any) -> tuple[type[Any] | None, str]:
    """The section that a hint holds, and how its key goes on: for a list by number, for a mapping by name."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type[Any], hint), ""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    for argument in arguments:
        found, suffix = _inner(argument)
        if found is not None:
            return found, {tuple: ".N", dict: ".NAME"}.get(origin, "") + suffix
    return None, ""


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"mapping to {_kind(arguments[1])}"
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        Any: "anything",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _limits(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(limit, name, None) is not None
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if dataclasses.is_dataclass(value):
        return ""
    return f"`{json.dumps(to_jsonable_python(value), ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(key: str) -> str:
    """How a heading of a key is linked to: letters, digits, _ and - stay."""
    return "".join(c for c in key.lower() if c.isalnum() or c in "_-")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the page there")
    arguments = parser.parse_args()
    if arguments.write is None:
        print(render(), end="")  # noqa: T201
    else:
        arguments.write.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
