"""The families of part files that the stages write: what a part holds, where a record goes and in which order it rests.

A record goes to the part that a hash of its document's id names, and a part is sorted by document. So what several
families say of a document is in their parts of equal number, in one order, and can be merged: see
`sharding.beam.joins.JoinParts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pyarrow as pa

from sharding.records.arrow import schema_of
from sharding.records.base import Record
from sharding.records.rows import ItemPlace, MaskedRow
from sharding.records.types import (
    Candidate,
    ContaminatedDocument,
    LedgerRow,
    NearCopy,
    Quarantined,
    Request,
    ScoredDocument,
    ScoredSegment,
)


@dataclass(frozen=True)
class Family:
    """One family of files of a stage.

    Attributes:
        name: in the manifest, and at the beginning of the files' names.
        kind: the type of its rows.
        partition_by: the attribute, a string, whose hash chooses the part; "" where the stage deals rows out itself.
        sort_by: the attributes that order a part; together they tell any two records apart.
        carried: the type in which rows come to be written; `kind` itself when None.
        rows_of: the rows of one that is carried.
    """

    name: str
    kind: type[Record]
    partition_by: str = ""
    sort_by: tuple[str, ...] = ()
    carried: type[Record] | None = None
    rows_of: Callable[[Any], Iterable[Record]] | None = None

    def schema(
        self,
        *,
        vocab_size: int | None = None,
        sequence_length: int | None = None,
        with_loss_mask: bool = False,
        with_surprisal: bool = False,
    ) -> pa.Schema:
        """The columns of its files.

        Args:
            vocab_size: entries of the training vocabulary, for families with token ids.
            sequence_length: tokens in a row, for the shards.
            with_loss_mask: whether shards say which tokens count, for the shards.
            with_surprisal: whether they say how unexpected each token was, for the shards.

        Raises:
            ValueError: a number that the family's columns depend on is absent.
        """
        optional = {"loss_mask": with_loss_mask, "surprisal": with_surprisal}
        without = [name for name, wanted in optional.items() if not wanted]
        return schema_of(self.kind, vocab_size=vocab_size, sequence_length=sequence_length, without=without)

    @property
    def partition_key(self) -> Callable[[Any], str]:
        """The string of a record whose hash chooses its part."""
        return attrgetter(self.partition_by)

    @property
    def sort_key(self) -> Callable[[Any], Any]:
        """What orders the records of a part."""
        return attrgetter(*self.sort_by)


SEGMENTS = Family(
    "segments", ScoredSegment, "doc_id", ("doc_id",), carried=ScoredDocument, rows_of=ScoredDocument.segments
)
QUARANTINE = Family("quarantine", Quarantined, "origin", ("origin", "reason", "detail"))
REQUESTS = Family("requests", Request, "doc_id", ("doc_id", "segment_index"))
KEPT = Family("kept", Candidate, "doc_id", ("doc_id", "segment_index", "sample"))
REJECTED = Family("rejected", Candidate, "doc_id", ("doc_id", "segment_index", "sample"))
CONTAMINATED = Family("contaminated", ContaminatedDocument, "doc_id", ("doc_id",))
NEAR_COPIES = Family("near_copies", NearCopy, "doc_id", ("doc_id",))
ROWS = Family("shards", MaskedRow)
EPOCH_ROWS = Family("epoch_shards", MaskedRow)
DOCUMENTS = Family("documents", ItemPlace, "doc_id", ("doc_id", "source_start", "shard", "row", "token_start"))

_ALL = (SEGMENTS, QUARANTINE, NEAR_COPIES, REQUESTS, KEPT, REJECTED, CONTAMINATED, ROWS, EPOCH_ROWS, DOCUMENTS)

FAMILIES = {family.name: family for family in _ALL}
"""By name."""

LEDGER_SCHEMA = schema_of(LedgerRow)
"""Of the ledger's parts, which are no stage's: see `augment.ledger.parts`."""
