"""How often the interval of a paired difference of gains holds the truth, and how often chance alone leaves its range.

    python -m benchmarks.paired_gains [TRIALS]

Two runs think about the same segments. What a segment gains differs between segments with a standard deviation of 5
nats, which both runs share; what the second run changes differs between documents and between segments with one of 1
nat each. Documents have one to six segments. Held is: the 95% interval of the mean difference has the change that was
put in. Left is: where the change is 0, the mean lies outside of what `thoughtmill compare` gives for chance alone. The
last line is one JSON object with the figures.
"""

from __future__ import annotations

import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from pipelines.compare.paired import Difference, difference, without_choice
from sharding.records.types import Candidate

TRIALS = 2_000
DOCUMENTS = (8, 20, 60)
CHANGES = (0.0, 0.4)
SHARED_NATS, CHANGED_NATS = 5.0, 1.0


def candidates(gains: list[np.ndarray], shown_tokens: int = 8) -> list[Candidate]:
    """A kept candidate for each segment; gains: by document, (segments,) nats beyond controls."""
    return [
        Candidate(
            doc_id=f"d{document}",
            segment_index=index,
            key=f"{document}-{index}",
            sample=0,
            tier="brief",
            model="m",
            prompt="p",
            closed="natural",
            finish_reason="stop",
            thought_tokens=9,
            text="",
            input_ids=np.empty(0, np.uint16),
            shown_tokens=shown_tokens,
            gain_nats=nats,
            control_nats=0.0,
            kept=True,
            reasons=[],
        )
        for document, of_document in enumerate(gains)
        for index, nats in enumerate(of_document.tolist())
    ]


def trial(random: np.random.Generator, documents: int, change: float) -> Difference:
    """The difference that is found between two made-up runs."""
    first, other = [], []
    for segments in random.integers(1, 7, documents).tolist():
        base = random.normal(0, SHARED_NATS, segments)
        changed = change + random.normal(0, CHANGED_NATS) + random.normal(0, CHANGED_NATS, segments)
        first.append(base)
        other.append(base + changed)
    found = difference(candidates(first), candidates(other), without_choice)
    assert found is not None
    return found


def holds(found: Difference, change: float) -> bool:
    """Whether the interval has it."""
    low, high = found.mean.low, found.mean.high
    return low is not None and high is not None and low <= change <= high


def leaves(found: Difference) -> bool:
    """Whether the mean lies outside of what chance alone gives."""
    return found.chance is not None and not found.chance[0] <= found.mean.mean <= found.chance[1]


def main(trials: int = TRIALS) -> None:
    console = Console()
    table = Table("documents", "change, nats", "held", "left", title="Paired differences of gains")
    figures: dict[str, float] = {}
    for documents in DOCUMENTS:
        for change in CHANGES:
            random = np.random.default_rng(documents)
            found = [trial(random, documents, change) for _ in range(trials)]
            held = float(np.mean([holds(one, change) for one in found]))
            figures[f"held_{documents}_{change:g}"] = held
            left = ""
            if not change:
                figures[f"left_{documents}"] = float(np.mean([leaves(one) for one in found]))
                left = f"{figures[f'left_{documents}']:.1%}"
            table.add_row(str(documents), f"{change:g}", f"{held:.1%}", left)
    console.print(table)
    conclude(console, "paired_gains", figures, ("numpy", "scipy"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
