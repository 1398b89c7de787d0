"""OLMo-core: headerless arrays of token ids, and beside each one a label mask.

    tokens/*.npy       uint16 up to 65,536 entries of the vocabulary, else uint32: whole rows, padding included
    label_mask/*.npy   one byte per token: 1 where it counts; padding never does

With the trainer's sequence length equal to ours, instance i of `NumpyFSLDataset` is row i: nothing is torn. The trainer
finds documents by the end-of-text id; the pieces of a document that was cut are told apart only by the rows they are
in. Layout: olmo_core/data/numpy_dataset.py.
"""

from __future__ import annotations

from sharding.records.arrow import token_dtype
from sharding.records.types import FileEntry
from sharding.shards.export.files import publish
from sharding.shards.export.source import SourceShard


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the two files of a shard.

    Raises:
        MillError: the shard is not what its manifest says, or the store refused.
    """
    dtype = token_dtype(shard.vocab_size).newbyteorder("<")
    rows = 0
    tokens_name, mask_name = (shard.stem.replace("/", f"/{folder}/") + ".npy" for folder in ("tokens", "label_mask"))
    with publish(target, mask_name) as mask, publish(target, tokens_name) as ids:
        for batch in shard.batches():
            ids.write(batch.input_ids.astype(dtype))
            mask.write(shard.counted(batch.token_type))
            rows += len(batch.input_ids)
    return [ids.entry(rows=rows, tokens=shard.tokens(rows=rows)), mask.entry(rows=rows)]
