"""Order: where every document and every row goes, from keyed hashes and counts alone. Used by the pack stage.

    doc_id ──► split ──► provisional shard ──► place in the shard ──► rows ──► shuffled ──► final (shard, position)
               split_of  order_key, shard_of   sort_items         packing    shuffle_rows   Balance

Nothing here depends on the runner, on bundling or on the order of arrival. Each purpose hashes under its own
personalisation, so that the split, the shard, the plain documents and the row order are independent of each other. A
change to any of these functions reorders every corpus: their values are pinned in the tests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Literal, TypeVar

from sharding.records import Item

Split = Literal["train", "validation"]

T = TypeVar("T")

_HASH_BITS = 64
_CONTENT_ID_BITS = 128  # among 10**12 documents two texts share an id with a probability of 1.5e-15


def _bytes(text: str) -> bytes:
    # Text is only hashed here: a lone surrogate in an id must not be what stops a corpus.
    return text.encode("utf-8", "surrogatepass")


def _hash(purpose: bytes, seed: int, text: str) -> int:
    """A 64-bit hash of `text`, uniform, and independent for every purpose and seed."""
    digest = blake2b(_bytes(text), digest_size=_HASH_BITS // 8, key=b"%d" % seed, person=purpose).digest()
    return int.from_bytes(digest, "big")


def _chosen(hashed: int, fraction: float) -> bool:
    # Scaling a float by a power of two is exact; fraction 0.0 chooses none and 1.0 all.
    return hashed < fraction * 2.0**_HASH_BITS


def content_id(text: str) -> str:
    """The id of a document that brings none: 32 hex digits that depend on its text alone."""
    return blake2b(_bytes(text), digest_size=_CONTENT_ID_BITS // 8).hexdigest()


def partition_of(key: str, num_parts: int) -> int:
    """The part file a record with this key goes to between stages, in [0, num_parts)."""
    return _hash(b"part", 0, key) % num_parts


def order_key(seed: int, doc_id: str, copy: int = 0) -> int:
    """The place of a document, or of a further copy of it, in the global order, in [0, 2**64)."""
    return _hash(b"order", seed, f"{doc_id}\0{copy}" if copy else doc_id)


def shard_of(key: int, num_shards: int) -> int:
    """The provisional shard of a document with this order key, in [0, num_shards)."""
    return key % num_shards


def split_of(doc_id: str, validation_fraction: float) -> Split:
    """The split of a document.

    By its id alone, without the seed: a document that is validation in one run is never trained on in another run of
    the same fraction, and a larger fraction only adds to the documents of a smaller one.
    """
    return "validation" if _chosen(_hash(b"split", 0, doc_id), validation_fraction) else "train"


def is_raw(seed: int, doc_id: str, raw_fraction: float) -> bool:
    """Whether a document stays plain, without its thoughts."""
    return _chosen(_hash(b"raw", seed, doc_id), raw_fraction)


def copies_of(seed: int, doc_id: str, weight: float) -> int:
    """How often a document is in the corpus, of a source with this weight: `weight` times on average.

    Of two weights, the larger one keeps every document that the smaller one does.
    """
    whole = int(weight)
    return whole + _chosen(_hash(b"copies", seed, doc_id), weight - whole)


def row_order_key(seed: int, shard: int, index: int) -> int:
    """The key that shuffles row `index`, in the order of packing, of a provisional shard; in [0, 2**64)."""
    return _hash(b"rows", seed, f"{shard}:{index}")


def sort_items(items: Iterable[Item], seed: int) -> list[Item]:
    """The items of a shard in the global order: by order key, document id and copy, then place in the document."""

    def place(item: Item) -> tuple[int, str, int, int]:
        return order_key(seed, item.doc_id, item.copy), item.doc_id, item.copy, item.source_start

    return sorted(items, key=place)


def shuffle_rows(rows: Sequence[T], seed: int, shard: int) -> list[T]:
    """The rows of a provisional shard in training order. Packing emits them longest item first."""
    order = sorted(range(len(rows)), key=lambda index: (row_order_key(seed, shard, index), index))
    return [rows[index] for index in order]


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
