"""Pieces of Markdown for the card's template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(rows: Sequence[Iterable[object]], *header: str) -> str:
    """A Markdown table; nothing where there are no rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def listing(values: Mapping[str, Any]) -> str:
    """The values that say something, as "key value, key value"."""
    return ", ".join(
        f"{key.replace('_', ' ')} {_shown(value)}" for key, value in values.items() if value not in (None, "", [], {})
    )


def share(part: float, whole: float) -> str:
    """A share in per cent."""
    return f"{part / whole:.2%}" if whole else "0.00%"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return f"({listing(value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)
