"""Shards without the documents that go: their rows are made of what remains in them, all other rows stay as they are.

A row of which nothing remains becomes one of padding, in its place, so shards keep their rows and all others their
numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from pipelines.takedown.staging import Staging
from sharding import hashing, storage
from sharding.beam.part_names import part_of
from sharding.packing.best_fit import row_of
from sharding.packing.config import PackConfig
from sharding.packing.recovery import items_of
from sharding.packing.shard_files import places_of, write_shard
from sharding.records.families import DOCUMENTS, ROWS
from sharding.records.rows import Item, ItemPlace, Row, TokenType
from sharding.records.types import FileEntry
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

Rows = Mapping[str, set[int]]
"""Name of a shard → rows of it."""


def rows_with(output: str, packed: Manifest, ids: frozenset[str]) -> dict[str, set[int]]:
    """Where the documents are, by the index; without one, by reading the ids in all shards."""
    rows: dict[str, set[int]] = defaultdict(set)
    for place in _places(output, packed, ids):
        rows[place[0]].add(place[1])
    return dict(rows)


def _places(output: str, packed: Manifest, ids: frozenset[str]) -> Iterator[tuple[str, int]]:
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
        first_row = 0
        for batch in storage.read_batches(storage.join(base, entry.name), ("doc_ids",), kind=Row):
            for row, doc_ids in enumerate(batch.column("doc_ids").to_pylist(), first_row):
                if not ids.isdisjoint(doc_ids):
                    yield entry.name, row
            first_row += batch.num_rows


def rebuild_shards(
    output: str, packed: Manifest, ids: frozenset[str], config: PackConfig, staging: Staging, gone: Counter[str]
) -> Manifest:
    """The manifest of the pack stage with shards and an index without the documents, which are prepared.

    Args:
        gone: gets what goes: "items", "firsts" that begin a document, and "tokens_0" to "tokens_3" by kind.
    """
    touched = rows_with(output, packed, ids)
    schema = ROWS.schema(
        vocab_size=staging.vocab_size,
        sequence_length=config.sequence_length,
        with_loss_mask=config.loss_mask != "all",
        with_surprisal=config.surprisal,
    )
    base = manifest.files_url(output, packed)
    entries: list[FileEntry] = []
    moved: list[ItemPlace] = []  # what the index says of the rows that change
    neighbours = set(ids)
    for entry in packed.files.get(ROWS.name, []):
        if entry.name not in touched:
            entries.append(entry)
            continue
        rows = list(storage.read_records(storage.join(base, entry.name), Row))
        for number in sorted(touched[entry.name]):
            neighbours.update(rows[number].doc_ids)
            rows[number] = _without(rows[number], ids, config, gone)
        moved += (place for place in places_of(rows, entry.name) if place.row in touched[entry.name])
        entries.append(write_shard(staging.place("pack", entry.name), entry.name, rows, schema, config))
    files = {**packed.files, ROWS.name: entries}
    if DOCUMENTS.name in packed.files:
        index = _rebuild_index(base, packed.files[DOCUMENTS.name], touched, moved, neighbours, staging)
        files = {name: found for name, found in {**files, DOCUMENTS.name: index}.items() if found}
    return staging.with_files(packed, files)


def _without(row: Row, ids: frozenset[str], config: PackConfig, gone: Counter[str]) -> Row:
    stay = []
    for item in items_of(row):
        if item.doc_id not in ids:
            stay.append(item)
            continue
        add_item(gone, item)
    return row_of(stay, config.sequence_length, row.input_ids.dtype, with_surprisal=config.surprisal)


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
