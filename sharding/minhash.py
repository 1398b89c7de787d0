"""MinHash: how much two texts resemble each other, from a few numbers of each, so that near-copies find each other.

The resemblance of two texts is the Jaccard index of the sets of their runs of words (Broder 1997). The least value of
each of some permutations of these sets is a text's signature; two signatures agree at a place with the probability of
the resemblance. Places are put together in bands: texts that agree in a whole band meet under one number.

    words ─► runs of 5 ─► signature (128 numbers) ─► bands (16 numbers) ─► texts that share one ─► resemblance

The permutations are those of datasketch (scheme "affine32"). A signature depends on words, number and seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np

from sharding.hashing import text_hash

RUN_WORDS = 5
"""Words in a run: fewer meet by chance in texts of one subject, more are broken by every changed word."""

NUM_PERMUTATIONS = 128
"""The standard error of a resemblance of 0.8 is then 0.035."""

NUM_BANDS = 16
"""Of 8 numbers each where there are 128: texts of resemblance 0.5 meet with a probability of 0.06, of 0.7 with 0.61, of
0.8 with 0.95, of 0.9 with 0.999."""

_SCHEME = "affine32"
_BATCH_RUNS = 1 << 13
"""Runs that are permuted at a time: 4 MB with 128 permutations, whatever the text's length."""


def signature(words: Sequence[str], num_permutations: int = NUM_PERMUTATIONS, seed: int = 1) -> np.ndarray:
    """What a text is compared by.

    Args:
        words: of the text, in order; a text shorter than a run is one run.
        num_permutations: numbers of the signature; signatures are compared with those of equal number and seed.
        seed: of the permutations.

    Returns:
        (num_permutations,) uint32; all of them the largest number for a text without words.
    """
    from datasketch import MinHash  # takes half a second

    runs = MinHash(
        num_permutations, seed, hashfunc=_hash32, permutations=_permutations(num_permutations, seed), scheme=_SCHEME
    )
    found = _runs(words)
    while batch := list(islice(found, _BATCH_RUNS)):
        runs.update_batch(batch)
    return np.asarray(runs.hashvalues, np.uint32)


def bands(signature: np.ndarray, num_bands: int = NUM_BANDS) -> list[int]:
    """The numbers under which near-copies meet.

    Two texts of resemblance s share at least one of b numbers of r places each with the probability 1 − (1 − s^r)^b.

    Args:
        signature: from `signature`, (num_permutations,) uint32.
        num_bands: divides the number of permutations.

    Returns:
        `num_bands` numbers in [0, 2^64), different for equal contents of different bands.

    Raises:
        ValueError: the bands don't divide the signature.
    """
    if len(signature) % num_bands:
        raise ValueError(f"{num_bands} bands don't divide a signature of {len(signature)} numbers")
    rows = signature.astype("<u4").reshape(num_bands, -1)
    return [int.from_bytes(text_hash(b"%d " % band + row.tobytes())) for band, row in enumerate(rows)]


def resemblance(one: np.ndarray, other: np.ndarray) -> float:
    """The estimated Jaccard index of two texts' runs, 0 to 1, from their signatures; its variance is s(1 − s)/n."""
    return float(np.mean(one == other))


def _runs(words: Sequence[str]) -> Iterator[bytes]:
    for start in range(max(min(len(words), 1), len(words) - RUN_WORDS + 1)):
        yield "\0".join(words[start : start + RUN_WORDS]).encode("utf-8", "surrogatepass")


def _hash32(run: bytes) -> int:
    return int.from_bytes(text_hash(run, 4))


@lru_cache(maxsize=4)
def _permutations(num_permutations: int, seed: int) -> np.ndarray:
    """(2, num_permutations) uint32: to draw them takes longer than to hash a paragraph."""
    from datasketch import MinHash

    return np.asarray(MinHash(num_permutations, seed, scheme=_SCHEME).permutations)
