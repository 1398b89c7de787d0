"""The configuration that an output was made with: from its manifests, and from what it keeps beside its corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import yaml_tree
from pipelines.report.facts import Stages
from pipelines.secrets import without_secrets
from sharding import storage
from sharding.errors import MillError
from sharding.storage.output import Output

DERIVED = ("holdback", "scorer")
"""Sections of a manifest's config that follow from the others."""

MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Section:
    """A section of the config: its name, and (key, value) of all that is in it."""

    name: str
    rows: Sequence[tuple[str, str]]


def effective(output: str, stages: Stages) -> dict[str, Any]:
    """The config that the finished stages were made with, defaults included, as a tree without secrets.

    What the manifests say counts; what decides nothing of a result, such as how an engine is fed, is taken from the
    output's `config.yaml` where there is one.
    """
    tree = _kept(output)
    for stage in stages.values():
        if stage is not None:
            tree |= {name: section for name, section in stage.config.items() if name not in DERIVED}
    return without_secrets(tree)


def _kept(output: str) -> dict[str, Any]:
    url = Output(output).config
    if not storage.exists(url):
        return {}
    try:
        tree = yaml_tree.parse(storage.read_bytes(url, MAX_BYTES).decode(errors="replace"), url)
    except MillError:
        return {}  # anyone's file; the manifests say what matters
    return dict(tree) if isinstance(tree, dict) else {}


def sections(tree: Mapping[str, Any]) -> list[Section]:
    """The tree as the report shows it: what stands alone first, then a section for each."""
    alone = [(name, shown(value)) for name, value in tree.items() if not _has_keys(value)]
    return [
        *([Section("the run", alone)] if alone else []),
        *(Section(name, list(flat(value).items())) for name, value in sorted(tree.items()) if _has_keys(value)),
    ]


def flat(tree: Any, path: str = "") -> dict[str, str]:
    """Dotted key → value as text. Entries of a list that have names stand under their names, whatever their order."""
    if isinstance(tree, list) and _has_keys(tree):
        tree = {str(entry.get("name") or place): entry for place, entry in enumerate(tree)}
    if not isinstance(tree, Mapping) or not tree:
        return {path: shown(tree)}
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def shown(value: Any) -> str:
    """A value as a config has it, on one line."""
    return value if isinstance(value, str) and value.strip() == value != "" else json.dumps(value, ensure_ascii=False)


def _has_keys(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(entry, Mapping) for entry in value)
    return isinstance(value, Mapping) and bool(value)
