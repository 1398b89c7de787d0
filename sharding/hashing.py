"""Every hash that decides something, in one place: which part, split, copy, seed or jitter follows from a key.

Nothing here depends on the runner, on bundling or on the order of arrival. Each purpose hashes under its own
personalisation, so that they are independent of each other. A change to any of these functions reorders every corpus or
buys every generation anew: their values are pinned in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b, file_digest
from typing import Any

HASH_BITS = 64
_CONTENT_ID_BITS = 128  # among 10**12 documents two texts share an id with a probability of 1.5e-15


class Purpose(Enum):
    """What a hash decides."""

    PART = b"part"
    """The part file of a record between stages."""
    ORDER = b"order"
    """Where a document goes in the corpus."""
    SPLIT = b"split"
    """Whether it is held out for validation."""
    RAW = b"raw"
    """Whether it stays without its thoughts."""
    COPIES = b"copies"
    """Whether it gets the copy that a weight's fraction stands for."""
    ROWS = b"rows"
    """The order of the rows in a shard."""
    READING = b"read"
    """The order in which a trainer reads them."""
    TIER = b"thoughtmill.tier"
    """Which of the segments of equal difficulty think more."""
    NGRAM_SAMPLE = b"ngram-memory"
    """Whether a document's n-grams are counted."""
    NGRAM_DOCUMENT = b"ngram-document"
    """A whole document among the n-grams that are counted."""
    CONTROL = b"control"
    """The traces that a segment's traces are compared with."""
    SHUFFLED = b"shuffled"
    """Which document's trace a trace is replaced by."""
    HELD_OUT = b"held-out"
    """Which held-out text students are asked about."""
    DOCUMENT_GROUP = b"document-group"
    """The group of documents whose gains are added up together."""
    REPORT = b"report"
    """What a report looks at."""
    SEED = b"seed"
    """The seed of a generation."""
    JITTER = b"fraction"
    """Of waiting times and simulated work."""


def _bytes(what: str | bytes) -> bytes:
    # Text is only hashed here: a lone surrogate in an id must not be what stops a corpus.
    return what.encode("utf-8", "surrogatepass") if isinstance(what, str) else what


def hashed(purpose: Purpose, what: str | bytes, size_bytes: int = 8) -> bytes:
    """A hash of a text or of bytes, independent for every purpose."""
    return blake2b(_bytes(what), digest_size=size_bytes, person=purpose.value).digest()


def hash64(purpose: Purpose, seed: int, text: str) -> int:
    """A 64-bit hash of `text`, uniform, and independent for every purpose and seed."""
    digest = blake2b(_bytes(text), digest_size=HASH_BITS // 8, key=b"%d" % seed, person=purpose.value).digest()
    return int.from_bytes(digest, "big")


def text_hash(text: str | bytes, size_bytes: int = 8) -> bytes:
    """A hash by which a text is known again, whatever for."""
    return blake2b(_bytes(text), digest_size=size_bytes).digest()


def text_number(text: str) -> int:
    """`text_hash` as a number in [0, 2**64): a short name for a long one, or the seed of a rehearsal."""
    return int.from_bytes(text_hash(text))


def fingerprint(pieces: Iterable[str | bytes], size_bytes: int = 16) -> str:
    """What the pieces, one behind the other, are recognised by: two hex digits a byte."""
    digest = blake2b(digest_size=size_bytes)
    for piece in pieces:
        digest.update(_bytes(piece))
    return digest.hexdigest()


def file_fingerprint(file: Any, size_bytes: int = 16) -> str:
    """`fingerprint` of a binary file that is open for reading, whatever its size."""
    return file_digest(file, lambda: blake2b(digest_size=size_bytes)).hexdigest()


def chosen(hashed: int, fraction: float) -> bool:
    # Scaling a float by a power of two is exact; fraction 0.0 chooses none and 1.0 all.
    return hashed < fraction * 2.0**HASH_BITS


def content_id(text: str) -> str:
    """The id of a document that brings none: 32 hex digits that depend on its text alone."""
    return text_hash(text, _CONTENT_ID_BITS // 8).hex()


def partition_of(key: str, num_parts: int) -> int:
    """The part file a record with this key goes to between stages, in [0, num_parts)."""
    return hash64(Purpose.PART, 0, key) % num_parts


def seed_of(key: str) -> int:
    """The seed of the generation with this key: 31 bits, which every sampler takes."""
    return int.from_bytes(hashed(Purpose.SEED, key, 4)) >> 1


def fraction_of(key: str) -> float:
    """A number in [0, 1) from a key, for jitter."""
    return int.from_bytes(hashed(Purpose.JITTER, key, 4)) / 2**32
