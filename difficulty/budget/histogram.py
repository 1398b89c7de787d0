"""The global state of the plan: how many segments there are at each difficulty, in a few kilobytes for any corpus.

Stands between the score stage, which adds every segment, and `difficulty.budget`, which reads the sum of all parts.
Everything here is integer counting, so parts merge in any order and grouping to the same histogram, bit for bit.

Bins adapt to the corpus: they start so narrow that every segment has its own (the plan of a small corpus is exact) and
are joined in pairs, all at once, whenever more than `MAX_BINS` are occupied. The bin width is then the narrowest that
fits the union of all that was added, which no order of merging can change (the uniform collapse of UDDSketch,
arXiv 2004.08604).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sharding.errors import MillError
from sharding.hashing import Purpose, hashed

MAX_BINS = 1024
"""Most occupied bins per axis. More makes realised spend steadier and the state larger (about 10 bytes a bin)."""

KEY_BITS = 32
"""A key is the upper half of a float64 or of a 64-bit hash. Difficulties less than 1e-6 of themselves apart may share
one."""

LARGEST_NATS = 2.0**64
"""More difficulty than any segment can hold; with it as the limit every sum is finite."""

REPORTED_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def difficulty_keys(difficulty_nats: np.ndarray) -> np.ndarray:
    """Integer keys in the order of difficulty: the leading bits of the float64, which order like the numbers.

    No logarithm is taken, so a key is the same on every platform; bins of equal key width are log-spaced over octaves
    and even within one.

    Args:
        difficulty_nats: (n,) float64, from 0 to LARGEST_NATS.

    Returns:
        (n,) int64, below 2**31; zero difficulty has key 0.

    Raises:
        MillError: a difficulty is negative, above LARGEST_NATS or not a number.
    """
    nats = np.asarray(difficulty_nats, dtype=np.float64) + 0.0  # turns -0.0 into 0.0
    right = (nats >= 0) & (nats <= LARGEST_NATS)  # NaN is neither
    if not right.all():
        raise MillError(f"difficulty of a segment: {nats[~right][0]} nats; allowed: from 0 to {LARGEST_NATS:.3g}")
    return nats.view(np.int64) >> KEY_BITS


def difficulty_key(difficulty_nats: float) -> int:
    """`difficulty_keys` of one number."""
    if not 0 <= difficulty_nats <= LARGEST_NATS:
        raise MillError(f"difficulty of a segment: {difficulty_nats} nats; allowed: from 0 to {LARGEST_NATS:.3g}")
    (bits,) = struct.unpack("<q", struct.pack("<d", difficulty_nats + 0.0))
    return bits >> KEY_BITS


def difficulty_of_key(key: int) -> float:
    """The smallest difficulty with this key, in nats."""
    (nats,) = struct.unpack("<d", struct.pack("<q", key << KEY_BITS))
    return nats


def segment_hashes(segment_ids: Iterable[str]) -> np.ndarray:
    """Two independent uniform hashes of each segment id: its place under policy uniform, and its draw in a shared bin.

    Returns:
        (n, 2) uint64.
    """
    return np.frombuffer(b"".join(map(_digest, segment_ids)), dtype="<u8").reshape(-1, 2)


def hash_keys(segment_ids: Iterable[str]) -> np.ndarray:
    """Integer keys, (n,) int64 below 2**32, in a random order that the ids alone decide."""
    return (segment_hashes(segment_ids)[:, 0] >> np.uint64(KEY_BITS)).astype(np.int64)


def hash_key(segment_id: str) -> int:
    """`hash_keys` of one id."""
    return int.from_bytes(_digest(segment_id)[:8], "little") >> KEY_BITS


def draws(segment_ids: Iterable[str]) -> np.ndarray:
    """Numbers in [0, 1), (n,) float64, that the ids alone decide; independent of `hash_keys`."""
    return (segment_hashes(segment_ids)[:, 1] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _digest(segment_id: str) -> bytes:
    return hashed(Purpose.TIER, segment_id, 16)


def joined_bins(bins: np.ndarray, counts: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Bins joined in pairs, all at once and as little as needed, until at most MAX_BINS are occupied.

    Args:
        bins: (n,) int64 below 2**53, in any order; they may repeat.
        counts: (n,) or (n, columns) int64, what is added up in each.

    Returns:
        log2 of how much wider a bin is now, the occupied bins, ascending, and their sums.
    """
    order = np.argsort(bins, kind="stable")
    bins, counts = bins[order], counts[order]
    # Neighbours stay apart at width 2**s exactly when the highest bit in which they differ is at s or above.
    # frexp's exponent of an integer below 2**53 is its bit length.
    differing_bits = np.frexp((bins[1:] ^ bins[:-1]).astype(np.float64))[1]
    apart = np.sort(differing_bits)[::-1]
    widen = int(apart[MAX_BINS - 1]) if len(apart) >= MAX_BINS else 0
    bins = bins >> widen
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    return widen, bins[starts], np.add.reduceat(counts, starts) if len(starts) else counts


class KeyCounts:
    """Counts of integer keys in at most `MAX_BINS` bins of one width, 2**shift keys each.

    Attributes:
        shift: log2 of the bin width in keys; 0 while every key has its own bin.
        counts: occupied bin -> count; a key falls in bin `key >> shift`.
    """

    __slots__ = ("counts", "shift")

    def __init__(self, shift: int = 0, counts: Mapping[int, int] | None = None) -> None:
        self.shift = shift
        self.counts = dict(counts or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyCounts) and (self.shift, self.counts) == (other.shift, other.counts)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def add(self, key: int) -> None:
        """Counts one key."""
        bin_ = key >> self.shift
        self.counts[bin_] = self.counts.get(bin_, 0) + 1
        if len(self.counts) > MAX_BINS:
            self._set(*self.bins())

    def add_bins(self, bins: np.ndarray, counts: np.ndarray) -> None:
        """Counts bins that are `shift` wide; they may repeat. Both (n,) int64."""
        own_bins, own_counts = self.bins()
        self._set(np.concatenate([own_bins, bins]), np.concatenate([own_counts, counts]))

    def merge(self, other: KeyCounts) -> KeyCounts:
        """The counts of both, as if all keys had been added to one."""
        merged = KeyCounts(max(self.shift, other.shift))
        for part in (self, other):
            bins, counts = part.bins()
            merged.add_bins(bins >> (merged.shift - part.shift), counts)
        return merged

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Occupied bins, ascending, and their counts; both (bins,) int64."""
        bins = np.array(sorted(self.counts), dtype=np.int64)
        return bins, np.array([self.counts[bin_] for bin_ in bins.tolist()], dtype=np.int64)

    def _set(self, bins: np.ndarray, counts: np.ndarray) -> None:
        """Takes bins of the present width as the content, and widens them until at most MAX_BINS are occupied."""
        widen, bins, totals = joined_bins(bins, counts)
        self.shift += widen
        self.counts = dict(zip(bins.tolist(), totals.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """A JSON-safe dict: `bin_steps` are the differences between occupied bins, the first from 0."""
        bins, counts = self.bins()
        return {"shift": self.shift, "bin_steps": np.diff(bins, prepend=0).tolist(), "counts": counts.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KeyCounts:
        """What `to_json` wrote.

        Raises:
            MillError: the content is not what `to_json` writes.
        """
        try:
            bins = np.cumsum(np.array(data["bin_steps"], dtype=np.int64)).tolist()
            return cls(int(data["shift"]), dict(zip(bins, map(int, data["counts"]), strict=True)))
        except (KeyError, TypeError, ValueError) as error:
            raise MillError(f"difficulty histogram: malformed ({type(error).__name__}: {error})") from error


class DifficultyHistogram:
    """Segments counted by difficulty mass and, for the uniform policy, by the hash of their id.

    Mutable while it is filled; it compares by content. At most `MAX_BINS` bins per axis, whatever the corpus: no more
    than about 25 kB as JSON.

    Attributes:
        by_difficulty: counts of `difficulty_keys`.
        by_hash: counts of `hash_keys`.
    """

    __slots__ = ("by_difficulty", "by_hash")

    def __init__(self, by_difficulty: KeyCounts | None = None, by_hash: KeyCounts | None = None) -> None:
        self.by_difficulty = by_difficulty or KeyCounts()
        self.by_hash = by_hash or KeyCounts()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DifficultyHistogram)
            and self.by_difficulty == other.by_difficulty
            and self.by_hash == other.by_hash
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"DifficultyHistogram({self.num_segments} segments, {len(self.by_difficulty.counts)} bins)"

    @property
    def num_segments(self) -> int:
        return sum(self.by_difficulty.counts.values())

    def add(self, segment_id: str, difficulty_nats: float) -> None:
        """Counts one segment.

        Raises:
            MillError: the difficulty is no number from 0 to LARGEST_NATS.
        """
        self.by_difficulty.add(difficulty_key(difficulty_nats))
        self.by_hash.add(hash_key(segment_id))

    def add_many(self, segment_ids: Sequence[str], difficulty_nats: np.ndarray) -> None:
        """Counts segments given by parallel ids and (n,) float64 difficulties; the same as `add` on each.

        Raises:
            MillError: a difficulty is no number from 0 to LARGEST_NATS, or the lengths differ.
        """
        keys = difficulty_keys(difficulty_nats)
        if len(keys) != len(segment_ids):
            raise MillError(f"difficulty histogram: {len(segment_ids)} segment ids but {len(keys)} difficulties")
        ones = np.ones(len(keys), dtype=np.int64)
        self.by_difficulty.add_bins(keys >> self.by_difficulty.shift, ones)
        self.by_hash.add_bins(hash_keys(segment_ids) >> self.by_hash.shift, ones)

    def merge(self, other: DifficultyHistogram) -> DifficultyHistogram:
        """The histogram of the segments of both. Associative and commutative; the empty histogram changes nothing."""
        return DifficultyHistogram(self.by_difficulty.merge(other.by_difficulty), self.by_hash.merge(other.by_hash))

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """The difficulty of each occupied bin, ascending, and its count: (bins,) float64 nats, (bins,) int64.

        A bin stands at its middle, 0 for the zero bin. It is too narrow for a sum of its own to tell more: with 24
        octaves all occupied, the middle is off by at most 1.6%.
        """
        bins, counts = self.by_difficulty.bins()
        shift = self.by_difficulty.shift + KEY_BITS
        nats = ((bins << shift) + (1 << shift >> 1)).view(np.float64)
        return np.where(bins == 0, 0.0, nats), counts

    def quantiles(self, ranks: Sequence[float]) -> np.ndarray:
        """The difficulty that a share `ranks` of the segments doesn't exceed: (len(ranks),) float64 nats.

        Raises:
            MillError: the histogram is empty.
        """
        nats, counts = self.bins()
        if not len(nats):
            raise MillError("difficulty histogram: no segments, so no quantiles")
        cumulative = np.cumsum(counts)
        found = np.searchsorted(cumulative, np.asarray(ranks, dtype=np.float64) * cumulative[-1])
        return nats[np.minimum(found, len(nats) - 1)]

    @property
    def total_nats(self) -> float:
        """Difficulty mass of all segments, to the precision of the bins' middles."""
        nats, counts = self.bins()
        return float(nats @ counts)

    def to_json(self) -> dict[str, Any]:
        """A JSON-safe dict. The segments and quantiles are for people; the bins alone are read back."""
        ranks = REPORTED_QUANTILES if self.num_segments else ()
        found = self.quantiles(ranks).tolist() if ranks else []
        return {
            "segments": self.num_segments,
            "total_nats": self.total_nats,
            "quantiles_nats": dict(zip(map(str, ranks), found, strict=True)),
            "by_difficulty": self.by_difficulty.to_json(),
            "by_hash": self.by_hash.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DifficultyHistogram:
        """What `to_json` wrote.

        Raises:
            MillError: the content is not what `to_json` writes.
        """
        try:
            parts = data["by_difficulty"], data["by_hash"]
        except (KeyError, TypeError) as error:
            raise MillError(f"difficulty histogram: malformed ({type(error).__name__}: {error})") from error
        histogram = cls(*map(KeyCounts.from_json, parts))
        if histogram.num_segments != sum(histogram.by_hash.counts.values()):
            raise MillError("difficulty histogram: malformed (its two axes count different numbers of segments)")
        return histogram
