"""A finished plan: which tier each segment gets, and what that is expected to cost.

`difficulty.budget` makes it, the augment stage asks it for every segment's tier. It is a few numbers, immutable and
picklable, so it travels to every worker as a side input; a segment's tier depends on its id and difficulty alone, under
policy learned on its id and the gain expected of each tier.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import msgspec
import numpy as np

from difficulty.budget.histogram import (
    KEY_BITS,
    difficulty_key,
    difficulty_keys,
    difficulty_of_key,
    draws,
    hash_key,
    hash_keys,
)
from difficulty.budget.steps import climb
from difficulty.budget.tiers import Axis, PolicyName, Unit
from sharding.errors import MillError

KEY_LIMIT = 1 << KEY_BITS
"""Above every key: the cut of a tier that no segment reaches."""


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """What a tier is expected to get, in the order of the config.

    Attributes:
        segments: expected number of segments; a whole number in all but the two tiers of a shared bin.
        tokens: expected thinking tokens of those segments, all samples.
        spend: the same in the budget's unit.
        difficulty_nats: difficulty mass of those segments; under policies uniform and fixed their share by number.
        resolution: share of the difficulty the tier is expected to resolve.
        gain_nats: expected gain of those segments together; None but under policy learned.
        gain_deviation_nats: standard deviation of that sum, if what the model doesn't know is the same of all of them,
            which is the most that it can be.
    """

    name: str
    segments: float
    tokens: float
    spend: float
    difficulty_nats: float
    resolution: float
    gain_nats: float | None = None
    gain_deviation_nats: float | None = None


@dataclass(frozen=True, kw_only=True)
class SharedBin:
    """The one bin that is shared between two neighbouring tiers.

    Attributes:
        bin: the bin of keys, `key >> shift`.
        step: the upper of the two tiers, as an index into `Allocation.choices`; on the axis of gain the step between
            them, as an index into `ByGain.steps`.
        share: the share of the bin's segments, drawn by the hash of their id, that gets the upper tier.
    """

    bin: int
    step: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ByGain:
    """What a plan by expected gain needs beside its cuts.

    Attributes:
        model: digest of the model of gain that the plan was made with, and has to be carried out with.
        costs: of a segment at each tier, in the budget's unit.
        steps: (lower tier, higher tier) of each step of which a part is bought.
    """

    model: str
    costs: tuple[float, ...]
    steps: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The plan. Index `i` of a tier is its place in the config.

    Attributes:
        axis: what orders the segments: "difficulty" (adaptive), "hash" (uniform), "none" (fixed) or "gain" (learned).
        shift: log2 of the width in keys of a bin on that axis.
        choices: the tiers that can be chosen, from the cheapest to the dearest.
        cuts: (len(choices) - 1,) not descending; a segment whose bin is at `cuts[j]` or above gets at least
            `choices[j + 1]`. On the axis of gain (steps,), for each of `by_gain.steps` the lowest bin of gain per cost
            at which it is bought.
        shared_bin: the one that straddles the budget, if one had to be shared.
        unit: what spend is counted in.
        target_spend: the budget.
        planned_spend: expected spend of the plan.
        spend_deviation: standard deviation of the spend that the plan comes to, for what is drawn in the shared bin;
            0 when nothing is left to the hash. It doesn't cover generations shorter or longer than expected.
        marginal_nats: nats that the last unit spent is expected to resolve (λ, the price of a unit of the budget).
        warnings: what the owner of the budget should know, in words.
        by_gain: on the axis of gain, what it needs.
    """

    policy: PolicyName
    axis: Axis
    shift: int
    choices: tuple[int, ...]
    cuts: tuple[int, ...]
    shared_bin: SharedBin | None
    unit: Unit
    target_spend: float
    planned_spend: float
    spend_deviation: float
    marginal_nats: float
    tiers: tuple[TierPlan, ...]
    warnings: tuple[str, ...]
    by_gain: ByGain | None = None

    def tier_of(self, segment_id: str, difficulty_nats: float) -> int:
        """The segment's tier.

        Under policy adaptive a segment never gets a cheaper tier than one in an easier bin. Within the shared bin, and
        there only, the hash of the id decides.

        Raises:
            MillError: the difficulty is no number from 0 to LARGEST_NATS, or doesn't decide (see `tiers_by_gain`).
        """
        self._check_difficulty_decides()
        if self.axis == "none":
            return self.choices[0]
        key = difficulty_key(difficulty_nats) if self.axis == "difficulty" else hash_key(segment_id)
        bin_ = key >> self.shift
        step = bisect_right(self.cuts, bin_)
        if self.shared_bin is not None and bin_ == self.shared_bin.bin:
            step += int(draws([segment_id])[0] < self.shared_bin.share)
        return self.choices[step]

    def tiers_of(self, segment_ids: Sequence[str], difficulty_nats: np.ndarray) -> np.ndarray:
        """`tier_of` for parallel ids and (n,) float64 difficulties: (n,) int64."""
        self._check_difficulty_decides()
        choices = np.array(self.choices, dtype=np.int64)
        if self.axis == "none":
            return np.full(len(segment_ids), choices[0])
        bins = (difficulty_keys(difficulty_nats) if self.axis == "difficulty" else hash_keys(segment_ids)) >> self.shift
        steps = np.searchsorted(np.array(self.cuts, dtype=np.int64), bins, side="right")
        if self.shared_bin is not None:
            shared = np.flatnonzero(bins == self.shared_bin.bin)
            steps[shared] += draws(segment_ids[i] for i in shared.tolist()) < self.shared_bin.share
        return choices[steps]

    def _check_difficulty_decides(self) -> None:
        if self.by_gain is not None:
            raise MillError(
                f"policy {self.policy}: the tier of a segment follows from its expected gains, not difficulty"
            )

    def tiers_by_gain(self, segment_ids: Sequence[str], gains_nats: np.ndarray) -> np.ndarray:
        """The tiers of segments by the gain that is expected of each tier: (n,) int64.

        Args:
            segment_ids: n ids.
            gains_nats: (n, tiers) float64, in the order of the config; 0 for the tier that skips.

        Raises:
            MillError: the plan doesn't go by gain, or a gain is no number.
        """
        if self.by_gain is None:
            raise MillError(f"policy {self.policy}: the tier of a segment doesn't follow from its expected gains")
        found = climb(gains_nats, np.array(self.by_gain.costs))
        step_of = np.full((len(self.tiers),) * 2, len(self.cuts))
        for number, (low, high) in enumerate(self.by_gain.steps):
            step_of[low, high] = number
        cuts, shared = np.array([*self.cuts, KEY_LIMIT], np.int64), self.shared_bin
        chosen, climbing = found.base.copy(), np.ones(len(segment_ids), bool)
        for tiers, slopes in zip(found.tiers.T, found.slopes.T, strict=True):
            steps, bins = step_of[chosen, tiers], difficulty_keys(slopes) >> self.shift
            takes = bins >= cuts[steps]
            if shared is not None:
                drawn = np.flatnonzero((steps == shared.step) & (bins == shared.bin))
                takes[drawn] = draws(segment_ids[i] for i in drawn.tolist()) < shared.share
            climbing &= takes & (tiers >= 0)
            chosen = np.where(climbing, tiers, chosen)
        return chosen

    @property
    def gain_nats(self) -> float | None:
        """Expected gain of all thinking; None where the plan doesn't go by it."""
        return None if self.by_gain is None else sum(tier.gain_nats or 0.0 for tier in self.tiers)

    @property
    def cut_points_nats(self) -> tuple[float, ...]:
        """For each tier of `choices` after the first, the smallest difficulty that gets at least it; inf if none does.

        Empty when difficulty doesn't decide. The shared bin counts to the tier above.
        """
        if self.axis != "difficulty":
            return ()
        return tuple(
            _nats_of_cut(cut, step, self.shared_bin, self.shift) for step, cut in enumerate(self.cuts, start=1)
        )

    @property
    def planned_tokens(self) -> float:
        """Expected thinking tokens of the plan."""
        return sum(tier.tokens for tier in self.tiers)

    def to_json(self) -> dict[str, Any]:
        """A JSON-safe dict. Its `from_nats`, by tier the cut point or None if none gets it, is for people alone."""
        plain = asdict(self)
        if self.by_gain is None:
            del plain["by_gain"]
        return {
            **plain,
            **{name: list(getattr(self, name)) for name in ("choices", "cuts", "warnings")},
            "tiers": [{k: v for k, v in asdict(tier).items() if v is not None} for tier in self.tiers],
            "from_nats": {
                self.tiers[i].name: None if nats == float("inf") else nats
                for i, nats in zip(self.choices[1:], self.cut_points_nats, strict=False)
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Allocation:
        """What `to_json` wrote.

        Raises:
            MillError: the content is not what `to_json` writes.
        """
        try:
            made = msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise MillError(f"allocation: malformed ({error})") from error
        if set(data) - {field.name for field in fields(cls)} - {"from_nats"} or not made._goes_together():
            raise MillError("allocation: malformed (it says more, or its choices, cuts and tiers don't go together)")
        return made

    def _goes_together(self) -> bool:
        """Whether every place that it names is there."""
        steps, shared = len(self.choices), self.shared_bin
        numbers = [number for tier in self.tiers for number in astuple(tier)[1:] if number is not None]
        return (
            steps > 0
            and all(0 <= choice < len(self.tiers) for choice in self.choices)
            and (self.axis == "gain") == (self.by_gain is not None)
            and (self._cuts_fit() if self.by_gain is None else self._gains_fit(self.by_gain))
            and all(0 <= cut <= KEY_LIMIT for cut in self.cuts)
            and 0 <= self.shift <= KEY_BITS
            and (shared is None or 0 <= shared.bin < KEY_LIMIT)
            and all(math.isfinite(number) and abs(number) < 1e24 for number in numbers)
        )

    def _cuts_fit(self) -> bool:
        steps, shared = len(self.choices), self.shared_bin
        return (
            len(self.cuts) == (0 if self.axis == "none" else steps - 1)
            and list(self.cuts) == sorted(self.cuts)
            and (shared is None or 0 < shared.step < steps)
        )

    def _gains_fit(self, by_gain: ByGain) -> bool:
        return (
            len(by_gain.costs) == len(self.tiers)
            and all(0 <= cost < 1e24 for cost in by_gain.costs)
            and len(self.cuts) == len(by_gain.steps)
            and all(0 <= tier < len(self.tiers) for step in by_gain.steps for tier in step)
            and (self.shared_bin is None or 0 <= self.shared_bin.step < len(by_gain.steps))
        )


def _nats_of_cut(cut: int, step: int, shared_bin: SharedBin | None, shift: int) -> float:
    if shared_bin is not None and shared_bin.step == step:
        cut = shared_bin.bin
    return float("inf") if cut >= KEY_LIMIT else difficulty_of_key(cut << shift)
