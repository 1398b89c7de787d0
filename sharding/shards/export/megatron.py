"""Megatron-LM and Megatron-Core: a `.bin` of token ids and an `.idx` of documents per shard.

    .bin   token ids, one document after the other, no padding
    .idx   "MMIDIDX\\0\\0" · version 1 as uint64 · dtype code as uint8 · number of sequences and of document marks as
           uint64 · int32 length of each sequence · int64 byte offset of each · int64 sequence index of each mark

A document of the format is an item of a row: a document with its thoughts, or one piece of a document that was cut.
Each is a sequence of its own. There is no place for a loss mask. Layout: megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import struct

import numpy as np

from sharding.records.types import FileEntry
from sharding.shards.export.files import publish
from sharding.shards.export.source import SourceShard

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
UINT16_BELOW = 65_500
"""Vocabularies of fewer entries are stored in 16 bits: `DType.optimal_dtype` of Megatron-Core."""

DTYPE_CODES = {"<u2": 8, "<i4": 4}


def token_dtype(vocab_size: int) -> str:
    """The id type the trainer expects for a vocabulary of this size."""
    return "<u2" if vocab_size < UINT16_BELOW else "<i4"


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the two files of a shard.

    Raises:
        MillError: the shard is not what its manifest says, or the store refused.
    """
    dtype = token_dtype(shard.vocab_size)
    lengths: list[np.ndarray] = []
    with publish(target, f"{shard.stem}.idx") as idx, publish(target, f"{shard.stem}.bin") as ids:
        for batch in shard.batches():
            ids.write(batch.input_ids[batch.is_token()].astype(dtype))
            lengths.append(batch.item_lengths.astype("<i4"))
        sequence_lengths = np.concatenate(lengths)
        num_sequences = len(sequence_lengths)
        ends = np.cumsum(sequence_lengths, dtype=np.int64) * np.dtype(dtype).itemsize
        idx.write(MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype], num_sequences, num_sequences + 1))
        idx.write(sequence_lengths)
        idx.write(np.concatenate(([0], ends[:-1])).astype("<i8"))
        idx.write(np.arange(num_sequences + 1, dtype="<i8"))
    return [
        ids.entry(rows=num_sequences, tokens=shard.tokens()),
        idx.entry(rows=num_sequences),
    ]
