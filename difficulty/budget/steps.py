"""The state of a learned plan: the steps that every segment could take, counted by gain per cost, for any corpus.

Of the tiers of a segment only those on the upper concave hull of (cost, expected gain) can win: for each, some price of
a unit of the budget exists at which gain - price x cost is largest. Going up the hull is going in steps, each from a
tier to a dearer one and each with a slope, the gain per unit of cost, which falls from step to step. A plan buys every
step whose slope is above one price. So what it needs to know of the corpus is how many steps there are from each tier
to each other tier at each slope.

Everything here is integer counting, and bins are joined as those of `KeyCounts` are: parts merge in any order and
grouping to the same steps, bit for bit, and the state is at most `MAX_BINS` bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from difficulty.budget.histogram import KEY_BITS, LARGEST_NATS, difficulty_keys, joined_bins
from sharding.errors import MillError

MAX_TIERS = 32
"""With more, the pairs of tiers could fill the bins."""

LARGEST_GAIN_NATS = 1e9
"""More than any segment can gain; with it as the limit every sum fits its integer."""

MICRO = 1_000_000
"""Nats are added up as whole millionths, so that the order of addition never shows."""

_WAITING = 4096
"""Segments that are kept as they are before they are counted, since counting takes as long for one as for many."""

_COLUMNS = ("count", "gain_low", "gain_high", "deviation_low", "deviation_high", "difficulty")
"""What is known of the steps of a bin: how many, and sums over their segments: of the expected gain at the lower and at
the higher tier, of its standard deviation there, and of the difficulty mass; in millionths of a nat."""


class Climb(NamedTuple):
    """The steps of n segments up their hulls.

    Attributes:
        base: (n,) int64, the tier that a segment has before it takes a step: the cheapest, of several the best.
        tiers: (n, steps) int64, the tier after each step; -1 where there is none.
        slopes: (n, steps) float64, nats per unit of cost, positive and not ascending; 0 where there is none.
    """

    base: np.ndarray
    tiers: np.ndarray
    slopes: np.ndarray


def climb(gains_nats: np.ndarray, costs: np.ndarray) -> Climb:
    """The steps of segments up their hulls; only those that are expected to gain.

    Args:
        gains_nats: (n, tiers) float64, expected gain of each tier.
        costs: (tiers,) float64, cost of a segment at each tier.

    Raises:
        MillError: a gain is no number, or beyond LARGEST_GAIN_NATS.
    """
    wrong = ~(np.abs(gains_nats) <= LARGEST_GAIN_NATS)
    if wrong.any():
        raise MillError(f"expected gain of a segment: {gains_nats[wrong][0]} nats; allowed: {LARGEST_GAIN_NATS:.0e}")
    n, num_tiers = gains_nats.shape
    order = np.argsort(costs, kind="stable")
    gains, costs = gains_nats[:, order], costs[order]
    cheapest = int(np.searchsorted(costs, costs[0], side="right"))
    at = gains[:, :cheapest].argmax(axis=1)
    rows, base = np.arange(n), order[at]
    tiers = np.full((n, num_tiers - cheapest), -1, np.int64)
    slopes = np.zeros(tiers.shape)
    last = np.full(n, LARGEST_NATS)
    for step in range(tiers.shape[1]):
        further = costs[None, :] - costs[at][:, None]
        dearer = further > 0
        slope = np.where(dearer, gains - gains[rows, at][:, None], -np.inf)
        slope = np.divide(slope, further, out=slope, where=dearer)
        best = slope.argmax(axis=1)  # of equals the cheapest
        found = slope[rows, best] > 0
        if not found.any():
            return Climb(base, tiers[:, :step], slopes[:, :step])
        last = np.minimum(last, slope[rows, best])  # rounding must not make a later step the better one
        at = np.where(found, best, at)
        tiers[found, step], slopes[found, step] = order[at[found]], last[found]
    return Climb(base, tiers, slopes)


class GainSteps:
    """The steps of a corpus, and the tiers that its segments have before they take one.

    Mutable while it is filled; it compares by content. As JSON at most about 60 kB.

    Attributes:
        costs: cost of a segment at each tier, in the budget's unit.
        shift: log2 of the width of a bin in keys.
    """

    __slots__ = ("_bins", "_sums", "_waiting", "_waiting_rows", "costs", "shift")

    def __init__(self, costs: Sequence[float]) -> None:
        if len(costs) > MAX_TIERS:
            raise MillError(f"budget.tiers: {len(costs)} are too many to learn about; allowed: up to {MAX_TIERS}")
        self.costs = tuple(map(float, costs))
        self.shift = 0
        self._bins = np.empty(0, np.int64)
        self._sums = np.empty((0, len(_COLUMNS)), np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_rows = 0

    def __getstate__(self) -> dict[str, Any]:
        self._count()
        return {name: getattr(self, name) for name in self.__slots__}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GainSteps):
            return False
        self._count()
        other._count()
        return (
            (self.costs, self.shift) == (other.costs, other.shift)
            and np.array_equal(self._bins, other._bins)
            and np.array_equal(self._sums, other._sums)
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"GainSteps({self.num_segments} segments, {len(self.table().low)} bins)"

    def add(self, gains_nats: np.ndarray, deviations_nats: np.ndarray, difficulty_nats: np.ndarray) -> None:
        """Counts segments.

        Args:
            gains_nats: (n, tiers) float64, expected gain of each tier.
            deviations_nats: (n, tiers) float64, standard deviation of that expectation.
            difficulty_nats: (n,) float64.

        Raises:
            MillError: a gain is no number, or beyond LARGEST_GAIN_NATS.
        """
        found = climb(gains_nats, np.array(self.costs))
        rows = np.arange(len(gains_nats))
        low, high, slope = [found.base], [found.base], [np.full(len(rows), LARGEST_NATS)]
        of, at = [rows], found.base
        for tiers, slopes in zip(found.tiers.T, found.slopes.T, strict=True):
            there = np.flatnonzero(tiers >= 0)
            low.append(at[there])
            high.append(tiers[there])
            slope.append(slopes[there])
            of.append(there)
            at = np.where(tiers >= 0, tiers, at)
        row, from_, to = (np.concatenate(parts) for parts in (of, low, high))
        micro = [
            np.rint(np.minimum(nats, LARGEST_GAIN_NATS) * MICRO).astype(np.int64)
            for nats in (
                *(gains_nats[row, from_], gains_nats[row, to]),
                *(deviations_nats[row, from_], deviations_nats[row, to], difficulty_nats[row]),
            )
        ]
        keys = ((from_ * MAX_TIERS + to) << KEY_BITS) | difficulty_keys(np.concatenate(slope))
        self._waiting.append((keys, np.stack([np.ones(len(row), np.int64), *micro], axis=1)))
        self._waiting_rows += len(rows)
        if self._waiting_rows >= _WAITING:
            self._count()

    def merge(self, other: GainSteps) -> GainSteps:
        """The steps of the segments of both. Associative and commutative.

        Raises:
            MillError: their tiers cost otherwise.
        """
        if self.costs != other.costs:
            raise MillError(f"steps of a corpus: counted at other costs ({self.costs} and {other.costs})")
        for part in (self, other):
            part._count()
        merged = GainSteps(self.costs)
        merged.shift = max(self.shift, other.shift)
        for part in (self, other):
            merged._waiting.append((part._bins << part.shift, part._sums))
        merged._count()
        return merged

    def _count(self) -> None:
        if not self._waiting:
            return
        keys = np.concatenate([self._bins << self.shift, *(keys for keys, _ in self._waiting)])
        sums = np.concatenate([self._sums, *(sums for _, sums in self._waiting)])
        self._waiting, self._waiting_rows = [], 0
        widen, self._bins, self._sums = joined_bins(keys >> self.shift, sums)
        self.shift += widen

    @property
    def num_segments(self) -> int:
        table = self.table()
        return int(table.steps[table.low == table.high].sum())

    def table(self) -> StepTable:
        """What was counted, by columns."""
        self._count()
        pair, key = self._bins >> (KEY_BITS - self.shift), self._bins & ((1 << (KEY_BITS - self.shift)) - 1)
        sums = dict(zip(_COLUMNS, self._sums.T, strict=True))
        nats = {name: column / MICRO for name, column in sums.items() if name != "count"}
        return StepTable(low=pair // MAX_TIERS, high=pair % MAX_TIERS, bin=key, steps=sums["count"], **nats)

    def to_json(self) -> dict[str, Any]:
        """A JSON-safe dict: `bin_steps` are the differences between occupied bins, the first from 0."""
        self._count()
        return {
            "costs": list(self.costs),
            "shift": self.shift,
            "bin_steps": np.diff(self._bins, prepend=0).tolist(),
            **{name: column.tolist() for name, column in zip(_COLUMNS, self._sums.T, strict=True)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GainSteps:
        """What `to_json` wrote.

        Raises:
            MillError: the content is not what `to_json` writes.
        """
        try:
            steps = cls(data["costs"])
            steps.shift = int(data["shift"])
            steps._bins = np.cumsum(np.array(data["bin_steps"], np.int64))
            steps._sums = np.array([data[name] for name in _COLUMNS], np.int64).reshape(len(_COLUMNS), -1).T
            table = steps.table()
            tiers = len(steps.costs)
            if not 0 <= steps.shift <= KEY_BITS or len(steps._sums) != len(steps._bins):
                raise ValueError("its columns differ in length")
            if (np.diff(steps._bins) <= 0).any() or (table.low >= tiers).any() or (table.high >= tiers).any():
                raise ValueError("its bins are not those of its tiers")
            return steps
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MillError(f"steps of a corpus: malformed ({type(error).__name__}: {error})") from error


class StepTable(NamedTuple):
    """The bins of `GainSteps`: one entry a bin, in ascending order of (low, high, bin).

    Attributes:
        low, high: int64, the tiers before and after the step; the same for the tier that a segment has anyway.
        bin: int64, `key >> shift` of the slope.
        steps: int64, how many.
        gain_low, gain_high, deviation_low, deviation_high: float64 nats, sums over the segments at either tier.
        difficulty: float64 nats, sum over the segments.
    """

    low: np.ndarray
    high: np.ndarray
    bin: np.ndarray
    steps: np.ndarray
    gain_low: np.ndarray
    gain_high: np.ndarray
    deviation_low: np.ndarray
    deviation_high: np.ndarray
    difficulty: np.ndarray
