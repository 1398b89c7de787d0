"""The gain model as a worker holds it: from scored segments to the gain that each tier is expected to bring.

Made by `fitting`, stored as a JSON file in the output, loaded as a side input. Needs numpy and the segments' records.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from difficulty.gain.features import NUMBERS, FeatureMap
from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.records.types import ScoredSegment

FORMAT = 1
"""Of the file."""

STEP_NATS = 2.0**-16
"""Expected gains are whole multiples of this: the last bits of a machine's arithmetic decide nothing."""


@dataclass(frozen=True)
class Gains:
    """What thinking is expected to bring some segments.

    Attributes:
        mean: (n, tiers) float64, expected net gain in nats.
        variance: (n, tiers) float64, of that expectation, in nats²; the noise of a single measurement is not in it.
    """

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, eq=False)
class GainModel:
    """Expected net gain of every thinking tier on a segment.

    The gain of tier t on a segment with features x and difficulty d is w · x·b_t + (1 - w) · s·v_t·d: what was learned,
    and the prior, by which thinking resolves the share v_t of a difficulty.

    Attributes:
        tiers: names of the thinking tiers.
        features: what is looked at.
        coefficients: (tiers, columns) float64, b.
        covariance: (tiers, columns, columns) float32, of b, tier by tier.
        prior: (tiers,) float64, s·v_t in nats for a segment of mean difficulty.
        prior_variance: (tiers,) float64, of that.
        weight: w, from 0 to 1.
    """

    tiers: tuple[str, ...]
    features: FeatureMap
    coefficients: np.ndarray
    covariance: np.ndarray
    prior: np.ndarray
    prior_variance: np.ndarray
    weight: float

    def expected(self, segments: Sequence[ScoredSegment]) -> Gains:
        """The expected gains of n segments; those of each follow from its own record alone, to the last bit."""
        return self.of_rows(self.features.rows(segments))

    def of_rows(self, rows: np.ndarray) -> Gains:
        """The expected gains from (n, columns) features."""
        if len(rows) == 0:
            return Gains(np.zeros((0, len(self.tiers))), np.zeros((0, len(self.tiers))))
        # One small product a row: in one of many rows a row's last bits would depend on its neighbours.
        learned = np.matmul(rows[:, None, :], self.coefficients.T)[:, 0]
        spread = np.matmul(np.matmul(rows[:, None, None, :], self._covariance), rows[:, None, :, None])[:, :, 0, 0]
        prior = rows[:, :1] * self.prior
        w = self.weight
        mean = w * learned + (1 - w) * prior
        variance = w * spread + (1 - w) * rows[:, :1] ** 2 * self.prior_variance + w * (1 - w) * (learned - prior) ** 2
        return Gains(_rounded(mean), _rounded(np.maximum(variance, 0.0)))

    @cached_property
    def _covariance(self) -> np.ndarray:
        return self.covariance.astype(np.float64)

    @cached_property
    def digest(self) -> str:
        """Of all that decides what it says: 32 hexadecimal digits."""
        return fingerprint([json.dumps(self.to_json(), sort_keys=True)])

    def to_json(self) -> dict[str, Any]:
        """As JSON values, a few hundred kilobytes; `from_json` makes the same model of them, bit for bit."""
        features = self.features
        return {
            "format": FORMAT,
            "tiers": list(self.tiers),
            "weight": self.weight,
            "mean_difficulty_nats": features.mean_difficulty_nats,
            "most_difficulty": features.most_difficulty,
            "kind_scale": features.kind_scale,
            "sources": list(features.sources),
            "arrays": {name: _packed(getattr(self, name)) for name in _MODEL_ARRAYS}
            | {name: _packed(getattr(features, name)) for name in _FEATURE_ARRAYS},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GainModel:
        """The model that `to_json` wrote.

        Raises:
            MillError: it is none.
        """
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, this version reads {FORMAT}")
            arrays = {name: _unpacked(name, values["arrays"][name]) for name in (*_MODEL_ARRAYS, *_FEATURE_ARRAYS)}
            features = FeatureMap(
                mean_difficulty_nats=_number(values, "mean_difficulty_nats"),
                most_difficulty=_number(values, "most_difficulty"),
                kind_scale=_number(values, "kind_scale"),
                sources=tuple(map(str, values["sources"])),
                **{name: arrays[name] for name in _FEATURE_ARRAYS},
            )
            model = cls(
                tiers=tuple(map(str, values["tiers"])),
                features=features,
                weight=_number(values, "weight"),
                **{name: arrays[name] for name in _MODEL_ARRAYS},
            )
            model._check()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MillError(
                f"this is no gain model of this version: {error}; "
                "make it anew with `thoughtmill plan --pilot N --explore`"
            ) from error
        return model

    def _check(self) -> None:
        features, tiers = self.features, len(self.tiers)
        columns = len(features.groups)
        wanted = {
            "coefficients": (tiers, columns),
            "covariance": (tiers, columns, columns),
            "prior": (tiers,),
            "prior_variance": (tiers,),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape} where {shape} is needed")
        directions = (len(features.tokens), features.directions.shape[1])
        if features.directions.shape != directions or features.weights.shape != directions[:1]:
            raise ValueError("directions, weights and tokens don't agree")
        if features.centres.shape != (len(NUMBERS),) or features.scales.shape != (len(NUMBERS),):
            raise ValueError(f"centres and scales are not those of {len(NUMBERS)} numbers")
        if features.kind_centres.shape != directions[1:]:
            raise ValueError("kind_centres don't agree with directions")
        if tiers == 0 or len(set(self.tiers)) != tiers or not 0 <= self.weight <= 1:
            raise ValueError("tiers must differ and the weight lie between 0 and 1")
        if not (features.scales > 0).all() or features.kind_scale <= 0 or features.mean_difficulty_nats <= 0:
            raise ValueError("scales must be positive")
        if (np.diff(features.tokens.astype(np.int64)) <= 0).any():
            raise ValueError("tokens must ascend")


_FEATURE_ARRAYS = ("centres", "scales", "tokens", "weights", "directions", "kind_centres")
_MODEL_ARRAYS = ("coefficients", "covariance", "prior", "prior_variance")
_TYPES = {"tokens": "<u4", "weights": "<f4", "directions": "<f2", "covariance": "<f4"}


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values / STEP_NATS) * STEP_NATS + 0.0


def _packed(array: np.ndarray) -> dict[str, Any]:
    type_ = array.dtype.newbyteorder("<")
    return {"shape": list(array.shape), "base64": base64.b64encode(array.astype(type_).tobytes()).decode()}


def _unpacked(name: str, packed: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(packed["base64"], validate=True), dtype=_TYPES.get(name, "<f8"))
    array = flat.reshape([int(size) for size in packed["shape"]]).astype(flat.dtype.newbyteorder("="))
    if name != "tokens" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds what is no number")
    return array


def _number(values: Mapping[str, Any], name: str) -> float:
    number = values[name]
    if isinstance(number, bool) or not isinstance(number, int | float) or not np.isfinite(number):
        raise ValueError(f"{name} is {number!r}, no number")
    return float(number)
