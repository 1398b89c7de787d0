"""What packing makes: the items that fit into rows, and the rows of the shards."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import msgspec
import numpy as np

from sharding.records.arrow import Int32, Int32s, Int64s, RowBools, RowFloat16s, RowTokenIds, RowUint8s
from sharding.records.base import Record

Split = Literal["train", "validation"]


class TokenType(IntEnum):
    """What a token of a training sequence is; the values of the `token_type` column."""

    PADDING = 0
    SOURCE = 1
    THOUGHT = 2
    DELIMITER = 3


class Item(Record, frozen=True, kw_only=True, eq=False):
    """A document, or a piece of one, laid out with its thoughts: what packing never tears.

    Attributes:
        source_start: index within the document of the item's first source token.
        input_ids: (num_tokens,) uint16 or uint32.
        token_type: (num_tokens,) uint8, values of `TokenType`.
        surprisal: (num_tokens,) float16 nats, as in `Row`; (0,) where the corpus has none.
        copy: which copy of the document it belongs to, from 0; not stored.
        split: which one its document is in; not stored.
        epoch: the first one that shows it, where `pack.trace_per_epoch` has several; not stored.
    """

    doc_id: str
    source_start: int
    input_ids: np.ndarray
    token_type: np.ndarray
    surprisal: np.ndarray = msgspec.field(default_factory=lambda: np.empty(0, np.float16))
    copy: int = 0
    split: Split = "train"
    epoch: int = 0


class Row(Record, frozen=True, kw_only=True, eq=False):
    """One packed training sequence of exactly `sequence_length` tokens.

    Attributes:
        input_ids: (sequence_length,) uint16 or uint32; padding is id 0 with token type 0.
        token_type: (sequence_length,) uint8, values of `TokenType`.
        seq_lengths: (num_items,) int32, tokens of each item in the row; what remains is padding.
        doc_ids: the document of each item.
        source_starts: (num_items,) int64, index within its document of each item's first source token; puts the
            pieces of a document that was cut back in order.
        surprisal: (sequence_length,) float16, the nats of each source token that the score stage gave, NaN of all
            others; (0,) where no shard of the corpus says.
    """

    input_ids: RowTokenIds
    token_type: RowUint8s
    seq_lengths: Int32s
    doc_ids: list[str]
    source_starts: Int64s
    surprisal: RowFloat16s = msgspec.field(default_factory=lambda: np.empty(0, np.float16))


class MaskedRow(Row, frozen=True, kw_only=True, eq=False):
    """A row as it is written where `pack.loss_mask` leaves tokens out; between workers it is a `Row`.

    Attributes:
        loss_mask: (sequence_length,) bool, True where the token counts as one to be predicted; (0,) where no shard of
            the corpus says.
    """

    loss_mask: RowBools = msgspec.field(default_factory=lambda: np.empty(0, np.bool_))


class ItemPlace(Record, frozen=True, kw_only=True, eq=False):
    """Where an item of a document stands in the shards: a row of the index of documents.

    A document that was cut has several, and one that is repeated has them for each copy.

    Attributes:
        shard: the file, by its name in the manifest.
        row: its row there, from 0; rows of padding are counted.
        token_start: index within the row of the item's first token.
        num_tokens: tokens of the item, delimiters included.
        source_start: as in `Row`.
    """

    doc_id: str
    source_start: int
    shard: str
    row: Int32
    token_start: Int32
    num_tokens: Int32
