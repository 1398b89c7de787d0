"""Shards without the documents that go: their rows are made of what remains in them, all other rows stay as they are.

A row of which nothing remains gets an item of another row of its shard, or becomes one of padding where no row has
several, in its place: so shards keep their rows and all others their numbers. Of a corpus with other traces in each
epoch the shards of all epochs are rebuilt. `refilling` says which rows are filled again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.takedown.refilling import Gift, Items, Place, gifts_of, refills_of
from pipelines.takedown.staging import Staging
from sharding import hashing, storage
from sharding.beam.part_names import part_of
from sharding.packing.best_fit import row_of
from sharding.packing.config import PackConfig
from sharding.packing.recovery import items_of
from sharding.packing.shard_files import places_of, write_shard
from sharding.records.families import DOCUMENTS, EPOCH_ROWS, ROWS
from sharding.records.rows import Item, ItemPlace, Row, TokenType
from sharding.records.types import FileEntry
from sharding.shards.rows import epoch_of, split_of
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

Rows = Mapping[str, set[int]]
"""Name of a shard → rows of it."""


def rows_with(output: str, packed: Manifest, ids: frozenset[str]) -> dict[str, set[int]]:
    """Where the documents are in the first epoch, by the index; without one, by reading the ids in all its shards."""
    rows: dict[str, set[int]] = defaultdict(set)
    for shard, row in _places(output, packed, ids):
        rows[shard].add(row)
    return dict(rows)


def _places(output: str, packed: Manifest, ids: frozenset[str]) -> Iterator[Place]:
    base = manifest.files_url(output, packed)
    parts = packed.files.get(DOCUMENTS.name, [])
    for entry in parts:
        number, count = part_of(entry.name)
        if any(hashing.partition_of(doc_id, count) == number for doc_id in ids):
            for place in storage.read_records(storage.join(base, entry.name), ItemPlace):
                if place.doc_id in ids:
                    yield place.shard, place.row
    if parts:
        return
    for entry in packed.files.get(ROWS.name, []):
        items = _items_in(storage.join(base, entry.name), ids)
        yield from ((entry.name, row) for row in np.flatnonzero(items.before > items.left).tolist())


def _items_in(url: str, ids: frozenset[str]) -> Items:
    """How many items each row of a shard has, and how many without the documents."""
    before, left = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in storage.read_batches(url, ("doc_ids",), kind=Row):
        column = batch.column("doc_ids")
        names = column.flatten()
        goes = pc.is_in(names, value_set=pa.array(sorted(ids), names.type)).to_numpy(zero_copy_only=False)
        before.append(column.value_lengths().to_numpy().astype(np.int64))
        row_of_item = np.repeat(np.arange(len(column)), before[-1])
        left.append(np.bincount(row_of_item[~goes.astype(bool)], minlength=len(column)).astype(np.int64))
    return Items(np.concatenate(before), np.concatenate(left))


@dataclass
class _Changes:
    """What changes in the shards.

    Attributes:
        rows: of every shard those that hold one of the documents.
        gifts: of items, in their order.
    """

    rows: dict[str, set[int]]
    gifts: list[Gift] = field(default_factory=list)

    def all_rows(self) -> dict[str, set[int]]:
        """Of every shard all rows that change."""
        found = defaultdict(set, {name: set(rows) for name, rows in self.rows.items()})
        for name, row in (place for gift in self.gifts for place in (gift.giver, gift.taker)):
            found[name].add(row)
        return dict(found)

    def in_order(self) -> list[str]:
        """The shards that change; those whose rows take from another shard come last."""
        takers = {gift.taker[0] for gift in self.gifts if gift.taker[0] != gift.giver[0]}
        return sorted(self.all_rows(), key=lambda name: (name in takers, name))


def _changes(output: str, packed: Manifest, ids: frozenset[str]) -> _Changes:
    later = packed.files.get(EPOCH_ROWS.name, [])
    base = manifest.files_url(output, packed)
    if not later:
        rows = rows_with(output, packed, ids)
        return _Changes(rows, refills_of({name: _items_in(storage.join(base, name), ids) for name in rows}))
    # The index is of the first epoch, and how full all rows are is asked here as well: ids are read everywhere.
    entries = [*packed.files.get(ROWS.name, []), *later]
    items = {entry.name: _items_in(storage.join(base, entry.name), ids) for entry in entries}
    epochs: dict[int, dict[str, Items]] = defaultdict(dict)
    for entry in entries:
        if split_of(entry) == "train":
            epochs[epoch_of(entry)][entry.name] = items[entry.name]
    touched = {name: set(np.flatnonzero(of.before > of.left).tolist()) for name, of in items.items()}
    gifts = gifts_of([epochs[epoch] for epoch in sorted(epochs)])
    return _Changes({name: rows for name, rows in touched.items() if rows}, gifts)


def rebuild_shards(
    output: str, packed: Manifest, ids: frozenset[str], config: PackConfig, staging: Staging, gone: Counter[str]
) -> Manifest:
    """The manifest of the pack stage with shards and an index without the documents, which are prepared.

    Args:
        gone: gets what goes of the first epoch: "items", "firsts" that begin a document, and "tokens_0" to "tokens_3"
            by kind.

    Raises:
        MillError: a file can't be read or written, or the epochs can't be made equally long.
    """
    changes = _changes(output, packed, ids)
    changed = changes.all_rows()
    base = manifest.files_url(output, packed)
    entries = {entry.name: entry for family in (ROWS, EPOCH_ROWS) for entry in packed.files.get(family.name, [])}
    rebuild = _Rebuild(changes, ids, config, staging, gone)
    made: dict[str, FileEntry] = {}
    moved: list[ItemPlace] = []  # what the index says of the rows that change
    neighbours: set[str] = set()  # who was in the rows that change, those who go among them
    for name in changes.in_order():
        rows = list(storage.read_records(storage.join(base, name), Row))
        if not epoch_of(entries[name]):
            neighbours.update(doc_id for row in changed[name] for doc_id in rows[row].doc_ids)
        rebuild.rows(name, rows, is_first=not epoch_of(entries[name]))
        if not epoch_of(entries[name]):
            moved += (place for place in places_of(rows, name) if place.row in changed[name])
        made[name] = rebuild.write(name, rows)
    files = {
        **packed.files,
        **{
            family.name: [made.get(entry.name, entry) for entry in packed.files[family.name]]
            for family in (ROWS, EPOCH_ROWS)
            if family.name in packed.files
        },
    }
    if DOCUMENTS.name in packed.files:
        index = _rebuild_index(base, packed.files[DOCUMENTS.name], changed, moved, neighbours, staging)
        files = {name: found for name, found in {**files, DOCUMENTS.name: index}.items() if found}
    return staging.with_files(packed, files)


class _Rebuild:
    """Makes the shards that change, one after the other in the order of `_Changes.in_order`."""

    def __init__(
        self, changes: _Changes, ids: frozenset[str], config: PackConfig, staging: Staging, gone: Counter[str]
    ) -> None:
        self._changes, self._ids, self._config, self._staging, self._gone = changes, ids, config, staging, gone
        self._given: dict[Place, Item] = {}
        self._schema = ROWS.schema(
            vocab_size=staging.vocab_size,
            sequence_length=config.sequence_length,
            with_loss_mask=config.loss_mask != "all",
            with_surprisal=config.surprisal,
        )

    def rows(self, name: str, rows: list[Row], *, is_first: bool) -> None:
        """Change the rows of a shard in their places.

        Args:
            is_first: whether it is of the first epoch, of which is counted what goes.
        """
        for number in sorted(self._changes.rows.get(name, ())):
            stay = []
            for item in items_of(rows[number]):
                if item.doc_id not in self._ids:
                    stay.append(item)
                elif is_first:
                    add_item(self._gone, item)
            rows[number] = self._row(stay, rows[number])
        for gift in self._changes.gifts:
            if gift.giver[0] == name:
                giver = gift.giver[1]
                *stay, self._given[gift.taker] = items_of(rows[giver])
                rows[giver] = self._row(stay, rows[giver])
        for gift in self._changes.gifts:
            if gift.taker[0] == name:
                taker = gift.taker[1]
                rows[taker] = self._row([self._given.pop(gift.taker)], rows[taker])

    def write(self, name: str, rows: list[Row]) -> FileEntry:
        """Prepare a shard."""
        return write_shard(self._staging.place("pack", name), name, rows, self._schema, self._config)

    def _row(self, items: Iterable[Item], of: Row) -> Row:
        config = self._config
        return row_of(list(items), config.sequence_length, of.input_ids.dtype, with_surprisal=config.surprisal)


def add_item(counts: Counter[str], item: Item) -> None:
    """Count an item that goes."""
    counts["items"] += 1
    counts["firsts"] += item.source_start == 0
    for kind, number in enumerate(np.bincount(item.token_type, minlength=len(TokenType)).tolist()):
        counts[f"tokens_{kind}"] += number


def _rebuild_index(
    base: str,
    parts: list[FileEntry],
    touched: Rows,
    moved: list[ItemPlace],
    neighbours: set[str],
    staging: Staging,
) -> list[FileEntry]:
    count = part_of(parts[0].name)[1]
    numbers = {hashing.partition_of(doc_id, count) for doc_id in neighbours}
    entries = []
    for entry in parts:
        number = part_of(entry.name)[0]
        if number not in numbers:
            entries.append(entry)
            continue
        places = [
            place
            for place in storage.read_records(storage.join(base, entry.name), ItemPlace)
            if place.row not in touched.get(place.shard, ())
        ]
        places += (place for place in moved if hashing.partition_of(place.doc_id, count) == number)
        entries += staging.write("pack", entry.name, sorted(places, key=DOCUMENTS.sort_key), DOCUMENTS.schema())
    return entries
