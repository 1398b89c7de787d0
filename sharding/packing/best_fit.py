"""Best fit: items into rows of exactly `sequence_length` tokens, none torn. The pack stage, after the layout.

Best-fit-decreasing (Johnson et al. 1974) over windows of consecutive items. An item goes where the least room is left
that still holds it; cutting items at row ends instead would cost the model what best-fit is known to gain
(arXiv 2404.10830). The rows come out with the longest items first: `order.shuffle_rows` mixes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from sharding.records.rows import Item, Row, TokenType

T = TypeVar("T")

WINDOW_ITEMS = 10_000
"""Items that are packed together: at 10,000 best-fit leaves well under 1% of padding on document lengths."""


_NO_BINS: frozenset[int] = frozenset()


def best_fit_decreasing(
    lengths: Sequence[int], capacity: int, apart: Sequence[str | None] | None = None
) -> list[list[int]]:
    """Bins of indices into `lengths`, so that the lengths in no bin sum to more than `capacity`.

    Longest first, equal lengths in their incoming order, each into the fullest bin that holds it, the latest such bin
    when several are as full. A new bin is opened only when no open one that may hold it has the room.

    O(n · capacity / 64) bit operations: the rooms that occur are the set bits of one integer, so the smallest
    sufficient one is a shift and a lowest bit away.

    Args:
        lengths: tokens of each item, in 1 ... capacity.
        capacity: tokens of one bin.
        apart: a label for each item; no two items with one label share a bin. None: it may be with any other.

    Returns:
        The bins in the order they were opened, each with its indices ascending.

    Raises:
        ValueError: a length is out of range. The layout cuts what is too long; here it is a programming error.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"item {index} has {length} tokens; a row holds 1 to {capacity}")
    bins: list[list[int]] = []
    bins_with_room: dict[int, list[int]] = {}
    bins_of_label: dict[str, set[int]] = {}
    rooms = 0  # bit r is set while bins_with_room[r] is not empty
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[index]
        label = apart[index] if apart is not None else None
        refused = bins_of_label.get(label, _NO_BINS) if label is not None else _NO_BINS
        room, chosen = capacity, len(bins)
        sufficient = rooms >> length << length
        while sufficient:
            fullest = (sufficient & -sufficient).bit_length() - 1
            with_room = bins_with_room[fullest]
            place = len(with_room) - 1
            while refused and place >= 0 and with_room[place] in refused:
                place -= 1
            if place >= 0:
                room, chosen = fullest, with_room.pop(place)
                break
            sufficient &= sufficient - 1
        if chosen == len(bins):
            bins.append([index])
        else:
            bins[chosen].append(index)
            if not bins_with_room[room]:
                rooms ^= 1 << room
        if label is not None:
            bins_of_label.setdefault(label, set()).add(chosen)
        left = room - length
        if left:
            bins_with_room.setdefault(left, []).append(chosen)
            rooms |= 1 << left
    for indices in bins:
        indices.sort()
    return bins


def windows(items: Iterable[T], at_least: int) -> Iterator[list[T]]:
    """Runs of consecutive items, each of at least `at_least` and fewer than twice as many; one, if all are fewer."""
    window: list[T] = []
    for item in items:
        window.append(item)
        if len(window) == 2 * at_least:
            yield window[:at_least]
            window = window[at_least:]
    if window:
        yield window


def pack_rows(items: Iterable[Item], sequence_length: int, *, window_items: int = WINDOW_ITEMS) -> Iterator[Row]:
    """The items as rows, each item whole, in the order the items came within a row; copies of one never in one row.

    Holds at most two windows of items, however many there are.

    Args:
        items: in the global order (`order.sort_items`), of one id type.
        sequence_length: tokens of a row.
        window_items: items packed together at least.

    Raises:
        ValueError: an item is empty or longer than a row, or has another id type than the first.
    """
    for window in windows(items, window_items):
        copied = {item.doc_id for item in window if item.copy}
        apart = [item.doc_id if item.doc_id in copied else None for item in window] if copied else None
        for indices in best_fit_decreasing([len(item.input_ids) for item in window], sequence_length, apart):
            yield row_of(
                [window[index] for index in indices],
                sequence_length,
                window[0].input_ids.dtype,
                with_surprisal=any(len(window[index].surprisal) for index in indices),
            )


def row_of(items: Sequence[Item], sequence_length: int, dtype: np.dtype, *, with_surprisal: bool) -> Row:
    """The row of these items, one behind the other, and padding.

    Of none it is all padding, its `seq_lengths` is empty, and readers skip it: a takedown leaves such rows.

    Raises:
        ValueError: an item has another id type.
    """
    input_ids = np.zeros(sequence_length, dtype)
    token_type = np.full(sequence_length, TokenType.PADDING, np.uint8)
    surprisal = np.full(sequence_length if with_surprisal else 0, np.nan, np.float16)
    start = 0
    for item in items:
        if item.input_ids.dtype != dtype:
            raise ValueError(f"{item.doc_id}: ids are {item.input_ids.dtype}, those before it {dtype}")
        stop = start + len(item.input_ids)
        input_ids[start:stop] = item.input_ids
        token_type[start:stop] = item.token_type
        if with_surprisal:
            surprisal[start:stop] = item.surprisal
        start = stop
    return Row(
        input_ids=input_ids,
        token_type=token_type,
        seq_lengths=np.array([len(item.input_ids) for item in items], np.int32),
        doc_ids=[item.doc_id for item in items],
        source_starts=np.array([item.source_start for item in items], np.int64),
        surprisal=surprisal,
    )
