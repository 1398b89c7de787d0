"""What every benchmark ends with: the machine and versions its figures hold for, and the figures as one JSON object."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table


def conclude(console: Console, name: str, figures: Mapping[str, Any], packages: tuple[str, ...]) -> None:
    """Print the machine with the versions of those packages that are installed, and the figures as the last line.

    Args:
        figures: numbers are given with four significant digits; None where a part found nothing.
    """
    console.print(platform.machine(), os.cpu_count(), "cores", *_versions(packages))
    rounded = {key: float(f"{x:.4g}") if isinstance(x, float) else x for key, x in figures.items()}
    print(json.dumps({"name": name, "figures": rounded}))


def print_figures(console: Console, title: str, figures: Mapping[str, Any]) -> None:
    """Print figures as a table, for benchmarks that have nothing to show beside them."""
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    console.print(table)


def _versions(packages: tuple[str, ...]) -> Iterator[str]:
    for package in packages:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
