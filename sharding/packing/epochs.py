"""Another trace each epoch (`pack.trace_per_epoch`): which traces a document shows in an epoch, and as many rows. Pure.

    kept and not chosen traces of a segment ─► the one numbered `epoch` among them, round and round ─► laid out, packed
    rows of the epoch, fewer than those of the longest ─► some of them in two ─► as many

Epoch 0 shows the traces that were kept. The source is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sharding.beam.part_join import JoinedDocument
from sharding.errors import MillError
from sharding.packing.best_fit import row_of
from sharding.packing.recovery import items_of
from sharding.records.rows import Row
from sharding.records.types import NOT_CHOSEN, Candidate

COUNTS = ("items", "thoughts", "thoughts_cut", "thoughts_dropped")
"""The counts of laying out that each later epoch has of its own, as `epoch.NUMBER.NAME`."""


def count_name(epoch: int, name: str) -> str:
    """What a count of a later epoch is called in the manifest of the pack stage."""
    return f"epoch.{epoch}.{name}"


def why_one_trace(select: Mapping[str, Any]) -> str | None:
    """Why a corpus can't show other traces in later epochs; None where it can.

    Args:
        select: the `select` section, as a mapping.
    """
    if select.get("keep") == "all":
        return "select.keep: all shows all traces of a segment at once: choose best, or another that keeps one"
    if select.get("trim") is not None:
        return "select.trim ends kept traces alone, and other epochs would show traces that were not cut: leave it out"
    if select.get("shuffle"):
        return "select.shuffle puts kept traces alone in other places: a control arm shows one trace"
    return None


def least_value(select: Mapping[str, Any]) -> float | None:
    """What a trace must be worth beyond chance to be shown in any epoch; None where its value doesn't matter.

    Args:
        select: the `select` section, as a mapping.
    """
    return float(select["min_value"]) if select.get("keep") == "best_above" else None


def shown_in(document: JoinedDocument, epoch: int, least: float | None = None) -> JoinedDocument:
    """A document with the traces that it shows in an epoch as its "kept" ones; itself where these are the kept ones.

    Of n traces that a segment has, epoch e shows the one numbered e mod n: first the one that was kept, then the others
    that passed all gates, the highest value first, those without a value last, equal ones in the order of their
    samples. A segment that kept none shows none.

    Args:
        document: its "kept" and "rejected" candidates beside it, with reasons, value and chance_value of these.
        epoch: from 0.
        least: see `least_value`.
    """
    if not epoch:
        return document
    turns = in_turn(document.beside["kept"], document.beside.get("rejected", ()), least)
    shown = [traces[epoch % len(traces)] for traces in turns]
    if all(one is other for one, other in zip(shown, document.beside["kept"], strict=True)):
        return document
    return JoinedDocument(document.scored, {**document.beside, "kept": shown})


def in_turn(
    kept: Iterable[Candidate], rejected: Iterable[Candidate], least: float | None = None
) -> Iterator[list[Candidate]]:
    """For each kept trace of a document all that its segment has to show, in the order in which epochs show them.

    Args:
        kept, rejected: of one document, with reasons, value and chance_value of the rejected ones.
        least: see `least_value`.
    """
    others: dict[int, list[Candidate]] = {}
    for candidate in rejected:
        if candidate.reasons == [NOT_CHOSEN] and _is_worth(candidate, least):
            others.setdefault(candidate.segment_index, []).append(candidate)
    for one in kept:
        yield [one, *sorted(others.get(one.segment_index, ()), key=_place)]


def _is_worth(candidate: Candidate, least: float | None) -> bool:
    if least is None:
        return True
    return candidate.value is not None and candidate.value - (candidate.chance_value or 0.0) >= least


def _place(candidate: Candidate) -> tuple[bool, float, int, str]:
    value = candidate.value
    return value is None, -(value or 0.0), candidate.sample, candidate.key


def wanted_rows(kept: Sequence[int], total: int) -> list[int]:
    """How many rows each shard is to have, so that they have `total` and differ by one at most.

    Args:
        kept: rows that each has, which differ by one at most and are not more than `total`.
    """
    rows, more = divmod(total, len(kept))
    # Those that have one more than others are first to get one, so that none would have to lose a row.
    by_rows = sorted(range(len(kept)), key=lambda shard: (-kept[shard], shard))
    longer = frozenset(by_rows[:more])
    return [rows + (shard in longer) for shard in range(len(kept))]


def in_more_rows(rows: Sequence[Row], wanted: int, sequence_length: int) -> list[Row]:
    """The same items in as many rows as are wanted: the rows with the most items become two, one behind the other.

    Args:
        rows: of a shard, as they were packed, none all padding.
        wanted: not fewer than there are.

    Raises:
        MillError: there are fewer items than that.
    """
    parts: list[list[Row]] = [[row] for row in rows]
    numbers = [len(row.seq_lengths) for row in rows]
    if sum(numbers) < wanted:
        raise MillError(
            f"pack.trace_per_epoch: an epoch has {sum(numbers)} pieces of documents in a shard that has {wanted} rows "
            "in another: so few can't be made as many; a larger pack.sequence_length cuts fewer documents, fewer "
            "pack.num_shards have more of them each, and trace_per_epoch: 1 needs neither"
        )
    largest = list(numbers)  # items of the largest part of each row
    for _ in range(wanted - len(rows)):
        place = int(np.argmax(largest))
        sizes = [len(part.seq_lengths) for part in parts[place]]
        which = sizes.index(max(sizes))
        parts[place][which : which + 1] = _halves(parts[place][which], sequence_length)
        largest[place] = max(len(part.seq_lengths) for part in parts[place])
    return [row for of_row in parts for row in of_row]


def _halves(row: Row, sequence_length: int) -> list[Row]:
    items = list(items_of(row))
    middle, with_surprisal = len(items) // 2, bool(len(row.surprisal))
    return [
        row_of(half, sequence_length, row.input_ids.dtype, with_surprisal=with_surprisal)
        for half in (items[:middle], items[middle:])
    ]
