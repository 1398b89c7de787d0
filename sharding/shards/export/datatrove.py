"""Datatrove and nanotron: `.ds`, `.ds.index`, `.ds.metadata` and, where a loss mask is asked for, `.ds.loss`.

    .ds           token ids, uint16 up to 65,536 entries of the vocabulary, else uint32; no padding
    .ds.index     uint64 end of each document, in tokens from the start of the file
    .ds.loss      one byte per token: 1 where it counts
    .ds.metadata  three lines: tokenizer|bytes per token, number of tokens, the same for people

A document of the format is an item of a row. The reader cuts the stream into sequences of its own, so an item can be
torn at a sequence's end there. Layout: datatrove/pipeline/tokens/tokenizer.py, `TokenizedFile`.
"""

from __future__ import annotations

import contextlib

import numpy as np

from sharding.records.arrow import token_dtype
from sharding.records.types import FileEntry
from sharding.shards.export.files import publish
from sharding.shards.export.source import SourceShard
from sharding.storage.hashed_file import HashedFile


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the files of a shard.

    Raises:
        MillError: the shard is not what its manifest says, or the store refused.
    """
    dtype = token_dtype(shard.vocab_size).newbyteorder("<")
    num_tokens = num_documents = 0
    with contextlib.ExitStack() as files:
        index, ids = (files.enter_context(publish(target, shard.stem + end)) for end in (".ds.index", ".ds"))
        loss: HashedFile | None = None
        if shard.loss_mask is not None:
            loss = files.enter_context(publish(target, f"{shard.stem}.ds.loss"))
        for batch in shard.batches():
            is_token = batch.is_token()
            ids.write(batch.input_ids[is_token].astype(dtype))
            if loss is not None:
                loss.write(shard.counted(batch.token_type[is_token]))
            index.write((num_tokens + np.cumsum(batch.item_lengths, dtype=np.int64)).astype("<u8"))
            num_tokens += int(batch.item_lengths.sum())
            num_documents += len(batch.item_lengths)
    with publish(target, f"{shard.stem}.ds.metadata") as metadata:
        lines = f"{shard.tokenizer}|{dtype.itemsize}\n{num_tokens}\n{num_tokens / 1e6:.3g} MT"
        metadata.write(lines.encode())
    entries = [
        ids.entry(rows=num_documents, tokens=shard.tokens()),
        index.entry(rows=num_documents),
        metadata.entry(rows=1),
    ]
    return entries + ([loss.entry(rows=num_tokens)] if loss is not None else [])
