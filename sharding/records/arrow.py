"""Records at rest: their Arrow schemas, and rows to record batches and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from sharding.errors import MillError
from sharding.records.base import R, Record

# --- Arrow, for the way to disk ---------------------------------------------------------------------------------------


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest id type that holds the vocabulary: uint16 up to 65,536 entries, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def token_arrow_type(vocab_size: int) -> pa.DataType:
    """`token_dtype` as an Arrow type."""
    return pa.from_numpy_dtype(token_dtype(vocab_size))


def _schema(*fields: tuple[str, pa.DataType], nullable: Sequence[str] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in nullable) for name, kind in fields])


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


def segment_schema(vocab_size: int) -> pa.Schema:
    """Schema of the scored parts: with 16-bit ids 6 bytes per token before compression, 8 with a memory."""
    return _schema(
        ("doc_id", pa.string()),
        ("segment_index", pa.int32()),
        ("num_segments", pa.int32()),
        ("token_start", pa.int64()),
        ("input_ids", _list(token_arrow_type(vocab_size))),
        ("surprisal_nats", _list(pa.float16())),
        ("entropy_nats", _list(pa.float16())),
        ("memory_nats", _list(pa.float16())),
        ("difficulty_nats", pa.float64()),
        ("metadata", pa.string()),
        ("source", pa.string()),
        nullable=["metadata"],
    )


QUARANTINE_SCHEMA = _schema(
    ("stage", pa.string()),
    ("origin", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("doc_id", pa.string()),
    ("excerpt", pa.string()),
    nullable=["doc_id"],
)

REQUEST_SCHEMA = _schema(
    ("doc_id", pa.string()),
    ("segment_index", pa.int32()),
    ("tier", pa.string()),
    ("model", pa.string()),
    ("prompt", pa.string()),
    ("request_key", pa.string()),
    ("samples", pa.int32()),
    ("max_tokens", pa.int32()),
    ("expected_tokens", pa.float64()),
    ("prompt_tokens", pa.int32()),
    ("shown_tokens", pa.int32()),
)

LEDGER_SCHEMA = _schema(
    ("key", pa.string()),
    ("request_key", pa.string()),
    ("sample", pa.int32()),
    ("segment_id", pa.string()),
    ("tier", pa.string()),
    ("model", pa.string()),
    ("revision", pa.string()),
    ("engine", pa.string()),
    ("engine_version", pa.string()),
    ("prompt", pa.string()),
    ("prompt_version", pa.string()),
    ("text", pa.string()),
    ("thought_tokens", pa.int32()),
    ("token_ids", _list(pa.uint32())),
    ("sum_logprobs", pa.float64()),
    ("finish_reason", pa.string()),
    ("closed", pa.string()),
    ("prompt_tokens", pa.int32()),
    ("wall_s", pa.float64()),
    ("finished_at", pa.float64()),
    nullable=["sum_logprobs"],
)


VALUE_COLUMNS = ("value", "gain_nats", "control_nats", "hard_gain_nats", "heldout_nats")
"""The columns of a candidate that say what it is worth; all null where it was not valued."""


def candidate_schema(vocab_size: int) -> pa.Schema:
    """Schema of the kept and the rejected parts."""
    return _schema(
        ("doc_id", pa.string()),
        ("segment_index", pa.int32()),
        ("key", pa.string()),
        ("sample", pa.int32()),
        ("tier", pa.string()),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("closed", pa.string()),
        ("finish_reason", pa.string()),
        ("thought_tokens", pa.int32()),
        ("text", pa.string()),
        ("input_ids", _list(token_arrow_type(vocab_size))),
        ("shown_tokens", pa.int32()),
        *((name, pa.float64()) for name in VALUE_COLUMNS),
        ("contaminated", _list(pa.string())),
        ("kept", pa.bool_()),
        ("reasons", _list(pa.string())),
        nullable=VALUE_COLUMNS,
    )


CONTAMINATED_SCHEMA = _schema(
    ("doc_id", pa.string()), ("benchmarks", _list(pa.string())), ("source_tokens", pa.int64())
)


def row_schema(sequence_length: int, vocab_size: int, *, with_loss_mask: bool = False) -> pa.Schema:
    """Schema of the shards."""
    ids = pa.field("item", token_arrow_type(vocab_size), nullable=False)
    types = pa.field("item", pa.uint8(), nullable=False)
    counted = pa.field("item", pa.bool_(), nullable=False)
    return _schema(
        ("input_ids", pa.list_(ids, sequence_length)),
        ("token_type", pa.list_(types, sequence_length)),
        ("seq_lengths", _list(pa.int32())),
        ("doc_ids", _list(pa.string())),
        ("source_starts", _list(pa.int64())),
        *([("loss_mask", pa.list_(counted, sequence_length))] if with_loss_mask else []),
    )


def to_batch(records: Sequence[Record], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of `schema` from records that have its columns as attributes; other attributes are left out.

    Raises:
        MillError: a value doesn't fit its column, such as a token id too large for the id type.
    """
    return pa.RecordBatch.from_arrays([_column(records, field) for field in schema], schema=schema)


def _column(records: Sequence[Record], field: pa.Field) -> pa.Array:
    values = [getattr(record, field.name) for record in records]
    is_list = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    try:
        if not is_list or not values or not isinstance(values[0], np.ndarray):
            return pa.array(values, type=field.type)
        flat = pa.array(np.concatenate(values)).cast(field.type.value_type)
        if pa.types.is_fixed_size_list(field.type):
            return pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), flat, type=field.type)
    except (pa.ArrowException, OverflowError) as error:
        raise MillError(f"column {field.name}: a value does not fit {field.type}: {error}") from error


def from_batch(kind: type[R], batch: pa.RecordBatch) -> Iterator[R]:
    """The rows of a batch as records. Columns absent from the batch become empty arrays or their type's zero.

    Absent columns are how a reader leaves the bulk unread: see `shard_io.read_records(columns=...)`.
    """
    hints = get_type_hints(kind)
    columns = {
        name: _values(batch.column(name), hints[name]) if name in batch.schema.names else None
        for name in kind.__struct_fields__
    }
    absent = {name: _zero(hints[name]) for name, values in columns.items() if values is None}
    present = {name: values for name, values in columns.items() if values is not None}
    for i in range(batch.num_rows):
        yield kind(**absent, **{name: values[i] for name, values in present.items()})


def _values(column: pa.Array, hint: Any) -> Sequence[Any]:
    if hint is not np.ndarray:
        return column.to_pylist()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(column.type):
        return flat.reshape(len(column), column.type.list_size)
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    return [flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]


def _zero(hint: Any) -> Any:
    if hint is np.ndarray:
        return np.empty(0, np.uint32)
    kind = get_origin(hint) or hint
    return kind() if kind in (str, int, float, bool, list, dict) else None
