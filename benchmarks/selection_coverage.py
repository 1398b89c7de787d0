"""How often the 95% intervals of the account hold the truth, on simulated documents of unequal sizes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from rich.console import Console
from rich.table import Table

from sharding.intervals import mean_of_segments

DOCUMENTS = (5, 10, 30, 100)
CORRELATIONS = (0.0, 0.5)
"""Of two segments of a document."""

DRAWS = 2_000
DEVIATION_NATS, TRUE_NATS = 5.0, 1.0


def student3(random: np.random.Generator, size: int) -> np.ndarray:
    return random.standard_t(3, size) / np.sqrt(3)


def skewed(random: np.random.Generator, size: int) -> np.ndarray:
    return random.exponential(1, size) - 1


NOISE: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, size: random.normal(0, 1, size),
    "Student's t of 3": student3,
    "exponential": skewed,
}


def intervals_cover(console: Console) -> dict[str, float]:
    """Lowest and highest coverage over all cases with normal noise, and the lowest of the others."""
    table = Table("documents", "correlation", *NOISE, title=f"Coverage of 95% intervals, {DRAWS:,} draws each")
    found: dict[str, list[float]] = {name: [] for name in NOISE}
    for documents, correlation in product(DOCUMENTS, CORRELATIONS):
        for name in NOISE:
            found[name].append(coverage(documents, correlation, name))
        table.add_row(str(documents), str(correlation), *(f"{cover[-1]:.3f}" for cover in found.values()))
    console.print(table)
    return {
        "intervals_cover": min(found["normal"]),
        "intervals_cover_most": max(found["normal"]),
        "intervals_cover_heavy_or_skewed": min(min(found[name]) for name in NOISE if name != "normal"),
    }


def coverage(documents: int, correlation: float, noise: str) -> float:
    """Of one case; a document has 1 to 30 segments, 4 in the mean."""
    random, draw = np.random.default_rng([documents, int(10 * correlation)]), NOISE[noise]
    held = 0
    for _ in range(DRAWS):
        segments = random.geometric(0.25, documents).clip(max=30)
        of_document = np.repeat(np.arange(documents), segments)
        own = np.sqrt(1 - correlation) * draw(random, len(of_document))
        nats = TRUE_NATS + DEVIATION_NATS * (np.sqrt(correlation) * draw(random, documents)[of_document] + own)
        found = mean_of_segments(segments, np.bincount(of_document, nats), fewest=2)
        held += found.low is not None and found.high is not None and found.low <= TRUE_NATS <= found.high
    return held / DRAWS
