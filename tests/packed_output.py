"""A finished output without a run: packed rows of made-up documents, for what reads shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import msgspec
import numpy as np

from sharding import storage
from sharding.packing import order
from sharding.packing.best_fit import pack_rows, row_of
from sharding.records.arrow import token_dtype
from sharding.records.families import ROWS
from sharding.records.rows import Item, MaskedRow, Row, TokenType
from sharding.shards.rows import LossMask, is_labelled, loss_mask
from sharding.storage import arrow_files, manifest
from sharding.storage.manifest import Manifest

FINGERPRINT = "f" * 32


@dataclass(frozen=True)
class PackedOutput:
    """The folder, and what is in it: by split, the rows of every shard, the padding rows left out."""

    url: str
    shards: dict[str, list[list[Row]]]

    def rows(self, split: str) -> list[Row]:
        return [row for shard in self.shards[split] for row in shard]


def items(split: str, count: int, sequence_length: int, vocab_size: int, end_id: int) -> Iterator[Item]:
    """Documents of 1 to `sequence_length` tokens, most of them short, with thoughts and an end; some cut in two."""
    rng = np.random.default_rng([len(split), count, vocab_size])
    dtype = token_dtype(vocab_size)
    for number in range(count):
        tokens = int(min(sequence_length, max(1, rng.pareto(1.2) * 8)))
        if number == 0:
            tokens = sequence_length
        kinds = np.sort(rng.integers(TokenType.SOURCE, TokenType.DELIMITER, tokens, endpoint=True)).astype(np.uint8)
        input_ids = rng.integers(0, vocab_size, tokens).astype(dtype)
        if number % 5:  # the others are pieces that go on elsewhere
            input_ids[-1], kinds[-1] = end_id, TokenType.DELIMITER
        yield Item(doc_id=f"{split}-{number // 2}", source_start=number % 2 * 7, input_ids=input_ids, token_type=kinds)


def write_output(
    folder: str,
    *,
    sequence_length: int = 64,
    vocab_size: int = 50_000,
    documents: int = 204,
    train_shards: int = 3,
    batch_bytes: int = 2_000,
    empty_split: bool = False,
    policy: LossMask = "all",
) -> PackedOutput:
    """Write shards in small batches, manifest and `_SUCCESS`; with rows of padding, as takedowns leave them."""
    end_id = vocab_size - 1
    schema = ROWS.schema(sequence_length=sequence_length, vocab_size=vocab_size, with_loss_mask=policy != "all")
    dtype = token_dtype(vocab_size)
    entries, written = [], {}
    for split, shards in (("train", train_shards), ("validation", 1)):
        count = 0 if empty_split and split == "validation" else documents if split == "train" else 9
        packed = pack_rows(items(split, count, sequence_length, vocab_size, end_id), sequence_length)
        rows = order.shuffle_rows(list(packed), 0, 0)
        rows_per_shard = -(-len(rows) // shards) if count else 1
        written[split] = [rows[i * rows_per_shard : (i + 1) * rows_per_shard] for i in range(shards)]
        for number, shard in enumerate(written[split]):
            name = f"data/{split}-{number:05d}-of-{shards:05d}.arrow"
            padded = shard + [row_of([], sequence_length, dtype, with_surprisal=False)] * (rows_per_shard - len(shard))
            stored = padded
            if policy != "all":
                stored = [
                    MaskedRow(**msgspec.structs.asdict(row), loss_mask=loss_mask(row.token_type, policy))
                    for row in padded
                ]
            with mock.patch.object(arrow_files, "BATCH_BYTES", batch_bytes):
                entry = storage.write_part(storage.join(folder, name), stored, schema, name=name, sum_batches=True)
            kinds = sum(np.bincount(row.token_type, minlength=len(TokenType)) for row in padded)
            tokens = {kind.name.lower(): int(kinds[kind]) for kind in TokenType}
            unlabelled = sum(not is_labelled(row.token_type, row.seq_lengths, policy) for row in shard)
            rows_of_kind = {"padding_rows": len(padded) - len(shard), "unlabelled_rows": unlabelled}
            entries.append(msgspec.structs.replace(entry, tokens=tokens, **rows_of_kind))
    manifest.write(
        folder,
        Manifest(
            stage="pack",
            format=manifest.FORMAT,
            fingerprint=FINGERPRINT,
            config={
                "tokenizer": "acme/tokenizer",
                "layout": "after_document",
                "card": {"name": "packed"},
                "pack": {"sequence_length": sequence_length, "loss_mask": policy},
            },
            inputs={},
            files={"shards": entries},
            counts={"rows": sum(entry.rows for entry in entries)},
            facts={"vocab_size": vocab_size, "tokenizer_fingerprint": "abc", "document_end_ids": [end_id]},
            rehearsal=True,
            elapsed_s=1.0,
        ),
    )
    storage.write_bytes(storage.join(folder, manifest.SUCCESS_NAME), b"")
    return PackedOutput(folder, written)
