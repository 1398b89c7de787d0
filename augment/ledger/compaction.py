"""Compaction: the ledger rewritten as few large parts without duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from augment.ledger.partial import clear_partial
from augment.ledger.parts import ledger_parts, read_part, write_part
from augment.ledger.reading import choose
from sharding.errors import MillError
from sharding.records.types import LedgerRow
from sharding.storage.arrow_files import chunks
from sharding.storage.files import remove


@dataclass(frozen=True)
class Compaction:
    """What `compact` did: parts and rows before and after."""

    parts_before: int
    parts_after: int
    rows_before: int
    rows_after: int


def compact(ledger_url: str, *, rows_per_part: int = 20_000) -> Compaction:
    """Rewrite the ledger as few large parts without duplicates, while others may read and append.

    The new parts are there before the old ones go, so a kill in between leaves duplicates, never holes. Parts that
    can't be read are left where they are. Partial rows stay as far as nothing of their key is finished. Holds the keys
    of all rows in memory, about 100 bytes each, and one part.

    Raises:
        MillError: the store can't be read or written.
    """
    old: list[str] = []
    counts: dict[str, int] = {}
    for url in ledger_parts(ledger_url):
        rows = read_part(url)
        if rows is None:
            continue
        old.append(url)
        for row in rows:
            counts[row.key] = counts.get(row.key, 0) + 1
    clear_partial(ledger_url, counts.keys())
    rows_before = sum(counts.values())
    if len(old) <= 1 and rows_before == len(counts):
        return Compaction(len(old), len(old), rows_before, rows_before)
    new = 0
    for chunk in chunks(_unique(old, counts), rows_per_part, lambda row: 1):
        write_part(ledger_url, chunk)
        new += 1
    for url in old:
        remove(url, ledger_url)
    return Compaction(len(old), new, rows_before, len(counts))


def _unique(urls: list[str], counts: dict[str, int]) -> Iterator[LedgerRow]:
    """The rows of some parts, one per key; duplicates come once the last of them has been read."""
    waiting: dict[str, list[LedgerRow]] = {}
    for url in urls:
        rows = read_part(url)
        if rows is None:
            raise MillError(f"ledger part {url} could be read a moment ago and can't be now; nothing was removed")
        for row in rows:
            if counts[row.key] == 1:
                yield row
                continue
            same = waiting.setdefault(row.key, [])
            same.append(row)
            if len(same) == counts[row.key]:
                yield choose(waiting.pop(row.key))
