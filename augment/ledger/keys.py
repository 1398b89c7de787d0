"""Key files: beside each part of the ledger what is enough to know which generations it has, 36 bytes a row.

    part-1763000000000-<digest>.arrow    the rows, some 2 kB each
    keys-1763000000000-<digest>.keys     of each row a hash of its key, and what it ranks by

Under `augment.ledger.parts`, which writes them. A run looks again and again at what has come; by these it fetches a
fiftieth of it. A key file is only a short cut: where there is none, or a damaged one, the part itself is read. So it
comes after its part and goes before it, and never says of a generation that it is there before it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sharding.hashing import text_hash
from sharding.records.base import encode
from sharding.records.types import LedgerRow
from sharding.storage.files import join

KEY_ROWS = np.dtype(
    [("key", "<u8"), ("key_rest", "<u8"), ("finished_at", "<f8"), ("thought_tokens", "<u4"), ("row", "<u8")]
)
"""Of a row: 128 bits of a hash of its key in two halves; what `reading.choose` goes by; and a hash of the whole row."""

_DIGEST_BYTES = 16


def key_hash(key: str) -> tuple[int, int]:
    """The two halves of the hash of a key."""
    digest = text_hash(key, 16)
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:])


def keys_of(rows: Iterable[LedgerRow]) -> np.ndarray:
    """(rows,) of `KEY_ROWS`, in their order."""
    found = [
        (*key_hash(row.key), row.finished_at, row.thought_tokens, int.from_bytes(text_hash(encode(row))))
        for row in rows
    ]
    return np.array(found, KEY_ROWS)


def keys_url(part_url: str) -> str:
    """Where the key file of a part is, if it has one."""
    folder, _, name = part_url.rpartition("/")
    return join(folder, f"keys-{name.removeprefix('part-').removesuffix('.arrow')}.keys")


def to_bytes(keys: np.ndarray) -> bytes:
    """A key file: the digest of what follows, and the rows."""
    data = keys.astype(KEY_ROWS).tobytes()
    return text_hash(data, _DIGEST_BYTES) + data


def from_bytes(data: bytes) -> np.ndarray | None:
    """The rows of a key file; None where it is damaged."""
    rows = data[_DIGEST_BYTES:]
    if len(rows) % KEY_ROWS.itemsize or text_hash(rows, _DIGEST_BYTES) != data[:_DIGEST_BYTES]:
        return None
    return np.frombuffer(rows, KEY_ROWS)
