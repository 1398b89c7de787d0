"""A finished plan: which tier each segment gets, and what that is expected to cost.

`difficulty.budget` makes it, the augment stage asks it for every segment's tier. It is a few numbers, immutable and
picklable, so it travels to every worker as a side input; a segment's tier depends on its id and difficulty alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from difficulty.budget.histogram import (
    KEY_BITS,
    difficulty_key,
    difficulty_keys,
    difficulty_of_key,
    hash_key,
    hash_keys,
    lots,
)
from difficulty.budget.tiers import Unit
from sharding.errors import MillError

KEY_LIMIT = 1 << KEY_BITS
"""Above every key: the cut of a tier that no segment reaches."""


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """What a tier is expected to get, in the order of the config.

    Attributes:
        segments: expected number of segments; a whole number in all but the two tiers of a split bin.
        tokens: expected thinking tokens of those segments, all samples.
        spend: the same in the budget's unit.
        difficulty_nats: difficulty mass of those segments; under policies uniform and fixed their share by number.
        resolution: share of the difficulty the tier is expected to resolve.
    """

    name: str
    segments: float
    tokens: float
    spend: float
    difficulty_nats: float
    resolution: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """The one bin that is shared between two neighbouring tiers.

    Attributes:
        bin: the bin of keys, `key >> shift`.
        step: the upper of the two tiers, as an index into `Allocation.ladder`.
        share: the share of the bin's segments, drawn by the hash of their id, that gets the upper tier.
    """

    bin: int
    step: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The plan. Index `i` of a tier is its place in the config.

    Attributes:
        axis: what orders the segments: "difficulty" (adaptive), "hash" (uniform) or "none" (fixed).
        shift: log2 of the width in keys of a bin on that axis.
        ladder: the tiers that can be chosen, from the cheapest to the dearest.
        cuts: (len(ladder) - 1,) not descending; a segment whose bin is at `cuts[j]` or above gets at least
            `ladder[j + 1]`.
        split: the bin that straddles the budget, if one had to be shared.
        unit: what spend is counted in.
        target_spend: the budget.
        planned_spend: expected spend of the plan.
        spend_deviation: standard deviation of the spend that the plan comes to, for the lots drawn in the split bin;
            0 when nothing is left to the hash. It doesn't cover generations shorter or longer than expected.
        marginal_nats: nats that the last unit spent is expected to resolve (λ, the price of a unit of the budget).
        warnings: what the owner of the budget should know, in words.
    """

    policy: Literal["adaptive", "uniform", "fixed"]
    axis: Literal["difficulty", "hash", "none"]
    shift: int
    ladder: tuple[int, ...]
    cuts: tuple[int, ...]
    split: Split | None
    unit: Unit
    target_spend: float
    planned_spend: float
    spend_deviation: float
    marginal_nats: float
    tiers: tuple[TierPlan, ...]
    warnings: tuple[str, ...]

    def tier_of(self, segment_id: str, difficulty_nats: float) -> int:
        """The segment's tier.

        Under policy adaptive a segment never gets a cheaper tier than one in an easier bin. Within the split bin, and
        there only, the hash of the id decides.

        Raises:
            MillError: the difficulty is no number from 0 to LARGEST_NATS.
        """
        if self.axis == "none":
            return self.ladder[0]
        key = difficulty_key(difficulty_nats) if self.axis == "difficulty" else hash_key(segment_id)
        bin_ = key >> self.shift
        step = bisect_right(self.cuts, bin_)
        if self.split is not None and bin_ == self.split.bin:
            step += int(lots([segment_id])[0] < self.split.share)
        return self.ladder[step]

    def tiers_of(self, segment_ids: Sequence[str], difficulty_nats: np.ndarray) -> np.ndarray:
        """`tier_of` for parallel ids and (n,) float64 difficulties: (n,) int64."""
        ladder = np.array(self.ladder, dtype=np.int64)
        if self.axis == "none":
            return np.full(len(segment_ids), ladder[0])
        bins = (difficulty_keys(difficulty_nats) if self.axis == "difficulty" else hash_keys(segment_ids)) >> self.shift
        steps = np.searchsorted(np.array(self.cuts, dtype=np.int64), bins, side="right")
        if self.split is not None:
            shared = np.flatnonzero(bins == self.split.bin)
            steps[shared] += lots(segment_ids[i] for i in shared.tolist()) < self.split.share
        return ladder[steps]

    @property
    def cut_points_nats(self) -> tuple[float, ...]:
        """For each tier of `ladder` after the first, the smallest difficulty that gets at least it; inf if none does.

        Empty when difficulty doesn't decide. The split bin counts to the tier above.
        """
        if self.axis != "difficulty":
            return ()
        return tuple(_nats_of_cut(cut, step, self.split, self.shift) for step, cut in enumerate(self.cuts, start=1))

    @property
    def planned_tokens(self) -> float:
        """Expected thinking tokens of the plan."""
        return sum(tier.tokens for tier in self.tiers)

    def to_json(self) -> dict[str, Any]:
        """A JSON-safe dict. Its `from_nats`, by tier the cut point or None if none gets it, is for people alone."""
        return {
            **asdict(self),
            **{name: list(getattr(self, name)) for name in ("ladder", "cuts", "warnings")},
            "tiers": [asdict(tier) for tier in self.tiers],
            "from_nats": {
                self.tiers[i].name: None if nats == float("inf") else nats
                for i, nats in zip(self.ladder[1:], self.cut_points_nats, strict=False)
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Allocation:
        """What `to_json` wrote.

        Raises:
            MillError: the content is not what `to_json` writes.
        """
        try:
            split = data["split"]
            return cls(
                **{
                    **{name: value for name, value in data.items() if name != "from_nats"},
                    **{name: tuple(data[name]) for name in ("ladder", "cuts", "warnings")},
                    "split": None if split is None else Split(**split),
                    "tiers": tuple(TierPlan(**tier) for tier in data["tiers"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise MillError(f"allocation: malformed ({type(error).__name__}: {error})") from error


def _nats_of_cut(cut: int, step: int, split: Split | None, shift: int) -> float:
    if split is not None and split.step == step:
        cut = split.bin
    return float("inf") if cut >= KEY_LIMIT else difficulty_of_key(cut << shift)
