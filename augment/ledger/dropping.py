"""Dropping: rows taken out of the ledger by what they are, so that a model or server that was mended is asked again.

What is dropped was paid for, and is kept and counted: it goes to `dropped-*.arrow` beside the parts before any part
goes. A part is replaced by one with the rows that stay, under a name that follows from both, so a drop that was killed
is finished by the same drop again, and nothing that stays is ever missing.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from augment.ledger.partial import clear_partial
from augment.ledger.parts import (
    DROPPED,
    PART,
    PARTIAL_PART,
    every_part,
    ledger_parts,
    part_batches,
    remove_part,
    write_table,
)
from sharding.errors import MillError, RequestError
from sharding.storage.files import join

EMPTY = "empty"
"""The reason of a row without text; the others are how generations end, by the engine and by the mill."""

_REASONS = ("finish_reason", "closed")
_CONDITION = re.compile(r"(?P<key>\w+)\s*(?P<sign><=|>=|<|>|!=|=)\s*(?P<values>.+)")
_SIGNS = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


@dataclass(frozen=True)
class Condition:
    """What a row has to be: `key` is one of `values` (or none of them, with "!="), or was finished before or after.

    Attributes:
        key: "model", "tier", "reason" or "time".
    """

    key: str
    sign: str
    values: tuple[str, ...]

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which rows it holds for."""
        if self.key == "time":
            return _SIGNS[self.sign](rows["finished_at"], pa.scalar(_unix_time(self.values[0])))
        values = pa.array(self.values, pa.string())
        if self.key == "reason":
            found = reduce(pc.or_, (pc.is_in(rows[column], values) for column in _REASONS))
            found = pc.or_(found, _is_empty(rows)) if EMPTY in self.values else found
        else:
            found = pc.is_in(rows[self.key], values)
        return pc.invert(found) if self.sign == "!=" else found


def parse(text: str) -> Condition:
    """A condition as a person writes it: "model=a,b", "reason=empty", "tier!=deep", "time>=2026-11-25T10:00".

    Raises:
        RequestError: it is none; says what is.
    """
    found = _CONDITION.fullmatch(text.strip())
    if found is None or found["key"] not in ("model", "tier", "reason", "time"):
        raise RequestError(
            f"--where {text!r}: write it as model=NAME, tier=NAME, reason={EMPTY} (or length, cut, forced, ...), with "
            "!= for all others and commas between several, or as time>=2026-11-25T10:00"
        )
    key, sign = found["key"], found["sign"]
    values = tuple(value.strip() for value in found["values"].split(","))
    if (key == "time") != (sign in _SIGNS):
        raise RequestError(f"--where {text!r}: {key} goes with {' '.join(_SIGNS) if key == 'time' else '= and !='}")
    if key == "time":
        try:
            _unix_time(found["values"])
        except ValueError as error:
            raise RequestError(f"--where {text!r}: write the time as 2026-11-25T10:00 (UTC): {error}") from error
        values = (found["values"],)
    if not all(values):
        raise RequestError(f"--where {text!r}: there is nothing between two commas")
    whole = found["values"].strip()  # names may hold commas: "!=" must not take those out that it is to leave
    return Condition(key, sign, values if whole in values else (*values, whole))


@dataclass(kw_only=True)
class Dropped:
    """What a drop took out, or would.

    Attributes:
        rows_before: all that could be read; rows, thought_tokens: of those taken out.
        parts_unread: parts that couldn't be read, and are as they were.
        by: "model", "tier" and "reason" → how many of those taken out have each value.
        present: the same of all rows, for whoever named what isn't there.
    """

    rows_before: int = 0
    rows: int = 0
    thought_tokens: int = 0
    parts_unread: int = 0
    by: dict[str, Counter[str]] = field(default_factory=dict)
    present: dict[str, Counter[str]] = field(default_factory=dict)


def drop(ledger_url: str, conditions: Sequence[Condition], *, dry_run: bool = False) -> Dropped:
    """Take out the rows for which all conditions hold, partial ones too, so that no run goes on from them.

    Holds one part in memory, and the partial rows; not to be run beside a compaction.

    Args:
        dry_run: only count them.

    Raises:
        RequestError: there is no condition, or no ledger.
        MillError: the store can't be read or written; what was taken out until then is.
    """
    if not conditions:
        raise RequestError("ledger drop: name at least one --where, or every row would go")
    if not dry_run:
        clear_partial(ledger_url)  # those that were gone on with have their tokens in the row that came of it
    if not any(ledger_parts(ledger_url, kind=kind) for kind in (PART, PARTIAL_PART)):
        raise RequestError(f"{ledger_url} has no parts of a ledger; name the folder of one, such as OUTPUT/ledger")
    done = Dropped()
    seen: set[str] = set()
    found = ((kind, *part) for kind in (PART, PARTIAL_PART) for part in every_part(ledger_url, kind=kind, seen=seen))
    for kind, url, batches in found:
        if not batches:
            done.parts_unread += batches is None
            continue
        rows = pa.Table.from_batches(batches)
        try:
            matches = reduce(pc.and_, (condition.mask(rows) for condition in conditions))
            out, stay = rows.filter(matches), rows.filter(pc.invert(matches))
            _count(done, rows, out)
        except (pa.ArrowException, KeyError) as error:
            raise MillError(f"ledger part {url} doesn't have the columns of one: {error}") from error
        if dry_run or not len(out):
            continue
        write_table(ledger_url, out, like=url, kind=DROPPED)
        if len(stay):
            seen.add(write_table(ledger_url, stay, like=url, kind=kind))
        remove_part(url, ledger_url)
    return done


def drops(ledger_url: str) -> list[str]:
    """The names of what was dropped so far, a file for each part that rows were taken out of.

    Raises:
        MillError: the store can't be listed.
    """
    return [url.rsplit("/", 1)[-1] for url in ledger_parts(ledger_url, kind=DROPPED)]


def dropped_rows(ledger_url: str, names: Iterable[str], column: str) -> list[Any]:
    """One column of rows that were dropped.

    Raises:
        MillError: the store can't be read.
    """
    found = (part_batches(join(ledger_url, name), [column]) or () for name in names)
    return [value for batches in found for batch in batches for value in batch.column(column).to_pylist()]


def _count(done: Dropped, rows: pa.Table, out: pa.Table) -> None:
    done.rows_before += len(rows)
    done.rows += len(out)
    done.thought_tokens += pc.sum(out["thought_tokens"]).as_py() or 0
    for counts, table in ((done.present, rows), (done.by, out)):
        for key, columns in {"model": ("model",), "tier": ("tier",), "reason": _REASONS}.items():
            counts.setdefault(key, Counter()).update(value for c in columns for value in table[c].to_pylist())
        if empty := pc.sum(_is_empty(table)).as_py():
            counts["reason"][EMPTY] += empty


def _is_empty(rows: pa.Table) -> pa.ChunkedArray:
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rows["text"])), 0)


def _unix_time(text: str) -> float:
    at = datetime.datetime.fromisoformat(text.strip())
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()
