"""Outputs as somebody else may hand them on: a whole one, and ways to change a file so that its hash still fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.storage import manifest
from tests.conftest import rehearsal_tree


def make_output(folder: Path, tokenizer: str) -> Path:
    """A finished output of eight documents."""
    lines = [json.dumps({"id": str(i), "text": f"Document {i} says this. " * 20}) for i in range(8)]
    (folder / "source.jsonl").write_text("\n".join(lines))
    mill(from_mapping(rehearsal_tree(folder, tokenizer, str(folder / "source.jsonl"))))
    return folder / "out"


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file says: `change` does it in place, or gives what is to be there instead."""
    tree = json.loads(path.read_text())
    instead = change(tree)
    path.write_text(json.dumps(tree if instead is None else instead))


def manifest_of(output: Path, stage: str = "pack") -> Path:
    return Path(manifest.manifest_url(str(output), stage))


def replace_file(output: Path, stage: str, family: str, data: bytes, rows: int | None = None) -> Path:
    """Other bytes for the first file of a family, and a manifest that says so."""

    def change(tree: dict[str, Any]) -> None:
        entry = tree["files"][family][0]
        entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        entry["rows"] = entry["rows"] if rows is None else rows

    rewrite(manifest_of(output, stage), change)
    path = first_file(output, stage, family)
    path.write_bytes(data)
    return path


def first_file(output: Path, stage: str, family: str) -> Path:
    found = manifest.require(str(output), stage)
    return Path(manifest.file_urls(str(output), found, family)[0])


def stream(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    """An Arrow stream of one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def only_batch(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_stream(path.read_bytes()).read_all().combine_chunks().to_batches()[0]


def with_offsets(batch: pa.RecordBatch, column: str, offset: int) -> bytes:
    """A stream of the batch whose column of lists or texts says that its last value ends at `offset`."""
    data = bytearray(stream(batch))
    there = pa.ipc.open_stream(bytes(data)).read_next_batch().column(column).buffers()[1]
    raw = bytes(there)[: 4 * (batch.num_rows + 1)]
    at = data.find(raw)
    assert at > 0
    offsets = np.frombuffer(raw, np.int32).copy()
    offsets[-1] = offset
    data[at : at + len(raw)] = offsets.tobytes()
    return bytes(data)


def with_column(batch: pa.RecordBatch, column: str, values: pa.Array) -> pa.RecordBatch:
    """The batch with other values, of whatever type, in a column."""
    index = batch.schema.get_field_index(column)
    return batch.set_column(index, pa.field(column, values.type, nullable=values.null_count > 0), values)
