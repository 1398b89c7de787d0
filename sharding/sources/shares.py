"""How much of a source may come to nothing: `max_quarantined`, as a share of its files and of its records. Pure.

A file of which nothing became a document is told by name whatever the share; a source that loses more than it may stops
the run, where it is known: at the listing, when everything is read, or when everything is scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sharding.errors import MillError, RequestError
from sharding.sources.config import Source

MAX_SHOWN = 5
"""So many files are named."""


class BarrenFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file of which nothing became a document, and why in words."""

    file: str
    why: str


def check_files(source: Source, barren: int, files: int, shown: Sequence[BarrenFile]) -> None:
    """Refuse a source of which too many files come to nothing.

    Args:
        source: whose files.
        barren: how many came to nothing.
        files: how many there are.
        shown: some of those that came to nothing.

    Raises:
        RequestError: it is over the source's share; names some of the files.
    """
    if barren <= source.config.max_quarantined * files:
        return
    named = "; ".join(f"{found.file}: none of it became a document; {found.why}" for found in shown)
    raise RequestError(
        f"{source.key}.path: {named}: so it is with {barren:,} of {files:,} files, and {_limit(source)}: mend them, "
        "leave them out by a glob, or raise it"
    )


def check_records(source: Source, quarantined: int, records: int, reasons: str, where: str) -> None:
    """Refuse a source of which too many records come to nothing.

    Args:
        source: whose records.
        quarantined: how many came to nothing.
        records: how many there are.
        reasons: why, in words.
        where: where they can be looked at, or one of them.

    Raises:
        MillError: it is over the source's share.
    """
    if quarantined > source.config.max_quarantined * records:
        raise MillError(
            f"{source.key}: {quarantined:,} of {records:,} records went to quarantine ({reasons}), and "
            f"{_limit(source)}: {where}"
        )


def _limit(source: Source) -> str:
    return f"{source.key}.max_quarantined is {source.config.max_quarantined:g}"
