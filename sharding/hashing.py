"""Every hash that decides something, in one place: which part, split, copy, seed or jitter follows from a key.

Nothing here depends on the runner, on bundling or on the order of arrival. Each purpose hashes under its own
personalisation, so that they are independent of each other. A change to any of these functions reorders every corpus or
buys every generation anew: their values are pinned in the tests.
"""

from __future__ import annotations

from hashlib import blake2b

HASH_BITS = 64
_CONTENT_ID_BITS = 128  # among 10**12 documents two texts share an id with a probability of 1.5e-15


def _bytes(text: str) -> bytes:
    # Text is only hashed here: a lone surrogate in an id must not be what stops a corpus.
    return text.encode("utf-8", "surrogatepass")


def hash64(purpose: bytes, seed: int, text: str) -> int:
    """A 64-bit hash of `text`, uniform, and independent for every purpose and seed."""
    digest = blake2b(_bytes(text), digest_size=HASH_BITS // 8, key=b"%d" % seed, person=purpose).digest()
    return int.from_bytes(digest, "big")


def chosen(hashed: int, fraction: float) -> bool:
    # Scaling a float by a power of two is exact; fraction 0.0 chooses none and 1.0 all.
    return hashed < fraction * 2.0**HASH_BITS


def content_id(text: str) -> str:
    """The id of a document that brings none: 32 hex digits that depend on its text alone."""
    return blake2b(_bytes(text), digest_size=_CONTENT_ID_BITS // 8).hexdigest()


def partition_of(key: str, num_parts: int) -> int:
    """The part file a record with this key goes to between stages, in [0, num_parts)."""
    return hash64(b"part", 0, key) % num_parts


def seed_of(key: str) -> int:
    """The seed of the generation with this key: 31 bits, which every sampler takes."""
    return int.from_bytes(blake2b(key.encode(), digest_size=4, person=b"seed").digest()) >> 1


def fraction_of(key: str) -> float:
    """A number in [0, 1) from a key, for jitter."""
    return int.from_bytes(blake2b(key.encode(), digest_size=4, person=b"fraction").digest()) / 2**32
