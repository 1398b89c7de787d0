"""Balance: equal rows for every shard, from the rows each provisional shard came out with. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True)
class Balance:
    """Equal rows for every shard, from the rows each provisional shard came out with.

    With R rows in N shards every final shard holds exactly ceil(R / N) rows; the N·ceil(R / N) - R rows that are
    missing, fewer than N, are padding: at most one per shard, in its last position. Rows stay in their provisional
    shard at their position as far as its quota allows; only the excess moves, to the positions behind the rows that
    stayed. No other choice of quotas moves fewer rows. Give it positions after the shuffle, so that what moves is a
    random sample and not the last packed.

    With fewer rows than shards every shard holds one row, which in N - R of them is padding: the number of files is
    what was asked for and what ranks divide by, and no file is of another length than the rest. Without any rows
    every shard is empty.

    State is O(N); `place` takes O(log N).

    Attributes:
        counts: rows of each provisional shard.
        rows_per_shard: rows of every final shard, padding included.
        padding_shards: the shards, ascending, whose last row is padding.
    """

    counts: Sequence[int]
    rows_per_shard: int = field(init=False)
    padding_shards: tuple[int, ...] = field(init=False)
    _quotas: tuple[int, ...] = field(init=False, repr=False)
    _excess_before: tuple[int, ...] = field(init=False, repr=False)
    _holes_before: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = tuple(self.counts)
        if not counts or min(counts) < 0:
            raise ValueError(f"a balance needs at least one shard and no negative counts, not {counts}")
        total, num_shards = sum(counts), len(counts)
        rows = -(-total // num_shards)
        # The shards with the fewest rows take the padding: a quota that is not filled anyway costs no move.
        by_count = sorted(range(num_shards), key=lambda shard: (counts[shard], shard))
        padded = frozenset(by_count[: num_shards * rows - total])
        quotas = tuple(rows - (shard in padded) for shard in range(num_shards))
        excess = (max(0, count - quota) for count, quota in zip(counts, quotas, strict=True))
        holes = (max(0, quota - count) for count, quota in zip(counts, quotas, strict=True))
        derived = {
            "counts": counts,
            "rows_per_shard": rows,
            "padding_shards": tuple(sorted(padded)),
            "_quotas": quotas,
            "_excess_before": tuple(accumulate(excess, initial=0)),
            "_holes_before": tuple(accumulate(holes, initial=0)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def padding_rows(self) -> int:
        """How many padding rows all shards together need."""
        return len(self.padding_shards)

    @property
    def moved_rows(self) -> int:
        """How many rows leave their provisional shard."""
        return self._excess_before[-1]

    def place(self, shard: int, index: int) -> tuple[int, int]:
        """The final (shard, position) of row `index` of a provisional shard.

        Raises:
            IndexError: the provisional shard has no such row.
        """
        if not (0 <= shard < len(self.counts) and 0 <= index < self.counts[shard]):
            raise IndexError(f"no row {index} in provisional shard {shard}")
        quota = self._quotas[shard]
        if index < quota:
            return shard, index
        # The k-th row in excess, counted over all shards, fills the k-th hole.
        k = self._excess_before[shard] + index - quota
        target = bisect_right(self._holes_before, k) - 1
        return target, self.counts[target] + k - self._holes_before[target]


@dataclass(frozen=True)
class Cut:
    """What stays of balanced shards that are cut to a number of rows: equally many of every shard, its first ones.

    Rows are shuffled before they are balanced, so that the first ones are a fair sample.

    Attributes:
        rows_per_shard: rows of every shard, padding included.
        kept: rows of each shard that are not padding; what a shard lacks of `rows_per_shard` is at most one.
    """

    rows_per_shard: int
    kept: tuple[int, ...]


def cut_rows(balance: Balance, max_rows: int | None) -> Cut:
    """The cut of shards to at most `max_rows` rows over all of them, padding not counted; None: all rows stay."""
    num_shards, there = len(balance.counts), sum(balance.counts)
    wanted = there if max_rows is None else min(there, max_rows)
    rows_per_shard = -(-wanted // num_shards)
    # Shards that would end in padding anyway come first: they have no other row to give.
    already = balance.padding_shards if rows_per_shard == balance.rows_per_shard else ()
    others = [shard for shard in range(num_shards) if shard not in already]
    padded = {*already, *others[: num_shards * rows_per_shard - wanted - len(already)]}
    return Cut(rows_per_shard, tuple(rows_per_shard - (shard in padded) for shard in range(num_shards)))
