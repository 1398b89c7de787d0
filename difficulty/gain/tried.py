"""What a pilot observed, as arrays: what a model is fitted to and a report is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Tried:
    """Observations; all arrays have an entry for each.

    Attributes:
        rows: (n, columns) float64, features of the segment.
        tiers: (n,) int64, the tier by its number.
        documents: (n,) int64, from 0.
        gains: (n,) float64, measured, in nats.
        weights: (n,) float64, how many each counts as in a mean over the corpus: by 1/chance.
        predicted: (n,) float64, what was predicted of it out of fold; NaN before anything was.
    """

    rows: np.ndarray
    tiers: np.ndarray
    documents: np.ndarray
    gains: np.ndarray
    weights: np.ndarray
    predicted: np.ndarray

    def where(self, chosen: np.ndarray) -> Tried:
        """Those at these places, (n,) bool or int64."""
        return Tried(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})
