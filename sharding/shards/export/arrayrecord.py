"""ArrayRecord, the files that Grain reads at random: a training row or a document in each record, a `tf.train.Example`.

    input_ids, labels, positions, segment_ids, loss_mask   int64 lists of sequence_length values: what
                                                           `sharding.shards.grain_sources.RowSource` gives of the row
    surprisal                                              float list, where the corpus has it: of the same row too
    doc_ids                                                bytes list, the document of each item

By document, what `DocumentSource` gives: an item of a row in each record, without padding, for trainers that pack.

One record is one chunk (`group_size:1`), as random access wants it. Layout of the message: tensorflow/core/example/
example.proto and feature.proto; it is put together here, since TensorFlow is large and protobuf is there with Beam.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sharding.errors import RequestError
from sharding.records.types import FileEntry
from sharding.shards.export.files import publish
from sharding.shards.export.source import SourceShard
from sharding.shards.grain_sources import training_arrays
from sharding.shards.rows import row_arrays
from sharding.storage.files import discard, sweep
from sharding.storage.private import private_folder

OPTIONS = "group_size:1"

_DTYPES = {"loss_mask": np.bool_, "surprisal": np.float32}  # of what `parse` gives; int32 of the others
_COPIED_BYTES = 1 << 20


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the file of a shard, a row in each record.

    Raises:
        RequestError: array_record isn't installed.
        MillError: the shard is not what its manifest says, or the store refused.
    """
    entry = write_records(shard, target, _rows(shard))
    return [msgspec.structs.replace(entry, tokens=shard.tokens(rows=entry.rows))]


def write_records(shard: SourceShard, target: str, records: Iterator[bytes]) -> FileEntry:
    """Write the file of a shard, of any records.

    Raises:
        RequestError, MillError: see `write_shard`.
    """
    with publish(target, f"{shard.stem}.array_record") as out:
        # The library writes to a path of this machine and nothing else.
        folder = str(private_folder())
        sweep(folder)
        handle, name = tempfile.mkstemp(prefix=".", suffix=f".{uuid.uuid4().hex}.tmp", dir=folder)
        os.close(handle)
        try:
            count = _write(name, records)
            with Path(name).open("rb") as file:
                while chunk := file.read(_COPIED_BYTES):
                    out.write(chunk)
        finally:
            discard(Path(name))
    return out.entry(rows=count, tokens=shard.tokens())


def parse(record: bytes) -> dict[str, np.ndarray]:
    """A record as `RowSource` or `DocumentSource` gives it.

    Returns:
        input_ids, labels, positions and segment_ids, int32; loss_mask, bool; surprisal, float32, where there is one.
    """
    features = _example_class().FromString(record).features.feature
    return {
        name: np.array(getattr(feature, kind).value, _DTYPES.get(name, np.int32))
        for name, feature in features.items()
        if (kind := feature.WhichOneof("kind")) != "bytes_list"
    }


def _write(path: str, records: Iterator[bytes]) -> int:
    """Write records to a file of this machine; gives how many they are."""
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise RequestError(
            "format: arrayrecord needs array-record, not installed here: pip install 'thoughtmill[grain]'"
        ) from error
    writer, count = ArrayRecordWriter(path, OPTIONS), 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    finally:
        writer.close()
    return count


def _rows(shard: SourceShard) -> Iterator[bytes]:
    return (record(training_arrays(row), doc_ids) for row, doc_ids in training_rows(shard))


def training_rows(shard: SourceShard) -> Iterator[tuple[dict[str, np.ndarray], list[str]]]:
    """The rows of a shard as models are trained on them (see `row_arrays`), each with its documents' ids."""
    for batch in shard.batches():
        counted = shard.counted(batch.token_type)
        doc_ids = batch.arrow.column("doc_ids").to_pylist()
        for row in range(len(batch.input_ids)):
            yield row_arrays(batch, row, counted[row]), doc_ids[row]


def record(arrays: Mapping[str, np.ndarray], doc_ids: Sequence[str]) -> bytes:
    """Arrays and the ids of their documents as a message."""
    example = _example_class()()
    features = example.features.feature
    for name in sorted(arrays):
        feature = features[name]
        of_kind = feature.float_list if arrays[name].dtype == np.float32 else feature.int64_list
        of_kind.value.extend(arrays[name].tolist())
    features["doc_ids"].bytes_list.value.extend(doc_id.encode() for doc_id in doc_ids)
    data: bytes = example.SerializeToString(deterministic=True)  # a map of features comes in any order otherwise
    return data


@cache
def _example_class() -> Any:
    """The message `tensorflow.Example`, of protobuf's own machinery."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="thoughtmill/example.proto", package="tensorflow", syntax="proto3")

    def message(name: str, within: Any = None) -> Any:
        return (file.message_type if within is None else within.nested_type).add(name=name)

    def field(within: Any, name: str, number: int, kind: int, of: str = "", **more: Any) -> None:
        label = kinds.LABEL_REPEATED if more.pop("repeated", False) else kinds.LABEL_OPTIONAL
        named = {"type_name": f".tensorflow.{of}"} if of else {}
        within.field.add(name=name, number=number, type=kind, label=label, **named, **more)

    field(message("BytesList"), "value", 1, kinds.TYPE_BYTES, repeated=True)
    field(message("FloatList"), "value", 1, kinds.TYPE_FLOAT, repeated=True)
    field(message("Int64List"), "value", 1, kinds.TYPE_INT64, repeated=True)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, kind in enumerate(("Bytes", "Float", "Int64"), start=1):
        field(feature, f"{kind.lower()}_list", number, kinds.TYPE_MESSAGE, f"{kind}List", oneof_index=0)
    features = message("Features")
    entry = message("FeatureEntry", features)
    entry.options.map_entry = True
    field(entry, "key", 1, kinds.TYPE_STRING)
    field(entry, "value", 2, kinds.TYPE_MESSAGE, "Feature")
    field(features, "feature", 1, kinds.TYPE_MESSAGE, "Features.FeatureEntry", repeated=True)
    field(message("Example"), "features", 1, kinds.TYPE_MESSAGE, "Features")
    pool = (
        descriptor_pool.DescriptorPool()
    )  # of its own: TensorFlow, where it is, has the same names in the default one
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
