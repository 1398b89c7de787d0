"""What a gain model goes by, in words: the numbers, kinds of text and sources that are expected to gain more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from difficulty.gain.features import GROUPS, NUMBERS
from difficulty.gain.model import GainModel

MOST_NAMED = 6
"""Tokens, numbers or sources that are named at most."""

SURE = 1.645
"""Posterior standard deviations that a number's part must be away from 0 to be named."""


def what_pays(model: GainModel, rows: np.ndarray, decode: Callable[[Sequence[int]], str] | None) -> list[str]:
    """Sentences on what the learned part goes by, at mean difficulty and on average over tiers.

    A group is named where what it explains is more than what isn't known of it.

    Args:
        model: the model.
        rows: (n, columns) float64, features of some segments.
        decode: from token ids to their text; without it kinds are told by token ids.
    """
    said = []
    groups = model.features.groups
    for name in ("entropy", "numbers", "kind", "source"):
        plain, joint = (groups == GROUPS.index(group) for group in (name, f"{name} and difficulty"))
        if not plain.any():
            continue
        slopes = model.coefficients[:, plain] + model.coefficients[:, joint]
        covariance = sum(
            model.covariance[:, a][:, :, b].astype(np.float64) for a in (plain, joint) for b in (plain, joint)
        )
        centred = rows[:, plain] - rows[:, plain].mean(axis=0)
        explained = ((centred @ slopes.T) ** 2).mean(axis=0)
        unknown = np.einsum("nc,tcd,nd->t", centred, covariance, centred) / len(rows)
        if explained.mean() <= unknown.mean():
            continue
        slope = slopes.mean(axis=0)
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).mean(axis=0)
        if name == "kind":
            said.append(_of_kind(model, slope, float(np.sqrt(explained.mean())), decode))
        elif name == "source":
            said.append(_of_sources(model.features.sources, slope))
        else:
            first = 0 if name == "entropy" else 1
            named = NUMBERS[first : first + len(slope)]
            said += _of_numbers(named, slope * centred.std(axis=0), slope, deviation)
    return said


def _of_numbers(names: Sequence[str], effects: np.ndarray, slopes: np.ndarray, deviations: np.ndarray) -> list[str]:
    sure = np.flatnonzero(np.abs(slopes) > SURE * deviations)
    ordered = sorted(sure.tolist(), key=lambda i: -abs(effects[i]))[:MOST_NAMED]
    return [
        f"segments with {'more' if effects[i] > 0 else 'less'} of this gain more: {names[i]} "
        f"({abs(effects[i]):.2g} nats for one standard deviation)"
        for i in ordered
    ]


def _of_sources(names: Sequence[str], slopes: np.ndarray) -> str:
    beyond = slopes - slopes.mean()
    order = np.argsort(-beyond, kind="stable").tolist()
    shown = order if len(order) <= MOST_NAMED else order[: MOST_NAMED // 2] + order[-MOST_NAMED // 2 :]
    return "by source, against their mean: " + ", ".join(f"{names[i]} {beyond[i]:+.2g} nats" for i in shown)


def _of_kind(model: GainModel, slope: np.ndarray, spread: float, decode: Callable[[Sequence[int]], str] | None) -> str:
    features = model.features
    pull = features.weights * (features.directions.astype(np.float64) @ slope)

    def named(places: np.ndarray) -> str:
        ids = features.tokens[places].tolist()
        texts = [decode([token]).strip() if decode else str(token) for token in ids]
        return ", ".join(repr(text) for text in texts if text) or "no words of their own"

    order = np.argsort(-pull, kind="stable")
    return (
        f"by kind of text ({spread:.2g} nats between kinds, as a standard deviation): more gain where there are tokens "
        f"such as {named(order[:MOST_NAMED])}; less where there are {named(order[::-1][:MOST_NAMED])}"
    )
