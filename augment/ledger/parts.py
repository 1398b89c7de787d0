"""The parts of the ledger: immutable Arrow streams whose names carry a digest of their bytes.

Under `augment.ledger`, which says when parts are written and what their rows mean. Arrow detects next to nothing: of
300 single-bit flips in a zstd stream 239 loaded silently wrong. The digest in a part's name is the guard, and being in
the name it needs no second file that could be missing. A part that is damaged or half-written is left out, and its
rows are generated again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa

from augment.ledger import keys
from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.records.arrow import from_batch, to_batch
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.types import LedgerRow
from sharding.storage import clock
from sharding.storage.arrow_files import BATCH_BYTES, checked_batches, chunks, new_stream, record_size_bytes
from sharding.storage.files import join, list_names, read_bytes, remove, write_bytes

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 16
PART, DROPPED, PARTIAL_PART = "part", "dropped", "partial"
"""What a file of a ledger begins with: rows that count, rows that were taken out (see `ledger.dropping`), and what
there is of generations that were interrupted (see `ledger.partial`)."""

T = TypeVar("T")

MOST_PREFIXES = 4
"""A stretch of time is listed by so many prefixes of names at most."""

LISTED_AHEAD_MS = 600_000
"""Parts may be dated so much ahead of who reads: by the store's clock, but for stores that have none to go by."""

LATE_S, LATE_LOOK_S = 60.0, 1.0
"""A listing that shows what is gone is a late one: it is asked for again, for so long, so often."""

_NAME = re.compile(r"(part|dropped|partial)-(?P<written_ms>\d+)-(?P<digest>[0-9a-f]+)\.arrow")


def write_part(
    ledger_url: str, rows: Sequence[LedgerRow], schema: pa.Schema = LEDGER_SCHEMA, *, kind: str = PART
) -> str:
    """Write rows as one new part, whole or not at all; its URL. The part is held in memory.

    Args:
        kind: `PART` or `PARTIAL_PART`.

    Raises:
        MillError: the store refused.
    """
    batches = [to_batch(chunk, schema) for chunk in chunks(rows, BATCH_BYTES, record_size_bytes)]
    return _write(ledger_url, batches, schema, kind, clock.now_ms(ledger_url))


def write_table(
    ledger_url: str, rows: pa.Table, *, like: str | None = None, kind: str = PART, known: np.ndarray | None = None
) -> str:
    """Write rows of parts that are there as a file of its own; its URL follows from the rows and the date.

    Args:
        like: a part whose date it gets; None: now.
        kind: `PART`, `DROPPED` or `PARTIAL_PART`.
        known: (rows,) of `keys.KEY_ROWS`, their keys, where they are at hand.

    Raises:
        MillError: the store refused.
    """
    rows = rows.combine_chunks()
    size = max(1, len(rows) * BATCH_BYTES // max(1, rows.nbytes))
    written_ms = clock.now_ms(ledger_url) if like is None else _written_ms(like.rsplit("/", 1)[-1])
    return _write(ledger_url, rows.to_batches(size), rows.schema, kind, written_ms, known)


def _write(
    ledger_url: str,
    batches: Sequence[pa.RecordBatch],
    schema: pa.Schema,
    kind: str,
    written_ms: int,
    known: np.ndarray | None = None,
) -> str:
    sink = pa.BufferOutputStream()
    with new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    url = join(ledger_url, f"{kind}-{written_ms}-{_digest(data)}.arrow")
    write_bytes(url, data)
    if kind == PART:
        try:
            if known is None:
                known = keys.keys_of(row for batch in batches for row in from_batch(LedgerRow, batch))
            write_bytes(keys.keys_url(url), keys.to_bytes(known))
        except MillError as error:
            logger.info("%s has no key file, so whoever looks at its keys reads it whole: %s", url, error)
    return url


def remove_part(url: str, ledger_url: str) -> None:
    """Remove a part and what lies beside it.

    Raises:
        MillError: the store refused.
    """
    remove(keys.keys_url(url), ledger_url)
    remove(url, ledger_url)


def ledger_parts(ledger_url: str, since_ms: int = 0, kind: str = PART) -> list[str]:
    """The URLs of the ledger's parts as the store has them now, oldest first; none where there is no ledger.

    Args:
        kind: `PART`, `DROPPED` for those that were taken out, or `PARTIAL_PART`.
        since_ms: leave out those written before this Unix time in milliseconds, by the store's clock.

    Raises:
        MillError: the store can't be listed.
    """
    names = list_names(ledger_url, _prefixes(kind, since_ms, clock.now_ms(ledger_url)) if since_ms else [f"{kind}-"])
    return [
        join(ledger_url, name)
        for name in names
        if name.endswith(".arrow") and (since_ms == 0 or _written_ms(name) >= since_ms)
    ]


def _prefixes(kind: str, since_ms: int, now_ms: int) -> list[str]:
    """What the names of parts since then begin with: a store that lists by it is asked for little else."""
    until_ms = now_ms + LISTED_AHEAD_MS
    if 10**12 <= since_ms <= until_ms < 10**13:  # all dates in between have as many digits
        for digits in range(6, 13):
            first, last = since_ms // 10**digits, until_ms // 10**digits
            if last - first < MOST_PREFIXES:
                return [f"{kind}-{start}" for start in range(first, last + 1)]
    return [f"{kind}-"]


def part_batches(url: str, columns: Sequence[str] | None = None) -> list[pa.RecordBatch] | None:
    """The rows of one part as they rest; columns not asked for are left out, and not decompressed.

    Returns:
        None if the part is half-written or damaged, which is logged with its name: its rows will be generated again.

    Raises:
        MillError: the store can't be read, or (with `FileNotFoundError` as its cause) the part is gone.
    """
    data = read_bytes(url)
    name = _NAME.fullmatch(url.rsplit("/", 1)[-1])
    try:
        # Parts of earlier versions have 16 random digits in the place of the digest's 32.
        if name is not None and len(name["digest"]) == 2 * _DIGEST_BYTES and name["digest"] != _digest(data):
            raise pa.ArrowInvalid("its bytes are not those that were written")
        return _parse(data, columns)
    except (OSError, pa.ArrowException) as error:
        logger.warning("ledger part skipped, its rows will be generated again: %s (%s)", url, error)
        return None


def read_part(url: str, columns: Sequence[str] | None = None) -> list[LedgerRow] | None:
    """The rows of one part; columns not asked for are left at their type's zero. Otherwise as `part_batches`."""
    batches = part_batches(url, columns)
    return None if batches is None else [row for batch in batches for row in from_batch(LedgerRow, batch)]


def part_keys(url: str) -> np.ndarray | None:
    """(rows,) of `keys.KEY_ROWS`: the keys of one part, from its key file, or from itself where that is of no use.

    Returns:
        None if neither can be read, which is logged.

    Raises:
        MillError: as `part_batches`.
    """
    try:
        found = keys.from_bytes(read_bytes(keys.keys_url(url)))
    except MillError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        found = None
    if found is not None:
        return found
    rows = read_part(url)
    return None if rows is None else keys.keys_of(rows)


def every_part(
    ledger_url: str,
    columns: Sequence[str] | None = None,
    *,
    kind: str = PART,
    since_ms: int = 0,
    seen: set[str] | None = None,
) -> Iterator[tuple[str, list[pa.RecordBatch] | None]]:
    """The URLs of the parts and their rows, one by one, until a listing has nothing new.

    A part that a compaction has replaced between listing and reading is found under its new name, however late a store
    lists; its rows may then come twice. Whoever reads a ledger that others write goes by this: a part that is skipped
    as gone takes its rows along.

    Args:
        columns, kind, since_ms: as for `part_batches` and `ledger_parts`.
        seen: URLs to pass over. Those that were read are added, also while this goes on; so may a caller add what it
            writes itself. One that the store refused is not among them.

    Yields:
        The URL, and its rows; None for those of a part that is damaged.

    Raises:
        MillError: the store can't be read, or goes on listing what is gone.
    """
    return _every(lambda url: part_batches(url, columns), ledger_url, kind, since_ms, seen)


def every_part_keys(
    ledger_url: str, *, since_ms: int = 0, seen: set[str] | None = None
) -> Iterator[tuple[str, np.ndarray | None]]:
    """As `every_part`, of the keys alone: see `part_keys`."""
    return _every(part_keys, ledger_url, PART, since_ms, seen)


def _every(
    read: Callable[[str], T], ledger_url: str, kind: str, since_ms: int, seen: set[str] | None
) -> Iterator[tuple[str, T]]:
    seen = set() if seen is None else seen
    gone: set[str] = set()
    late_until: float | None = None
    while True:
        listed = ledger_parts(ledger_url, since_ms, kind)
        fresh = [url for url in listed if url not in seen]
        for url in fresh:
            if url in seen:
                continue
            try:
                found = read(url)
            except MillError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                seen.add(url)
                gone.add(url)
                continue
            seen.add(url)
            yield url, found
        if not fresh:
            if gone.isdisjoint(listed):
                return
            # As late as it is with what went, it may be with what came in its place.
            late_until = late_until or time.monotonic() + LATE_S
            if time.monotonic() >= late_until:
                raise MillError(
                    f"{ledger_url}: the store lists {len(gone.intersection(listed))} parts that are gone, and may not "
                    "list what came in their place: wait until its listing has caught up, and run again"
                )
            time.sleep(LATE_LOOK_S)
            seen -= gone  # one may be there again
            gone.clear()


def _parse(data: bytes, columns: Sequence[str] | None) -> list[pa.RecordBatch]:
    return list(checked_batches(data, columns, kind=LedgerRow))


def _digest(data: bytes) -> str:
    return fingerprint([data], _DIGEST_BYTES)


def _written_ms(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found["written_ms"]) if found else 0
