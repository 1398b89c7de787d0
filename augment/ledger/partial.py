"""Partial rows: what there is of generations that were interrupted, in files of their own beside the parts.

Whoever reads finished generations lists parts and never sees them. A partial row counts as long as nothing of its key
is finished: a run goes on from it, and its tokens are spent. Of several with one key the longest holds all the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from augment.ledger.parts import PARTIAL_PART, every_part, ledger_parts, read_part, write_part
from augment.traces import PARTIAL
from sharding.records.base import encode
from sharding.records.types import LedgerRow
from sharding.storage.files import remove


def as_partial(row: LedgerRow) -> LedgerRow:
    """A row of what there is of a generation, marked as that."""
    return msgspec.structs.replace(row, closed=PARTIAL)


def furthest(rows: Iterable[LedgerRow]) -> dict[str, LedgerRow]:
    """By key the partial row that got furthest; depends on the rows alone, not on their order."""
    found: dict[str, LedgerRow] = {}
    for row in rows:
        other = found.get(row.key)
        found[row.key] = row if other is None or _rank(row) < _rank(other) else other
    return found


def _rank(row: LedgerRow) -> tuple[int, float, bytes]:
    return -row.thought_tokens, row.finished_at, encode(row)


def _finished(ledger_url: str, keys: set[str]) -> set[str]:
    """Those of some keys that have a finished row."""
    found: set[str] = set()
    if keys:
        for _, batches in every_part(ledger_url, ["key"]):
            for batch in batches or ():
                found |= keys.intersection(batch.column("key").to_pylist())
    return found


def clear_partial(ledger_url: str) -> int:
    """Rewrite the partial rows that still count as one file; how many those are. All are held in memory.

    Raises:
        MillError: the store can't be read or written; nothing that counts is missing then.
    """
    urls = ledger_parts(ledger_url, kind=PARTIAL_PART)
    read = {url: rows for url in urls if (rows := read_part(url)) is not None}
    every = [row for rows in read.values() for row in rows]
    finished = _finished(ledger_url, {row.key for row in every})
    left = [row for key, row in sorted(furthest(every).items()) if key not in finished]
    if len(left) == len(every) and len(read) <= 1:
        return len(left)
    written = write_part(ledger_url, left, kind=PARTIAL_PART) if left else None
    for url in read:
        if url != written:
            remove(url, ledger_url)
    return len(left)
