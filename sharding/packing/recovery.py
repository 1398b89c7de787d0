"""Recovery: what packed rows were made from, the inverse of `layout` and `best_fit`; for checks and for reading rows.

rows ──► items ─┬─► source: the tokens of a document, in order and complete
                └─► thoughts: each with its place in the document
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sharding.errors import MillError
from sharding.records.rows import Item, Row, TokenType


@dataclass(frozen=True, slots=True, eq=False)
class PlacedThought:
    """A thought as it stands in an item.

    Attributes:
        place: how many tokens of the document's source stand before it.
        input_ids: (num_tokens,) training token ids, without delimiters.
    """

    place: int
    input_ids: np.ndarray


def items_of(row: Row) -> Iterator[Item]:
    """The items of a row, in order.

    Raises:
        MillError: the row's lengths, ids and starts differ in number, or are longer than the row.
    """
    ends = np.cumsum(row.seq_lengths, dtype=np.int64)
    if not len(row.seq_lengths) == len(row.doc_ids) == len(row.source_starts):
        raise MillError(
            f"a row has {len(row.seq_lengths)} lengths, {len(row.doc_ids)} document ids and "
            f"{len(row.source_starts)} starts"
        )
    if len(ends) and ends[-1] > len(row.input_ids):
        raise MillError(f"a row of {len(row.input_ids)} tokens has items of {ends[-1]}")
    for doc_id, start, stop, source_start in zip(
        row.doc_ids, (ends - row.seq_lengths).tolist(), ends.tolist(), row.source_starts.tolist(), strict=True
    ):
        yield Item(
            doc_id=doc_id,
            source_start=source_start,
            input_ids=row.input_ids[start:stop],
            token_type=row.token_type[start:stop],
            surprisal=row.surprisal[start:stop],
        )


def source_of(item: Item) -> np.ndarray:
    """(num_tokens,) the item's source tokens, in order."""
    return item.input_ids[item.token_type == TokenType.SOURCE]


def thoughts_of(item: Item) -> list[PlacedThought]:
    """The item's thoughts, in order.

    Where `pack.thought_open` and `pack.thought_close` are both empty, thoughts that stand at one place come as one.
    """
    if not (item.token_type == TokenType.THOUGHT).any():  # as most have none
        return []
    is_thought = np.concatenate(([False], item.token_type == TokenType.THOUGHT, [False]))
    edges = np.flatnonzero(is_thought[1:] != is_thought[:-1])
    source_before = np.concatenate(([0], np.cumsum(item.token_type == TokenType.SOURCE)))
    return [
        PlacedThought(place=item.source_start + int(source_before[start]), input_ids=item.input_ids[start:stop])
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    ]


def document_source(items: Iterable[Item]) -> np.ndarray:
    """All source tokens of a document, from its items in any order; copies of it count once.

    Args:
        items: every item of the document, at least one.

    Raises:
        MillError: an item is missing, there in another number of copies than the first, or differs from its copies.
    """
    pieces: dict[int, list[np.ndarray]] = {}
    doc_id = ""
    for item in items:
        doc_id = item.doc_id
        pieces.setdefault(item.source_start, []).append(source_of(item))
    position = 0
    for source_start, copies in sorted(pieces.items()):
        if source_start != position:
            raise MillError(f"document {doc_id!r}: its items go on at token {source_start}, not at {position}")
        if len(copies) != len(pieces[0]):
            raise MillError(
                f"document {doc_id!r}: {len(pieces[0])} items begin at token 0, {len(copies)} at token {source_start}"
            )
        if any(not np.array_equal(copy, copies[0]) for copy in copies):
            raise MillError(f"document {doc_id!r}: its copies differ from token {source_start} on")
        position += len(copies[0])
    return np.concatenate([pieces[start][0] for start in sorted(pieces)])
