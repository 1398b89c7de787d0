"""Order: where every document and every row goes, from keyed hashes and counts alone. Used by the pack stage.

    text ────► split_of ────────────┐
    doc_id ──► order_key, shard_of ─┴► provisional shard ──► sort_items ──► packing ──► shuffle_rows ──► Balance
                                                                            rows                         shard, position

Nothing here depends on the runner, on bundling or on the order of arrival. Each purpose hashes under its own
personalisation, so that the split, the shard, the plain documents and the row order are independent of each other. A
change to any of these functions reorders every corpus: their values are pinned in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sharding.hashing import Purpose, chosen, content_id, hash64
from sharding.records.rows import Item, Split

T = TypeVar("T")


def order_key(seed: int, doc_id: str, copy: int = 0) -> int:
    """The place of a document, or of a further copy of it, in the global order, in [0, 2**64)."""
    return hash64(Purpose.ORDER, seed, f"{doc_id}\0{copy}" if copy else doc_id)


def shard_of(key: int, num_shards: int) -> int:
    """The provisional shard of a document with this order key, in [0, num_shards)."""
    return key % num_shards


def split_of(text: str, validation_fraction: float, cluster: str = "") -> Split:
    """The split of a document.

    By its text alone, or that of the first of its near-copies where the scores name their `cluster`, so that copies are
    in one split whatever their ids. Neither seed, nor source, nor tokenizer has a say: what is validation in one run is
    never trained on in another run of the same fraction, and a larger fraction only adds to the documents of a smaller
    one.
    """
    hashed = hash64(Purpose.SPLIT, 0, cluster or content_id(text))
    return "validation" if chosen(hashed, validation_fraction) else "train"


def is_raw(seed: int, doc_id: str, raw_fraction: float) -> bool:
    """Whether a document stays plain, without its thoughts."""
    return chosen(hash64(Purpose.RAW, seed, doc_id), raw_fraction)


def copies_of(seed: int, doc_id: str, weight: float) -> int:
    """How often a document is in the corpus, of a source with this weight: `weight` times on average.

    Of two weights, the larger one keeps every document that the smaller one does.
    """
    whole = int(weight)
    return whole + chosen(hash64(Purpose.COPIES, seed, doc_id), weight - whole)


def row_order_key(seed: int, shard: int, index: int) -> int:
    """The key that shuffles row `index`, in the order of packing, of a provisional shard; in [0, 2**64)."""
    return hash64(Purpose.ROWS, seed, f"{shard}:{index}")


def sort_items(items: Iterable[Item], seed: int) -> list[Item]:
    """The items of a shard in the global order: by order key, document id and copy, then place in the document."""

    def place(item: Item) -> tuple[int, str, int, int]:
        return order_key(seed, item.doc_id, item.copy), item.doc_id, item.copy, item.source_start

    return sorted(items, key=place)


def shuffle_rows(rows: Sequence[T], seed: int, shard: int) -> list[T]:
    """The rows of a provisional shard in training order. Packing emits them longest item first."""
    order = sorted(range(len(rows)), key=lambda index: (row_order_key(seed, shard, index), index))
    return [rows[index] for index in order]
