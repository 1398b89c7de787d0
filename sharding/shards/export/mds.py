"""MDS, the format of mosaicml-streaming: a sample per row, in files of at most 64 MiB, and an index.json per split.

    tokens       ndarray:int32:L, padding included; the name llm-foundry reads
    token_type   ndarray:uint8:L
    seq_lengths  ndarray:int32, tokens of each item; what remains is padding
    loss_mask    ndarray:uint8:L, only where one is asked for: 1 where the token counts

    file    number of samples as uint32 · their offsets and the end as uint32 · the columns as JSON · the samples
    sample  uint32 size of each column of variable size · the columns' bytes, sorted by name

Layout: streaming/base/format/mds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sharding.records.rows import TokenType
from sharding.records.types import FileEntry
from sharding.shards.export.files import publish
from sharding.shards.export.source import SourceShard

VERSION = 2
FILE_BYTES = 1 << 26
"""Size after which a file is closed: the default of the format's own writer. Offsets are 32-bit."""

INDEX_NAME = "index.json"


def columns(sequence_length: int, with_loss_mask: bool) -> dict[str, str]:
    """Name of each column → its encoding, sorted by name as the format wants it."""
    encodings = {
        "seq_lengths": "ndarray:int32",
        "token_type": f"ndarray:uint8:{sequence_length}",
        "tokens": f"ndarray:int32:{sequence_length}",
    }
    if with_loss_mask:
        encodings["loss_mask"] = f"ndarray:uint8:{sequence_length}"
    return dict(sorted(encodings.items()))


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the files of a shard; none is listed in the index yet.

    Raises:
        MillError: the shard is not what its manifest says, or the store refused.
    """
    header = json.dumps(_config(shard.sequence_length, shard.loss_mask is not None), sort_keys=True).encode()
    entries: list[FileEntry] = []
    samples: list[bytes] = []
    size_bytes = 0
    counts = np.zeros(len(TokenType), np.int64)
    for sample, token_type in _samples(shard):
        if samples and size_bytes + len(sample) > FILE_BYTES:
            entries.append(_write_file(shard, target, len(entries), header, samples, counts))
            samples, size_bytes = [], 0
            counts = np.zeros(len(TokenType), np.int64)
        samples.append(sample)
        size_bytes += len(sample)
        counts += np.bincount(token_type, minlength=len(TokenType))
    if samples:
        entries.append(_write_file(shard, target, len(entries), header, samples, counts))
    return entries


def finish(target: str, split: str, shard: SourceShard, files: Sequence[FileEntry]) -> list[FileEntry]:
    """Write the split's index over all its files, in their order.

    Args:
        target: where the export goes.
        split: its name.
        shard: any shard of the corpus.
        files: what `write_shard` gave for the shards of the split.
    """
    config = _config(shard.sequence_length, shard.loss_mask is not None)
    index = {
        "version": VERSION,
        "shards": [
            {
                **config,
                "samples": entry.rows,
                "zip_data": None,
                "raw_data": {
                    "basename": entry.name.removeprefix(f"{split}/"),
                    "bytes": entry.size_bytes,
                    "hashes": {"sha256": entry.sha256},
                },
            }
            for entry in files
        ],
    }
    with publish(target, f"{split}/{INDEX_NAME}") as out:
        out.write(json.dumps(index, sort_keys=True).encode())
    return [out.entry(rows=len(files))]


def _config(sequence_length: int, with_loss_mask: bool) -> dict[str, Any]:
    encodings = columns(sequence_length, with_loss_mask)
    sizes = {"tokens": 4 * sequence_length, "token_type": sequence_length, "loss_mask": sequence_length}
    return {
        "version": VERSION,
        "format": "mds",
        "compression": None,
        "hashes": ["sha256"],
        "size_limit": FILE_BYTES,
        "column_names": list(encodings),
        "column_encodings": list(encodings.values()),
        "column_sizes": [sizes.get(name) for name in encodings],
    }


def _samples(shard: SourceShard) -> Iterator[tuple[bytes, np.ndarray]]:
    """Every row as the bytes of a sample, with its token types."""
    for batch in shard.batches():
        counted = None if shard.loss_mask is None else shard.counted(batch.token_type)
        ids = batch.input_ids.astype("<i4")
        first = 0
        for row, num_items in enumerate(batch.items_per_row.tolist()):
            lengths = _variable(batch.item_lengths[first : first + num_items])
            first += num_items
            token_type = batch.token_type[row]
            parts = [] if counted is None else [counted[row].tobytes()]
            parts += [lengths, token_type.tobytes(), ids[row].tobytes()]
            yield np.uint32(len(lengths)).astype("<u4").tobytes() + b"".join(parts), token_type


def _variable(lengths: np.ndarray) -> bytes:
    """A vector of int32 whose length is not in the columns: number of axes and type of the shape, shape, values."""
    code, kind = (0, "<u1") if len(lengths) < 1 << 8 else (1, "<u2") if len(lengths) < 1 << 16 else (2, "<u4")
    return bytes([1 << 2 | code]) + np.array([len(lengths)], kind).tobytes() + lengths.astype("<i4").tobytes()


def _write_file(
    shard: SourceShard, target: str, number: int, header: bytes, samples: Sequence[bytes], counts: np.ndarray
) -> FileEntry:
    first = 4 + 4 * (len(samples) + 1) + len(header)
    offsets = first + np.cumsum([0, *map(len, samples)])
    with publish(target, f"{shard.stem}.{number:05d}.mds") as out:
        out.write(np.array([len(samples), *offsets], "<u4"))
        out.write(header)
        for sample in samples:
            out.write(sample)
    tokens = {kind.name.lower(): int(counts[kind]) for kind in TokenType}
    return out.entry(rows=len(samples), tokens=tokens)
