"""Reading the ledger: every finished generation, one row for each key.

Written by the augment stage while it generates, read when it starts (to leave out what is there), by select, and by
`thoughtmill status` from another machine. A part appears whole or not at all; what it looks like, and how a damaged one
is recognised, is in `augment.ledger.parts`. Rows with equal keys, from bundles that were run twice, collapse to one by
`choose`, everywhere, so that what is counted is what is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from augment.ledger.parts import every_part
from sharding.records.arrow import from_batch
from sharding.records.base import encode
from sharding.records.types import LedgerRow

logger = logging.getLogger(__name__)

RANK = ("finished_at", "thought_tokens")
"""Of rows with equal keys that of the least rank stands for all; see `choose`."""


STEP_COLUMNS = (
    *("key", "request_key", "sample", "model", "revision", "engine", "engine_version", "text", "thought_tokens"),
    *("finish_reason", "closed", "prompt_tokens", "wall_s", "finished_at", "step", "made_from", "wants", "continued"),
)
"""What a recipe that goes on from a call needs of its row."""


def read_ledger(ledger_url: str, columns: Sequence[str] | None = None) -> Iterator[LedgerRow]:
    """All rows, duplicates included, in no order that means anything; parts that can't be read are left out.

    A part that a compaction has just replaced is found under its new name; its rows may then come twice.

    Raises:
        MillError: the store can't be read.
    """
    for _, batches in every_part(ledger_url, columns):
        for batch in batches or ():
            yield from from_batch(LedgerRow, batch)


def choose(rows: Iterable[LedgerRow]) -> LedgerRow:
    """The row that stands for rows with equal keys: the earliest, of equals the shorter, then the least in bytes.

    Depends on the rows alone, not on their order or the parts they came from. Who counts needs the columns of `RANK`
    alone: rows that are equal in them count the same.

    Raises:
        ValueError: there are no rows.
    """
    return min(rows, key=lambda row: (*(getattr(row, column) for column in RANK), row.text, encode(row)))


def collapse_duplicates(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """One row per key, in the order of request and sample; all are held in memory."""
    by_key: dict[str, LedgerRow] = {}
    for row in rows:
        other = by_key.get(row.key)
        by_key[row.key] = row if other is None else choose([row, other])
    return sorted(by_key.values(), key=lambda row: (row.request_key, row.sample))
