"""How much of a source may come to nothing: `max_quarantined`, as a share of its files and of its records.

    records of a unit ─► FileTally ─► of the whole file ─► SourceTally ─► too much? an error before anything is scored

A file of which nothing became a document is told by name whatever the share. The same check is made at the listing, of
what the first bytes tell, and when all is scored, of what the tokenizer can't spell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from sharding.errors import MillError
from sharding.records.types import Quarantined
from sharding.sources.config import FORMATS, Source
from sharding.sources.glances import description

MAX_SHOWN = 5
"""So many files are named."""

MAX_TOLD = 300
"""Characters of a record's own error."""


class BarrenFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file of which nothing became a document, and why in words."""

    file: str
    why: str


class FileTally(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the records of a file, or of a piece of one.

    Attributes:
        source: which of several sources.
        file: its URL, with the number of the shard of a dataset.
        documents: how many.
        refused: how many went to quarantine, by reason.
        first: the first of these, in words.
    """

    source: int
    file: str
    documents: int = 0
    refused: dict[str, int] = {}
    first: str = ""


class SourceTally(msgspec.Struct, kw_only=True):
    """What became of the files and records of a source.

    Attributes:
        files: how many.
        barren: of how many nothing became a document.
        shown: the first of these.
        documents, refused, first: see `FileTally`.
    """

    files: int = 0
    barren: int = 0
    shown: list[BarrenFile] = msgspec.field(default_factory=list)
    documents: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    first: str = ""


def with_refused(tally: FileTally, record: Quarantined) -> FileTally:
    """The tally with one record more that went to quarantine."""
    first = tally.first or f"{record.origin}: {record.reason}: {record.detail[:MAX_TOLD]}"
    return msgspec.structs.replace(tally, refused=_sum(tally.refused, {record.reason: 1}), first=first)


def of_file(pieces: Iterable[FileTally]) -> FileTally:
    """The tally of a file from those of its pieces."""
    total, *others = pieces
    for piece in others:
        total = msgspec.structs.replace(
            total,
            documents=total.documents + piece.documents,
            refused=_sum(total.refused, piece.refused),
            first=min(filter(None, (total.first, piece.first)), default=""),
        )
    return total


def add_file(total: SourceTally, file: FileTally) -> None:
    """Add a whole file to the tally of its source."""
    is_barren = not file.documents
    why = f"its first record is {file.first}" if file.first else "it has no records"
    shown = [BarrenFile(file=file.file, why=why)] if is_barren else []
    add_up(
        total,
        SourceTally(
            files=1,
            barren=is_barren,
            shown=shown,
            documents=file.documents,
            refused=file.refused,
            first=file.first,
        ),
    )


def add_up(total: SourceTally, more: SourceTally) -> None:
    """Add the tally of other files of a source; in any order it comes to the same."""
    total.files += more.files
    total.barren += more.barren
    total.shown = sorted([*total.shown, *more.shown])[:MAX_SHOWN]
    total.documents += more.documents
    total.refused = _sum(total.refused, more.refused)
    total.first = min(filter(None, (total.first, more.first)), default="")


def described(tally: SourceTally) -> SourceTally:
    """The tally with what its barren files look like.

    Raises:
        MillError: one can't be read.
    """
    shown = [
        BarrenFile(file=found.file, why=f"it looks like {looks}; {found.why}")
        if "#" not in found.file and (looks := description(found.file))
        else found
        for found in tally.shown
    ]
    return msgspec.structs.replace(tally, shown=shown)


def check_read(source: Source, tally: SourceTally) -> None:
    """Refuse a source of which too much came to nothing when it was read.

    Raises:
        MillError: it is over the source's share; names files, or one of the records.
    """
    refused = sum(tally.refused.values())
    has_fields = FORMATS[source.config.format or ""].has_fields
    fields = f"{source.key}.text_field: {source.config.text_field!r}" if has_fields else ""
    told = f"{_so_many(refused, refused + tally.documents, tally.refused)}; {fields}".rstrip("; ")
    check_files(source, tally.barren, tally.files, tally.shown, told)
    if refused > source.config.max_quarantined * (refused + tally.documents):
        raise MillError(
            f"{source.key}: {told}, and {_limit(source)}: correct the config or the files, or raise it; one of them is "
            f"{tally.first}"
        )


def check_files(source: Source, barren: int, files: int, shown: Sequence[BarrenFile], told: str = "") -> None:
    """Refuse a source of which too many files come to nothing.

    Args:
        source: whose files.
        barren: how many came to nothing.
        files: how many there are.
        shown: some of those that came to nothing.
        told: what else there is to say.

    Raises:
        MillError: it is over the source's share; names some of the files.
    """
    if barren <= source.config.max_quarantined * files:
        return
    named = "; ".join(f"{found.file}: none of it became a document; {found.why}" for found in shown)
    raise MillError(
        f"{source.key}.path: {named}: so it is with {barren:,} of {files:,} files, and {_limit(source)}"
        f"{f' ({told})' if told else ''}: mend them, leave them out by a glob, or raise it"
    )


_LEFT_OUT = ("duplicates_dropped", "near_copies_dropped", "documents_delivered_before")
"""Counts of documents that were read and left out, without a word of which source."""


def check_scored(
    sources: Sequence[Source], tallies: Sequence[SourceTally], counts: Mapping[str, int], parts: str
) -> None:
    """Refuse a source of which too many records came to nothing when all was scored, by the tokenizer as well.

    Args:
        sources: the sources.
        tallies: what became of each when it was read.
        counts: those of the score stage.
        parts: where the records in quarantine are.

    Raises:
        MillError: it is over the source's share.
    """
    reasons = {n.removeprefix("quarantined."): c for n, c in counts.items() if n.startswith("quarantined.")}
    if not counts["documents"]:
        fields = ", ".join(f"{source.key}.text_field: {source.config.text_field!r}" for source in sources)
        first = min(filter(None, (tally.first for tally in tallies)), default="")
        raise MillError(
            f"{sources[0].key}: none of {counts['documents_in']:,} records became a document ({fields}): correct the "
            + (f"config and add --replace; one of them is {first}; all" if first else "config and add --replace; those")
            + f" in quarantine are in {parts}"
        )
    by_tokenizer = counts["quarantined"] - sum(sum(tally.refused.values()) for tally in tallies)
    for source, tally in zip(sources, tallies, strict=True):
        refused = sum(tally.refused.values())
        name = source.config.name
        if len(sources) == 1:
            lost = by_tokenizer
        elif name and not any(counts.get(each) for each in _LEFT_OUT):
            lost = tally.documents - counts.get(f"source.{name}.documents", 0)
        else:  # which sources the dropped copies were of isn't counted: the refused are taken to be spread evenly
            lost = by_tokenizer * tally.documents // max(1, sum(each.documents for each in tallies))
        if refused + lost > source.config.max_quarantined * (refused + tally.documents):
            raise MillError(
                f"{source.key}: {_so_many(refused + lost, refused + tally.documents, reasons)}, and {_limit(source)}: "
                "correct the tokenizer or the files, or raise it (nothing is scored again for that); the records are "
                f"in {parts}"
            )


def _so_many(refused: int, records: int, reasons: Mapping[str, int]) -> str:
    named = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    return f"{refused:,} of {records:,} records went to quarantine ({named})"


def _limit(source: Source) -> str:
    return f"{source.key}.max_quarantined is {source.config.max_quarantined:g}"


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
