"""Balance: shards that differ by a row at most, from the rows each provisional shard came out with. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True)
class Balance:
    """Shards that differ by a row at most, from the rows each provisional shard came out with.

    With R rows in N shards every final shard holds ceil(R / N) rows, or one fewer: N·ceil(R / N) - R of them do, fewer
    than N. Rows stay in their provisional
    shard at their position as far as its quota allows; only the excess moves, to the positions behind the rows that
    stayed. No other choice of quotas moves fewer rows. Give it positions after the shuffle, so that what moves is a
    random sample and not the last packed.

    With fewer rows than shards N - R of them are empty: the number of files is what was asked for and what ranks divide
    by.

    State is O(N); `place` takes O(log N).

    Attributes:
        counts: rows of each provisional shard.
        rows_per_shard: rows of every final shard that is not short.
        short_shards: the shards, ascending, that hold one row fewer.
    """

    counts: Sequence[int]
    rows_per_shard: int = field(init=False)
    short_shards: tuple[int, ...] = field(init=False)
    _quotas: tuple[int, ...] = field(init=False, repr=False)
    _excess_before: tuple[int, ...] = field(init=False, repr=False)
    _holes_before: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = tuple(self.counts)
        if not counts or min(counts) < 0:
            raise ValueError(f"a balance needs at least one shard and no negative counts, not {counts}")
        total, num_shards = sum(counts), len(counts)
        rows = -(-total // num_shards)
        # The shards with the fewest rows are the short ones: a quota that is not filled anyway costs no move.
        by_count = sorted(range(num_shards), key=lambda shard: (counts[shard], shard))
        short = frozenset(by_count[: num_shards * rows - total])
        quotas = tuple(rows - (shard in short) for shard in range(num_shards))
        excess = (max(0, count - quota) for count, quota in zip(counts, quotas, strict=True))
        holes = (max(0, quota - count) for count, quota in zip(counts, quotas, strict=True))
        derived = {
            "counts": counts,
            "rows_per_shard": rows,
            "short_shards": tuple(sorted(short)),
            "_quotas": quotas,
            "_excess_before": tuple(accumulate(excess, initial=0)),
            "_holes_before": tuple(accumulate(holes, initial=0)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

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
    """What stays of balanced shards that are cut to a number of rows: as many of every shard, or one fewer, its first.

    Rows are shuffled before they are balanced, so that the first ones are a fair sample.

    Attributes:
        rows_per_shard: rows of every shard that is not short.
        kept: rows of each shard; what it lacks of `rows_per_shard` is at most one.
    """

    rows_per_shard: int
    kept: tuple[int, ...]


def cut_rows(balance: Balance, max_rows: int | None) -> Cut:
    """The cut of shards to at most `max_rows` rows over all of them; None: all rows stay."""
    num_shards, there = len(balance.counts), sum(balance.counts)
    wanted = there if max_rows is None else min(there, max_rows)
    rows_per_shard = -(-wanted // num_shards)
    # Shards that are short anyway come first: they have no other row to give.
    already = balance.short_shards if rows_per_shard == balance.rows_per_shard else ()
    others = [shard for shard in range(num_shards) if shard not in already]
    short = {*already, *others[: num_shards * rows_per_shard - wanted - len(already)]}
    return Cut(rows_per_shard, tuple(rows_per_shard - (shard in short) for shard in range(num_shards)))
