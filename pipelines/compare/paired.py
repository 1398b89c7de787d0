"""The difference between two runs' gains, over the segments that both thought about. Pure.

What a segment gains depends on the segment far more than on the run. So runs are compared segment by segment, where
both have tried the same one: the differences are averaged over documents as `sharding.intervals` does, and are held
against what chance alone would say of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from augment.selection.account import kept_nats
from sharding.hashing import Purpose, hash64
from sharding.intervals import FEWEST_DOCUMENTS, Mean, mean_of_segments
from sharding.records.types import Candidate

FLIPS = 2_000
"""How often the signs of the documents' differences are drawn for the range of chance."""

Gain = Callable[[Sequence[Candidate]], float | None]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What another run's traces gain beyond the first one's, on the same segments.

    Attributes:
        first, other: the mean gain of each on these segments, nats per segment.
        mean: of other less first, with its 95% interval over documents; None of too few.
        chance: where 95% of such means lie if the runs are alike: the signs of the documents' sums drawn at random;
            None of too few documents.
    """

    first: float
    other: float
    mean: Mean
    chance: tuple[float, float] | None


def without_choice(candidates: Sequence[Candidate]) -> float | None:
    """What the traces of a segment that passed the gates gain on average beyond controls; None where it isn't known."""
    nets = [(c.gain_nats or 0.0) - (c.control_nats or 0.0) for c in candidates if c.gain_nats is not None]
    return statistics.fmean(nets) if nets else None


GAINS: Mapping[str, Gain] = {"all that passed": without_choice, "kept": kept_nats}
"""What is compared: the traces that passed the gates, no choice made; and those that were kept."""


def by_segment(candidates: Sequence[Candidate]) -> dict[tuple[str, int], list[Candidate]]:
    """(segment, tokens of it that the generator saw) → its candidates.

    What was shown belongs to it: the rest of the segment is what the traces were tried on.
    """
    found: dict[tuple[str, int], list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault((candidate.segment_id, candidate.shown_tokens), []).append(candidate)
    return found


def difference(first: Sequence[Candidate], other: Sequence[Candidate], gain: Gain) -> Difference | None:
    """The difference of the gain on the segments that both have tried and valued; None where there are none.

    Args:
        first, other: candidates of the two runs, from as many of their parts as were read.
        gain: of the candidates of a segment.
    """
    mine, theirs = by_segment(first), by_segment(other)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for segment in mine.keys() & theirs.keys():
        before, after = gain(mine[segment]), gain(theirs[segment])
        if before is not None and after is not None:
            pairs.setdefault(segment[0].rpartition("#")[0], []).append((before, after))
    if not pairs:
        return None
    documents = sorted(pairs)  # sums of floats are the same whatever the order of the records
    sizes = np.array([len(pairs[name]) for name in documents], np.float64)
    sums = np.array([sorted(pairs[name]) for name in documents], object)
    totals = np.array([[sum(column) for column in zip(*one, strict=True)] for one in sums.tolist()], np.float64)
    differences = totals[:, 1] - totals[:, 0]
    low, high = _by_chance(sizes, differences, documents)
    few = len(documents) < FEWEST_DOCUMENTS
    return Difference(
        first=float(totals[:, 0].sum() / sizes.sum()),
        other=float(totals[:, 1].sum() / sizes.sum()),
        mean=mean_of_segments(sizes, differences),
        chance=None if few else (low, high),
    )


def _by_chance(sizes: np.ndarray, differences: np.ndarray, documents: Sequence[str]) -> tuple[float, float]:
    """Where 95% of the means lie if a document's difference is as likely to be the other way round."""
    random = np.random.default_rng(hash64(Purpose.REPORT, 0, "\0".join(documents)))
    signs = random.choice((-1.0, 1.0), (FLIPS, len(documents)))
    low, high = np.quantile(signs @ differences / sizes.sum(), (0.025, 0.975)).tolist()
    return low, high
