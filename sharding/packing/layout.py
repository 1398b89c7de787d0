"""Layout: a document and its thoughts as items, each short enough for one training sequence. The first step of pack.

    segments with thoughts ──► parts ──────────────────► pieces ──────────► items
                               thoughts and the source   parts joined up    ids and types,
                               they must stand beside    to the length      delimiters in place

A document that fits is one item. A longer one is cut: in plain source wherever a sequence is full, but around a segment
that has thoughts, so that they stay together. Only when segment and thoughts alone are too long is that source cut too,
and its thoughts keep as much of it as fits: the tail where thoughts follow, the head where they lead, as much on either
side where they stand within. Only a thought that leaves no room for a single source token is itself cut. Nothing is cut
without being counted. `sharding.packing.recovery` takes the items apart again.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sharding.errors import RequestError
from sharding.packing.config import LAYOUTS, Layout
from sharding.packing.cutting import Part, join_parts, num_shortened, split_segment
from sharding.records.rows import Item, TokenType


def _no_tokens() -> np.ndarray:
    return np.empty(0, np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class Delimiters:
    """What is written around thoughts and after documents, as training token ids; each may be empty.

    Attributes:
        thought_open, thought_close: (num_tokens,) ids before and after every thought.
        document_end: (num_tokens,) ids after the last piece of a document.
        document_start: (num_tokens,) ids before the first piece of a document.
    """

    thought_open: np.ndarray = field(default_factory=_no_tokens)
    thought_close: np.ndarray = field(default_factory=_no_tokens)
    document_end: np.ndarray = field(default_factory=_no_tokens)
    document_start: np.ndarray = field(default_factory=_no_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class SegmentTokens:
    """A segment as the layout needs it.

    Attributes:
        input_ids: (num_tokens,) training token ids of the source.
        thoughts: (num_tokens,) training token ids of each thought, in the order they are to stand.
        shown_tokens: how many of the segment's tokens the generator saw, from its start: where its thoughts stand
            under layout at_hard_span, from 0 to all of them. No other layout looks at it.
    """

    input_ids: np.ndarray
    thoughts: Sequence[np.ndarray] = ()
    shown_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutCounts:
    """What went in, what came out, and what was lost; of one document, or added up.

    Attributes:
        documents: all of them; `documents_empty` had no source token and gave no item, `documents_cut` gave several.
        items: pieces that came out.
        source_cuts: places where a source was cut; `segments_cut` is how many of them lie inside a segment.
        thoughts: thoughts that are in an item, whole or cut.
        thoughts_cut: thoughts that lost their end, too long for a sequence of their own.
        thoughts_dropped: thoughts left out: empty ones, and those without a source token left to stand beside.
        thought_tokens_lost: tokens of thoughts cut or dropped.
        source_tokens, thought_tokens, delimiter_tokens: tokens in the items by type.
    """

    documents: int = 0
    documents_empty: int = 0
    documents_cut: int = 0
    items: int = 0
    source_cuts: int = 0
    segments_cut: int = 0
    thoughts: int = 0
    thoughts_cut: int = 0
    thoughts_dropped: int = 0
    thought_tokens_lost: int = 0
    source_tokens: int = 0
    thought_tokens: int = 0
    delimiter_tokens: int = 0

    def __add__(self, other: LayoutCounts) -> LayoutCounts:
        return LayoutCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def nonzero(self) -> dict[str, int]:
        """The counts that are not 0, by name."""
        return {name: count for name in _COUNT_NAMES if (count := getattr(self, name))}


_COUNT_NAMES = tuple(f.name for f in fields(LayoutCounts))


def lay_out(
    doc_id: str,
    segments: Sequence[SegmentTokens],
    layout: Layout,
    delimiters: Delimiters,
    max_tokens: int,
    dtype: np.dtype,
) -> tuple[list[Item], LayoutCounts]:
    """The items of one document. The source tokens of the items, in order, are exactly those of the segments.

    Args:
        doc_id: the document.
        segments: all segments of the document, in order. A document that stays plain comes without thoughts.
        layout: where thoughts stand.
        delimiters: the ids around thoughts and after the document.
        max_tokens: tokens of the longest item allowed: the sequence length.
        dtype: id type of the items.

    Raises:
        RequestError: the delimiters leave no room in a sequence for one source and one thought token.
        ValueError: a token id doesn't fit `dtype`, or thoughts are to stand outside of their segment.
    """
    wrap = len(delimiters.thought_open) + len(delimiters.thought_close)
    begin, end = len(delimiters.document_start), len(delimiters.document_end)
    _check_room(delimiters, max_tokens)
    module = importlib.import_module(LAYOUTS[layout])
    thoughts_in = [thought for segment in segments for thought in segment.thoughts]
    filled = [segment for segment in segments if len(segment.input_ids)]
    parts: list[Part] = []
    thoughts_cut = 0
    for number, segment in enumerate(filled, start=1):
        room = max_tokens - (begin if number == 1 else 0) - (end if number == len(filled) else 0)
        segment_parts = split_segment(
            segment.input_ids, segment.thoughts, at=_thoughts_at(segment, module), room=room, wrap=wrap
        )
        thoughts_cut += num_shortened(segment.thoughts, segment_parts)
        parts += segment_parts
    pieces = join_parts(parts, max_tokens, wrap, end, begin)
    items: list[Item] = []
    source_tokens = 0
    for number, piece in enumerate(pieces, start=1):
        ends = (number == 1, number == len(pieces))
        items.append(_render(doc_id, source_tokens, piece, module, delimiters, ends, dtype))
        source_tokens += sum(len(part.source) for part in piece)
    placed = [thought for part in parts for thought in part.thoughts]
    thought_tokens = sum(map(len, placed))
    return items, LayoutCounts(
        documents=1,
        documents_empty=int(not items),
        documents_cut=int(len(items) > 1),
        items=len(items),
        source_cuts=max(0, len(items) - 1),
        segments_cut=sum(not piece[0].opens_segment for piece in pieces),
        thoughts=len(placed),
        thoughts_cut=thoughts_cut,
        thoughts_dropped=len(thoughts_in) - len(placed),
        thought_tokens_lost=sum(map(len, thoughts_in)) - thought_tokens,
        source_tokens=source_tokens,
        thought_tokens=thought_tokens,
        delimiter_tokens=sum(len(item.input_ids) for item in items) - source_tokens - thought_tokens,
    )


def lay_out_plain(
    doc_id: str,
    input_ids: np.ndarray,
    segment_starts: np.ndarray,
    delimiters: Delimiters,
    max_tokens: int,
    dtype: np.dtype,
) -> tuple[list[Item], LayoutCounts]:
    """What `lay_out` gives for a document without thoughts, from its tokens in one array: most of most corpora.

    Args:
        input_ids: (num_tokens,) training token ids of the document.
        segment_starts: (num_segments,) where its segments begin; only for the counts.

    Raises:
        RequestError, ValueError: as `lay_out`.
    """
    ids = _as_ids(input_ids, dtype)
    begin, end = (_as_ids(of, dtype) for of in (delimiters.document_start, delimiters.document_end))
    _check_room(delimiters, max_tokens)
    cuts = [0] if len(ids) else []
    room = max_tokens - len(begin)
    while cuts and (left := len(ids) - cuts[-1]) + len(end) > room:
        cuts.append(cuts[-1] + min(room, left - 1))  # the document's end doesn't stand alone
        room = max_tokens
    items = []
    for start, stop in zip(cuts, [*cuts[1:], len(ids)], strict=False):
        head = begin if start == 0 else begin[:0]
        tail = end if stop == len(ids) else end[:0]
        kinds = np.full(len(head) + stop - start + len(tail), TokenType.DELIMITER, np.uint8)
        kinds[len(head) : len(head) + stop - start] = TokenType.SOURCE
        tokens = np.concatenate((head, ids[start:stop], tail)) if len(head) or len(tail) else ids[start:stop]
        items.append(Item(doc_id=doc_id, source_start=start, input_ids=tokens, token_type=kinds))
    return items, LayoutCounts(
        documents=1,
        documents_empty=int(not items),
        documents_cut=int(len(items) > 1),
        items=len(items),
        source_cuts=max(0, len(items) - 1),
        segments_cut=len(set(cuts[1:]).difference(segment_starts.tolist())) if len(cuts) > 1 else 0,
        source_tokens=len(ids),
        delimiter_tokens=len(begin) + len(end) if items else 0,
    )


def least_room(delimiters: Delimiters) -> int:
    """Tokens of the shortest sequence that has room for a source token and a thought token with all delimiters."""
    around = (delimiters.thought_open, delimiters.thought_close, delimiters.document_start, delimiters.document_end)
    return sum(map(len, around)) + 2


def _check_room(delimiters: Delimiters, max_tokens: int) -> None:
    least = least_room(delimiters)
    if max_tokens < least:
        raise RequestError(
            f"pack.sequence_length: {max_tokens} has no room for a source token, a thought token and the {least - 2} "
            "tokens of pack.thought_open, pack.thought_close, pack.document_start and pack.document_end; "
            f"at least {least} needed"
        )


def _thoughts_at(segment: SegmentTokens, layout: Any) -> int:
    """How many of the segment's tokens stand before its thoughts."""
    num_tokens = len(segment.input_ids)
    at: int = layout.thoughts_at(num_tokens, segment.shown_tokens) if segment.thoughts else num_tokens
    return at


def _render(
    doc_id: str,
    source_start: int,
    piece: Sequence[Part],
    layout: Any,
    delimiters: Delimiters,
    ends: tuple[bool, bool],
    dtype: np.dtype,
) -> Item:
    """An item of a document's parts; `ends` says whether the document begins and ends with it."""
    chunks: list[tuple[np.ndarray, TokenType]] = []
    if ends[0]:
        chunks.append((delimiters.document_start, TokenType.DELIMITER))
    for stretch in layout.in_order(piece):
        if stretch.is_thought:
            chunks.append((delimiters.thought_open, TokenType.DELIMITER))
            chunks.append((stretch.input_ids, TokenType.THOUGHT))
            chunks.append((delimiters.thought_close, TokenType.DELIMITER))
        else:
            chunks.append((stretch.input_ids, TokenType.SOURCE))
    if ends[1]:
        chunks.append((delimiters.document_end, TokenType.DELIMITER))
    return Item(
        doc_id=doc_id,
        source_start=source_start,
        input_ids=np.concatenate([_as_ids(ids, dtype) for ids, _ in chunks]),
        token_type=np.repeat(
            np.array([kind for _, kind in chunks], np.uint8), np.array([len(ids) for ids, _ in chunks])
        ),
    )


def _as_ids(ids: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if ids.dtype == dtype:
        return ids
    # numpy would wrap an id that is too large around to another token.
    if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(dtype).max):
        raise ValueError(f"token ids {ids.min()} to {ids.max()} don't fit {dtype}")
    return ids.astype(dtype)
