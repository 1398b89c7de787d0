"""Forgetting: the rows of documents that were taken down leave a ledger for good, what was dropped before
and what was interrupted included.

Unlike `dropping`, nothing is kept beside it. A part is replaced by one with the rows that stay, under a name that
follows from both, so what was killed is finished by the same call again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pyarrow as pa

from augment.ledger.parts import DROPPED, PART, PARTIAL_PART, every_part, remove_part, write_table


@dataclass(kw_only=True)
class Forgotten:
    """What left a ledger.

    Attributes:
        rows: generations of the requests named; strangers: others about a removed document, of another config or run.
        renamed: rows that stay, since another document asks for the same, under that one's name.
        parts_unread: parts that can't be read, and are as they were.
    """

    rows: int = 0
    strangers: int = 0
    renamed: int = 0
    parts_unread: int = 0


def forget(
    ledger_url: str,
    request_keys: AbstractSet[str],
    is_removed: Callable[[str], bool],
    renamed: Mapping[str, str],
) -> Forgotten:
    """Take rows out for good. Holds one part in memory; no run may be at work on the ledger.

    Args:
        ledger_url: its folder; there need not be one.
        request_keys: the requests whose rows go.
        is_removed: whether a document, by its id, was taken down: rows about it go too, whoever asked for them.
        renamed: request key → the segment that its rows are of from now on, because that one asks for the same.

    Raises:
        MillError: the store can't be read or written; what left until then has.
    """
    done = Forgotten()
    for kind in (PART, DROPPED, PARTIAL_PART):
        seen: set[str] = set()
        for url, batches in every_part(ledger_url, kind=kind, seen=seen):
            if not batches:
                done.parts_unread += batches is None
                continue
            rows = pa.Table.from_batches(batches)
            stay = _staying(rows, request_keys, is_removed, renamed, done)
            if stay is not rows:
                if len(stay):
                    seen.add(write_table(ledger_url, stay, like=url, kind=kind))
                remove_part(url, ledger_url)
    return done


def _staying(
    rows: pa.Table,
    request_keys: AbstractSet[str],
    is_removed: Callable[[str], bool],
    renamed: Mapping[str, str],
    done: Forgotten,
) -> pa.Table:
    """The rows that stay; the table itself where all do, as they are."""
    segments = rows["segment_id"].to_pylist()
    stays: list[bool] = []
    changed = False
    for number, key in enumerate(rows["request_key"].to_pylist()):
        about_removed = is_removed(segments[number].rpartition("#")[0])
        if about_removed and key in renamed:
            segments[number] = renamed[key]
            done.renamed += 1
            changed = True
        stay = key in renamed or not (key in request_keys or about_removed)
        done.rows += key in request_keys and not stay
        done.strangers += key not in request_keys and not stay
        stays.append(stay)
    if not changed and all(stays):
        return rows
    place = rows.schema.get_field_index("segment_id")
    rows = rows.set_column(place, rows.schema.field(place), pa.array(segments, pa.string()))
    return rows.filter(pa.array(stays))
