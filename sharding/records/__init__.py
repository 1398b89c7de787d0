"""Records: the contract between the stages, as bytes between workers and as Arrow rows at rest.

Document ──► ScoredSegment ──► Request ──► LedgerRow ──► Candidate ──► Item ──► Row
(text)       (score)           (augment)   (ledger)      (select)      (pack)   (pack)
"""

from sharding.records.arrow import (
    from_batch,
    to_batch,
    token_arrow_type,
    token_dtype,
)
from sharding.records.base import Record, decode, encode
from sharding.records.rows import Item, MaskedRow, Row, TokenType
from sharding.records.types import (
    Candidate,
    ContaminatedDocument,
    Document,
    FileEntry,
    LedgerRow,
    NearCopy,
    Quarantined,
    Request,
    ScoredDocument,
    ScoredSegment,
    sample_key,
    segment_id,
)

__all__ = [
    "Candidate",
    "ContaminatedDocument",
    "Document",
    "FileEntry",
    "Item",
    "LedgerRow",
    "MaskedRow",
    "NearCopy",
    "Quarantined",
    "Record",
    "Request",
    "Row",
    "ScoredDocument",
    "ScoredSegment",
    "TokenType",
    "decode",
    "encode",
    "from_batch",
    "sample_key",
    "segment_id",
    "to_batch",
    "token_arrow_type",
    "token_dtype",
]
