"""Rows that a removal empties in one epoch and not in another: so many are filled again that all epochs stay as long.

Trainers take as many steps in each epoch of `pack.trace_per_epoch`, and readers skip rows that hold nothing. A document
may have had a row to itself in one epoch and share it in another, so that the epochs would come to different numbers.
Where one would have fewer, another row of it, one of several items, gives its last one to a row that was emptied. Pure.
"""

from __future__ import annotations

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


def _gifts(shards: Mapping[str, Items], lacking: int) -> list[Gift]:
    left = {name: items.left.copy() for name, items in shards.items()}
    emptied = {name: found for name, items in sorted(shards.items()) if (found := items.emptied)}
    gifts: list[Gift] = []

    def give(giver: str, taker: str) -> None:
        row = int(np.argmax(left[giver]))
        left[giver][row] -= 1
        gifts.append(Gift((giver, row), (taker, emptied[taker].pop(0))))

    for name in emptied:
        while len(gifts) < lacking and emptied[name] and left[name].max() > 1:
            give(name, name)
    for name in emptied:
        while len(gifts) < lacking and emptied[name]:
            # Of those that change anyway, if they can: the others would lose their bytes for it.
            giver = max(left, key=lambda shard: (left[shard].max(initial=0) > 1, shards[shard].change, shard))
            if left[giver].max(initial=0) < 2:
                raise _too_few(lacking - len(gifts))
            give(giver, name)
    if len(gifts) < lacking:
        raise _too_few(lacking - len(gifts))
    return gifts


def _too_few(rows: int) -> MillError:
    return MillError(
        f"pack.trace_per_epoch: without the documents one epoch would have {rows} rows fewer than another, and no "
        "pieces of others to fill them: `thoughtmill pack CONFIG --set pack.trace_per_epoch=1 --replace`, then this "
        "removal, then the first command with as many epochs as before"
    )
