"""Digests that add up: how verify compares tokens that lie in different files without holding either.

Every token of a text gets a 64-bit hash of its place and its id, and a digest of a stretch is the sum of its tokens'
hashes modulo 2^64. Sums of pieces are the sum of the whole, in any order, and the digest of any stretch is the
difference of two prefix sums; that makes a document that was cut over several shards comparable with its scored part.
The hash is a bijection of (place, id), so a single changed token always changes the digest; several changes cancel each
other with a probability of 2^-64. That guards against accidents, not against forgery.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from sharding import hashing

_KEY_SPACE = 1 << 64


def document_keys(doc_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """96 bits that stand for each document id.

    The first 64 are the hash that parts are chosen by: `key % n` is `order.partition_of(doc_id, n)` for every n.

    Returns:
        (num_ids,) uint64 and (num_ids,) uint32.
    """
    keys = np.fromiter((hashing.partition_of(doc_id, _KEY_SPACE) for doc_id in doc_ids), np.uint64, len(doc_ids))
    checks = np.fromiter((zlib.crc32(doc_id.encode("utf-8", "surrogatepass")) for doc_id in doc_ids), np.uint32)
    return keys, checks


def token_hashes(places: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
    """A hash of each token and its place: the finaliser of SplitMix64 (Steele et al. 2014) over both.

    Args:
        places: (num_tokens,) int64, below 2^32.
        input_ids: (num_tokens,) uint16 or uint32.

    Returns:
        (num_tokens,) uint64.
    """
    mixed = places.astype(np.uint64)
    mixed <<= np.uint64(32)
    mixed |= input_ids.astype(np.uint64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def prefix_sums(hashes: np.ndarray) -> np.ndarray:
    """(num_tokens + 1,) uint64: the digest of tokens i ... j - 1 is sums[j] - sums[i], modulo 2^64."""
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes, out=sums[1:])
    return sums


def places_within(lengths: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """The place of every token of consecutive stretches within its stretch, plus the stretch's start.

    Args:
        lengths: (num_stretches,) tokens of each.
        starts: (num_stretches,) place of the first token of each; 0 when absent.

    Returns:
        (sum of lengths,) int64.
    """
    begins = starts_of(lengths)
    offset = -begins if starts is None else starts.astype(np.int64) - begins
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(offset, lengths)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """(num_stretches,) int64, where each of consecutive stretches begins."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def stretch_digests(input_ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """(num_stretches,) uint64, the digests of consecutive stretches of tokens."""
    sums = prefix_sums(token_hashes(places_within(lengths, starts), input_ids))
    begins = starts_of(lengths)
    return sums[begins + lengths] - sums[begins]
