"""Which segments an exploring pilot tries: a random sample of every source, of every difficulty and length. Pure.

Each source's segments are cut into strata of equal stakes by difficulty, each of these by length into equal halves, and
from each as many are drawn by a hash. So hard segments are tried more often, and the chance of every segment is known:
what was measured stands for the corpus once it is weighted by its inverse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sharding.hashing import content_id
from sharding.records.types import ScoredSegment

SOURCES = 16
"""Sources that are sampled apart, those of the most segments; the others are taken together."""

DIFFICULTY_STRATA = 5
DIFFICULTY_STAKES = 0.7
"""The part of a segment's stakes that is in proportion to its difficulty; the rest is the same for all. Budgets go to
the hard ones, so a mistake costs most there."""

LENGTH_STRATA = 2
LEAST_PER_STRATUM = 4
"""Strata are fewer where the sample is small, so that each has so many of it."""


def draw(segments: Sequence[ScoredSegment], count: int) -> tuple[np.ndarray, np.ndarray]:
    """A stratified random sample of about `count` segments, fewer where there aren't so many.

    A source has a share by the square root of its number of segments: a small one is heard, a large one is not drowned.
    The strata within it have equal shares.

    Returns:
        (n,) int64 places of the chosen segments, ascending, and (n,) float64 the chance with which each was chosen.
    """
    frequent = dict(Counter(segment.source for segment in segments).most_common(SOURCES))
    source_of = np.array([segment.source if segment.source in frequent else "" for segment in segments], dtype=object)
    difficulty = np.array([segment.difficulty_nats for segment in segments])
    lengths = np.array([len(segment.input_ids) for segment in segments])
    names = sorted(set(source_of))
    members = [np.flatnonzero(source_of == name) for name in names]
    chosen: list[np.ndarray] = []
    chances: list[np.ndarray] = []
    for of_source, share in zip(members, shares([len(m) for m in members], count), strict=True):
        strata = _strata(of_source, difficulty, lengths, share)
        for stratum, number in zip(strata, shares([len(s) for s in strata], share, power=0.0), strict=True):
            drawn = sorted(stratum, key=lambda place: content_id(f"explore {segments[place].segment_id}"))[:number]
            chosen.append(np.array(drawn, np.int64))
            chances.append(np.full(number, number / len(stratum)))
    places = np.concatenate(chosen)
    order = np.argsort(places)
    return places[order], np.concatenate(chances)[order]


def shares(sizes: Sequence[int], count: int, *, power: float = 0.5) -> list[int]:
    """How many to draw of each group: by its size to a power, none more than it has, in all `count` if there are.

    Every group has one at least, where `count` allows it.
    """
    room = np.array(sizes, np.int64)
    wanted = min(count, int(room.sum()))
    given = np.minimum(np.ones(len(room), np.int64), room) if wanted >= len(room) else np.zeros(len(room), np.int64)
    while (left := wanted - int(given.sum())) > 0:
        weight = np.where(given < room, room.astype(np.float64) ** power, 0.0)
        ideal = wanted * weight / weight.sum() - given
        more = np.clip(np.floor(ideal), 0, room - given).astype(np.int64)
        if more.sum() == 0 or more.sum() > left:  # the last few go one by one to who lacks most
            more = np.zeros_like(more)
            more[np.argmax(np.where(given < room, ideal, -np.inf))] = 1
        given += more
    return [int(number) for number in given]


def _strata(of_source: np.ndarray, difficulty: np.ndarray, lengths: np.ndarray, share: int) -> list[np.ndarray]:
    """The strata of one source, from (n,) places of its segments: none empty, and all with the same stakes."""
    by_difficulty = min(DIFFICULTY_STRATA, max(share // LEAST_PER_STRATUM, 1))
    by_length = LENGTH_STRATA if share >= LEAST_PER_STRATUM * by_difficulty * LENGTH_STRATA else 1
    found = []
    ordered = of_source[np.argsort(difficulty[of_source], kind="stable")]
    mass = difficulty[ordered] / (difficulty[ordered].mean() or 1.0)
    stakes = np.cumsum(1 - DIFFICULTY_STAKES + DIFFICULTY_STAKES * mass)
    bounds = np.searchsorted(stakes, stakes[-1] * np.arange(1, by_difficulty) / by_difficulty)
    for part in np.split(ordered, bounds):
        found += np.array_split(part[np.argsort(lengths[part], kind="stable")], by_length)
    return [stratum for stratum in found if len(stratum)]


def tiers_tried(segment_id: str, tiers: Sequence[str], tries: int) -> set[str]:
    """The tiers that are tried on a segment: `tries` of them at random, by a hash."""
    return set(sorted(tiers, key=lambda name: content_id(f"explore {segment_id} {name}"))[:tries])
