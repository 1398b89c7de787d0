"""Rows of which a removal leaves nothing are filled again: other rows, of several items, give their last ones. Pure.

A row that holds nothing is shown by whoever loads a shard as it is. Of a corpus with one epoch a row of the same shard
gives to it, where one has several items, so that other shards keep their bytes. Of one with several epochs as many are
filled as it takes for all to stay as long (`pack.trace_per_epoch`): trainers take as many steps in each, readers skip
rows that hold nothing, and a document may have had a row to itself in one epoch and share it in another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sharding.errors import MillError

Place = tuple[str, int]
"""(name of a shard, row in it)."""


@dataclass(frozen=True)
class Items:
    """How many items the rows of a shard hold.

    Attributes:
        before, left: (num_rows,) int64, as they are, and without the documents that go.
    """

    before: np.ndarray
    left: np.ndarray

    @property
    def change(self) -> bool:
        """Whether any of the documents is in it."""
        return bool((self.before > self.left).any())

    @property
    def emptied(self) -> list[int]:
        """The rows of which nothing remains."""
        return np.flatnonzero((self.before > 0) & (self.left == 0)).tolist()


@dataclass(frozen=True)
class Gift:
    """A row that gives its last item to one that was emptied."""

    giver: Place
    taker: Place


def refills_of(shards: Mapping[str, Items]) -> list[Gift]:
    """What fills the rows that were emptied, as far as rows of the same shard have several items to give of."""
    giving = _Giving(shards)
    giving.within_shards(math.inf)
    return giving.gifts


def gifts_of(epochs: Sequence[Mapping[str, Items]]) -> list[Gift]:
    """What makes all epochs as long as the longest, in the order in which it is done.

    A row gives to one of its own shard where that can be, so that other shards keep their bytes. A shard whose rows
    take from another gives nothing to any other.

    Args:
        epochs: of each epoch its shards, by name, of one split.

    Raises:
        MillError: an epoch has too few items for that.
    """
    longest = max((_filled(shards) for shards in epochs), default=0)
    return [gift for shards in epochs for gift in _gifts(shards, longest - _filled(shards))]


def _filled(shards: Mapping[str, Items]) -> int:
    return sum(int((items.left > 0).sum()) for items in shards.values())


class _Giving:
    """Gifts among the rows of some shards."""

    def __init__(self, shards: Mapping[str, Items]) -> None:
        self.left = {name: items.left.copy() for name, items in shards.items()}
        self.emptied = {name: found for name, items in sorted(shards.items()) if (found := items.emptied)}
        self.gifts: list[Gift] = []

    def give(self, giver: str, taker: str) -> None:
        """The row of the most items in a shard gives to the next that was emptied in another, or in its own."""
        row = int(np.argmax(self.left[giver]))
        self.left[giver][row] -= 1
        self.gifts.append(Gift((giver, row), (taker, self.emptied[taker].pop(0))))

    def within_shards(self, most: float) -> None:
        """At most so many gifts of rows to others of their own shards."""
        for name, emptied in self.emptied.items():
            while len(self.gifts) < most and emptied and self.left[name].max() > 1:
                self.give(name, name)


def _gifts(shards: Mapping[str, Items], lacking: int) -> list[Gift]:
    giving = _Giving(shards)
    giving.within_shards(lacking)
    left, gifts = giving.left, giving.gifts
    for name, emptied in giving.emptied.items():
        while len(gifts) < lacking and emptied:
            # Of those that change anyway, if they can: the others would lose their bytes for it.
            giver = max(left, key=lambda shard: (left[shard].max(initial=0) > 1, shards[shard].change, shard))
            if left[giver].max(initial=0) < 2:
                raise _too_few(lacking - len(gifts))
            giving.give(giver, name)
    if len(gifts) < lacking:
        raise _too_few(lacking - len(gifts))
    return gifts


def _too_few(rows: int) -> MillError:
    return MillError(
        f"pack.trace_per_epoch: without the documents one epoch would have {rows} rows fewer than another, and no "
        "pieces of others to fill them: `thoughtmill pack CONFIG --set pack.trace_per_epoch=1 --replace`, then this "
        "removal, then the first command with as many epochs as before"
    )
