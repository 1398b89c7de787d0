"""The Beam transforms of packing: documents to items, and items to shards that differ by a row at most."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.typehints import KV

from sharding import records, storage, tally
from sharding.beam.counts import COUNTS
from sharding.beam.part_join import JoinedDocument
from sharding.beam.parts import WriteParts
from sharding.beam.shuffle import GroupPartitions, PutAside
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing import balance, order
from sharding.packing.best_fit import pack_rows
from sharding.packing.config import PackConfig
from sharding.packing.epochs import in_more_rows, wanted_rows
from sharding.packing.laying_out import DocumentLayout, encode_delimiters, split_shards
from sharding.packing.layout import Layout
from sharding.packing.shard_files import places_of, write_shard
from sharding.records.families import DOCUMENTS, ROWS
from sharding.records.rows import Item, ItemPlace, Row, Split, TokenType
from sharding.records.types import FileEntry
from sharding.storage.output import EPOCH_FOLDER

ROW_COUNTS = "row_counts"
PLACES = "places"
LATER = "later"

Group = tuple[int, Split]
"""(epoch, split): what has shards of its own."""

Balances = Mapping[Group, balance.Balance]

ShardRow = KV[int, bytes]
"""(shard, place in the shard and row)."""

_PLACE = struct.Struct("<q")


class LayOut(beam.PTransform):
    """Documents joined with what was kept for them → `items`, and `counts`.

    Args:
        config: the `pack` section.
        layout: where thoughts stand.
        tokenizer: name of the training tokenizer.
        least_value: see `DocumentLayout`.
    """

    def __init__(self, config: PackConfig, layout: Layout, tokenizer: str, least_value: float | None = None) -> None:
        super().__init__()
        self._lay_out = _LayOutFn(config, layout, tokenizer, least_value)

    def expand(self, documents: beam.PCollection) -> Any:
        outputs = documents | beam.ParDo(self._lay_out).with_outputs(COUNTS, main="items")
        outputs["items"].element_type = Item
        return outputs


class _LayOutFn(beam.DoFn):
    def __init__(self, config: PackConfig, layout: Layout, tokenizer: str, least_value: float | None) -> None:
        self._config, self._layout, self._tokenizer = config, layout, tokenizer
        self._least_value = least_value

    def setup(self) -> None:
        tokenizer = load_tokenizer(self._tokenizer)
        delimiters = encode_delimiters(self._config, tokenizer)
        self._documents = DocumentLayout(self._config, self._layout, tokenizer, delimiters, self._least_value)

    def process(self, document: JoinedDocument) -> Iterator[Any]:
        counts = Counter[str]()
        tally.add(documents=1, tokens=len(document.scored.input_ids))
        yield from self._documents.items(document, counts)
        yield beam.pvalue.TaggedOutput(COUNTS, dict(counts))


class PackShards(beam.PTransform):
    """Packs items into shards that differ by a row at most, and writes them.

    Items are grouped by provisional shard, packed and shuffled there; then the few rows that make shards unequal
    move, those that `pack.max_rows` leaves out go, and every shard is written whole. One shard is held in memory at a
    time. Each epoch of `pack.trace_per_epoch` has shards of its own, and all as many rows.

    Args:
        folder: URL the shards go to; a shard's name is relative to it.
        config: the `pack` section.
        tokenizer: the training tokenizer.
        num_parts: how many parts the index of documents has.
        numbered_from: by split the number of the first shard, where others are before it; 0 unless it says.

    Returns:
        `files`, the shards' FileEntry; `later`, those of the epochs behind the first; `index`, those of the index,
        which is of the first; and `counts`: rows by split, and what was left out.
    """

    def __init__(
        self,
        folder: str,
        config: PackConfig,
        tokenizer: TextTokenizer,
        num_parts: int,
        numbered_from: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self._numbered_from = dict(numbered_from or {})
        self._folder, self._config, self._num_parts = folder, config, num_parts
        self._schema = ROWS.schema(
            vocab_size=tokenizer.vocab_size,
            sequence_length=config.sequence_length,
            with_loss_mask=config.loss_mask != "all",
            with_surprisal=config.surprisal,
        )
        self._splits = splits = split_shards(config)
        # The shards of all epochs and splits are numbered through; `_first` is where those of one begin.
        several: list[Group] = [(epoch, "train") for epoch in range(1, config.trace_per_epoch)]
        groups: list[Group] = [*((0, split) for split in splits), *several]
        self._shards = [(group, shard) for group in groups for shard in range(splits[group[1]])]
        self._first = {group: self._shards.index((group, 0)) for group in groups}

    def expand(self, items: beam.PCollection) -> dict[str, beam.PCollection]:
        provisional = (
            items
            | "To shards" >> beam.Map(self._provisional).with_output_types(KV[int, bytes])
            | "Group items" >> GroupPartitions()
            | "Pack" >> beam.FlatMap(self._pack).with_output_types(ShardRow)
        )
        balances = beam.pvalue.AsSingleton(
            provisional
            | "Each row" >> beam.MapTuple(lambda shard, _: (shard, 1)).with_output_types(KV[int, int])
            | "Rows per shard" >> beam.CombinePerKey(sum)
            | "Together" >> beam.combiners.ToDict()
            | "Balances" >> beam.Map(self._balances)
        )
        placed = (
            provisional
            | "Put aside" >> PutAside()
            | "Place" >> beam.FlatMap(self._place, balances=balances).with_outputs(ROW_COUNTS, main="rows")
        )
        placed["rows"].element_type = ShardRow
        # A shard that gets no row at all is still written: as many files as were asked for.
        every_shard = (
            items.pipeline
            | "Every shard" >> beam.Create(range(len(self._shards)), reshuffle=False)
            | "Empty" >> beam.Map(_nothing).with_output_types(ShardRow)
        )
        written = (
            (placed["rows"], every_shard)
            | "Group rows" >> GroupPartitions()
            | "Write" >> beam.FlatMap(self._write, balances=balances).with_outputs(PLACES, LATER, main="files")
        )
        written["files"].element_type = written[LATER].element_type = FileEntry
        written[PLACES].element_type = ItemPlace
        index = written[PLACES] | "Index" >> WriteParts(self._folder, DOCUMENTS, self._num_parts, below="index")
        return {"files": written["files"], LATER: written[LATER], "index": index, "counts": placed[ROW_COUNTS]}

    def _provisional(self, item: Item) -> tuple[int, bytes]:
        shard = order.shard_of(order.order_key(self._config.seed, item.doc_id, item.copy), self._splits[item.split])
        return self._first[item.epoch, item.split] + shard, records.encode(item)

    def _pack(self, group: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        shard, values = group
        config = self._config
        ordered = order.sort_items((records.decode(Item, value) for value in values), config.seed)
        rows = list(pack_rows(ordered, config.sequence_length, window_items=config.window_items))
        for index, row in enumerate(order.shuffle_rows(rows, config.seed, shard)):
            yield shard, _PLACE.pack(index) + records.encode(row)

    def _balances(self, rows_per_shard: Mapping[int, int]) -> dict[Group, balance.Balance]:
        return {
            group: balance.Balance([rows_per_shard.get(first + n, 0) for n in range(self._splits[group[1]])])
            for group, first in self._first.items()
        }

    def _cut(self, group: Group, balances: Balances) -> balance.Cut:
        return balance.cut_rows(balances[group], self._config.max_rows.get(group[1]))

    def _place(self, element: tuple[int, bytes], balances: Balances) -> Iterator[Any]:
        shard, placed = element
        group, number = self._shards[shard]
        row = placed[_PLACE.size :]
        final, position = balances[group].place(number, _place_of(placed))
        if position < self._cut(group, balances).kept[final]:
            yield self._first[group] + final, _PLACE.pack(position) + row
            if not group[0]:
                yield beam.pvalue.TaggedOutput(ROW_COUNTS, {f"rows_{group[1]}": 1})
        else:
            yield beam.pvalue.TaggedOutput(ROW_COUNTS, left_out_counts(records.decode(Row, row)))

    def _write(self, element: tuple[int, Iterable[bytes]], balances: Balances) -> Iterator[Any]:
        shard, values = element
        group, number = self._shards[shard]
        epoch, split = group
        cut = self._cut(group, balances)
        if not cut.rows_per_shard:
            return
        placed = sorted((value for value in values if len(value) > _PLACE.size), key=_place_of)
        rows = [records.decode(Row, value[_PLACE.size :]) for value in placed]
        del placed
        most = max(sum(of.counts) for (_, of_split), of in balances.items() if of_split == split)
        if sum(cut.kept) < most and self._config.trace_per_epoch > 1:
            rows = in_more_rows(rows, wanted_rows(cut.kept, most)[number], self._config.sequence_length)
        before = self._numbered_from.get(split, 0)
        folder = f"data/{EPOCH_FOLDER}{epoch}" if epoch else "data"
        name = f"{folder}/{split}-{before + number:05d}-of-{before + self._splits[split]:05d}.arrow"
        entry = write_shard(storage.join(self._folder, name), name, rows, self._schema, self._config)
        if epoch:
            yield beam.pvalue.TaggedOutput(LATER, entry)
            return
        yield entry
        yield from (beam.pvalue.TaggedOutput(PLACES, place) for place in places_of(rows, name))


def left_out_counts(row: Row) -> dict[str, int]:
    """What leaving a row out adds to the counts: its tokens by kind, and the documents that begin in it."""
    kinds = np.bincount(row.token_type, minlength=len(TokenType))
    return {
        "rows_left_out": 1,
        "rows_left_out_documents": int((row.source_starts == 0).sum()),
        **{f"rows_left_out_tokens_{kind.name.lower()}": int(kinds[kind]) for kind in TokenType},
    }


def _place_of(placed: bytes) -> int:
    """The place of a row, before its bytes."""
    place: int = _PLACE.unpack_from(placed)[0]
    return place


def _nothing(shard: int) -> tuple[int, bytes]:
    """A place holder that brings a shard into being."""
    return shard, _PLACE.pack(-1)
