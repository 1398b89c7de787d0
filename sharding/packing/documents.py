"""Documents by id: where each is in the shards, and what is there. From the shards and their index alone.

    doc_id ─► part of the index, by its hash ─► (shard, row, place), sorted by id ─► items ─► the document, put together

A look-up reads the manifest and one part of the index, some hundred kilobytes, and then the record batches that hold
the document. Both files are recognised by the manifest, so what is found is what was packed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding import hashing, storage
from sharding.beam.part_names import part_of
from sharding.errors import MillError, RequestError
from sharding.packing.recovery import source_of, thoughts_of
from sharding.records.arrow import from_batch
from sharding.records.families import DOCUMENTS
from sharding.records.rows import Item, ItemPlace, MaskedRow, TokenType
from sharding.records.types import FileEntry
from sharding.shards.mapped import MappedShard
from sharding.shards.rows import split_of
from sharding.storage import manifest
from sharding.storage.arrow_files import checked_batches, file_buffer
from sharding.storage.hashed_file import holds

_NEAREST = 5
_LOOKED_AT = 20_000
"""Ids that an unknown one is compared with: about a second."""


@dataclass(frozen=True, kw_only=True)
class PackedDocument:
    """A document as the shards have it.

    Attributes:
        doc_id: its id.
        split: "train" or "validation".
        copies: how often it is in the corpus, as the weight of its source made it.
        items: its pieces in order, of one copy: several where it was longer than a sequence.
        places: where they are, all copies, by piece.
        gaps: whether some of it is in no shard, because `pack.max_rows` left sequences out.
    """

    doc_id: str
    split: str
    copies: int
    items: list[Item]
    places: list[ItemPlace]
    gaps: bool

    @property
    def source_ids(self) -> np.ndarray:
        """(num_tokens,) its source tokens, in order, as far as they are there."""
        return np.concatenate([source_of(item) for item in self.items])

    @property
    def thoughts(self) -> list[tuple[int, np.ndarray]]:
        """(tokens of the source that stand before it, its token ids) of each thought, in order."""
        return [(thought.place, thought.input_ids) for item in self.items for thought in thoughts_of(item)]


class DocumentIndex:
    """Finds documents in a corpus by their ids.

    Args:
        output: the run's output folder, or a copy of the corpus in it, in any store.

    Raises:
        MillError: the output isn't finished, or has no index: it was packed by an earlier version.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = os.fspath(output)
        self._packed = manifest.require(self.output, "pack")
        self._shards = {entry.name: entry for entry in self._packed.files.get("shards", [])}
        self._parts = self._packed.files.get(DOCUMENTS.name, [])
        if not self._parts and self._packed.counts.get("items", 0):
            raise MillError(
                f"{self.output} has no index of documents, an earlier version packed it: `thoughtmill pack CONFIG "
                "--force` makes it, and generates nothing"
            )

    def places(self, doc_id: str) -> list[ItemPlace]:
        """Where the items of a document are, piece by piece, each in all its copies; none where it isn't there.

        Raises:
            MillError: the part of the index is unreadable, or not the one of the manifest.
        """
        for entry in self._parts:
            number, count = part_of(entry.name)
            # Each delivery has an index of its own, and no two have a document of one id.
            if hashing.partition_of(doc_id, count) == number and (found := list(self._found(entry, doc_id))):
                return found
        return []

    def read(self, doc_id: str) -> PackedDocument:
        """A document, put together from the shards.

        Raises:
            RequestError: there is none of this id; names some that are like it.
            MillError: a shard is unreadable or not the one of the manifest, or the index says something else than it.
        """
        places = self.places(doc_id)
        if not places:
            near = self._near(doc_id)
            raise RequestError(
                f"no document {doc_id!r} is in the corpus of {self.output}"
                + (f"; some that are: {', '.join(map(repr, near))}" if near else "")
            )
        first = {place.source_start: place for place in reversed(places)}
        items = [self._item(first[start]) for start in sorted(first)]
        copies = [sum(place.source_start == start for place in places) for start in first]
        ends = accumulate((len(source_of(item)) for item in items), initial=0)
        torn = any(item.source_start != end for item, end in zip(items, ends, strict=False))
        closing = self._packed.facts.get("document_end_ids", [])
        unended = bool(closing) and items[-1].token_type[-1] != TokenType.DELIMITER
        return PackedDocument(
            doc_id=doc_id,
            split=split_of(self._shards[places[0].shard]),
            copies=max(copies),
            items=items,
            places=places,
            gaps=torn or unended or len(set(copies)) > 1,
        )

    def _item(self, place: ItemPlace) -> Item:
        entry = self._shards.get(place.shard)
        url = storage.join(manifest.files_url(self.output, self._packed), place.shard)
        wrong = f"{url}, row {place.row}: the index of documents has {place.doc_id!r} here, the shard has not"
        if entry is None:
            raise MillError(f"{wrong}: `thoughtmill verify` tells")
        for batch, first_row in _batches(url, entry):
            row = place.row - first_row
            if not 0 <= row < batch.num_rows:
                continue
            doc_ids, starts = (batch.column(name)[row].as_py() for name in ("doc_ids", "source_starts"))
            lengths = batch.column("seq_lengths")[row].as_py()
            begins = list(accumulate(lengths, initial=0))
            if place.token_start in begins[:-1]:
                number = begins.index(place.token_start)
                if (doc_ids[number], starts[number]) == (place.doc_id, place.source_start):
                    here = slice(place.token_start, place.token_start + lengths[number])
                    ids, kinds = (batch.column(name)[row].values.to_numpy() for name in ("input_ids", "token_type"))
                    return Item(
                        doc_id=place.doc_id,
                        source_start=place.source_start,
                        input_ids=ids[here],
                        token_type=kinds[here],
                    )
            break
        raise MillError(f"{wrong}: `thoughtmill verify` tells")

    def _found(self, entry: FileEntry, doc_id: str) -> Iterator[ItemPlace]:
        for batch in self._index_batches(entry):
            here = pc.equal(batch.column("doc_id"), pa.scalar(doc_id, pa.string()))
            for place in from_batch(ItemPlace, batch.filter(here)):
                yield msgspec.structs.replace(place, shard=shard_beside(entry.name, place.shard))

    def _index_batches(self, entry: FileEntry) -> Iterator[pa.RecordBatch]:
        url = storage.join(manifest.files_url(self.output, self._packed), entry.name)
        data = file_buffer(url)
        if not holds(data, entry):
            raise MillError(f"{url}: its bytes are not those of its manifest: `thoughtmill verify` tells")
        try:
            yield from checked_batches(data, kind=ItemPlace)
        except (OSError, pa.ArrowException) as error:
            raise MillError(f"cannot read {url}: {error}") from error

    def _near(self, doc_id: str) -> list[str]:
        """Ids like this one, among the first that are there."""
        ids = (i for entry in self._parts for b in self._index_batches(entry) for i in b.column("doc_id").to_pylist())
        there = list(dict.fromkeys(islice(ids, _LOOKED_AT)))
        return difflib.get_close_matches(doc_id, there, _NEAREST, 0.5) or there[:_NEAREST]


def shard_beside(index: str, shard: str) -> str:
    """The name of a shard as the manifest has it, from that of the part of the index that names it.

    A later delivery brings its index along, which names its shards as they are called in its own folder.
    """
    return index.rpartition("index/")[0] + shard


def _batches(url: str, entry: FileEntry) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The record batches of a shard as they rest, each with the number of its first row."""
    MappedShard(url, entry)  # recognises it
    first_row = 0
    for batch in storage.read_batches(url, kind=MaskedRow):
        yield batch, first_row
        first_row += batch.num_rows


def read_document(output: str | os.PathLike[str], doc_id: str) -> PackedDocument:
    """A document of a corpus by its id: see `DocumentIndex`, which is quicker for several."""
    return DocumentIndex(output).read(doc_id)
