"""Records at rest: the Arrow schema of a record type, from its annotations, and rows to record batches and back.

samples: Int32               ─► int32           prompt: str         ─► string
surprisal_nats: Float16s     ─► list<float16>   value: float | None ─► float64, may be null
prompt_token_ids: NotStored  ─► no column       reasons: list[str]  ─► list<string>
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pyarrow as pa

from sharding.errors import MillError
from sharding.records.base import R, Record


@dataclass(frozen=True)
class Column:
    """How an attribute rests, where its Python type doesn't tell.

    Attributes:
        dtype: of the number, or of the array's elements; None for token ids, which are as narrow as the vocabulary is.
        per_token: an array of one element for each token of a training sequence.
        stored: False for what only travels between workers.
    """

    dtype: type[np.generic] | None = None
    per_token: bool = False
    stored: bool = True


Int32 = Annotated[int, Column(np.int32)]
Int32s = Annotated[np.ndarray, Column(np.int32)]
Int64s = Annotated[np.ndarray, Column(np.int64)]
Uint32s = Annotated[np.ndarray, Column(np.uint32)]
Float16s = Annotated[np.ndarray, Column(np.float16)]
TokenIds = Annotated[np.ndarray, Column()]
RowTokenIds = Annotated[np.ndarray, Column(per_token=True)]
RowUint8s = Annotated[np.ndarray, Column(np.uint8, per_token=True)]
RowFloat16s = Annotated[np.ndarray, Column(np.float16, per_token=True)]
RowBools = Annotated[np.ndarray, Column(np.bool_, per_token=True)]
NotStored = Annotated[np.ndarray, Column(stored=False)]
NotStoredText = Annotated[str, Column(stored=False)]
NotStoredTexts = Annotated[list[str], Column(stored=False)]

_PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest id type that holds the vocabulary: uint16 up to 65,536 entries, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def token_arrow_type(vocab_size: int) -> pa.DataType:
    """`token_dtype` as an Arrow type."""
    return pa.from_numpy_dtype(token_dtype(vocab_size))


def schema_of(
    kind: type[Record],
    *,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    without: Collection[str] = (),
) -> pa.Schema:
    """The columns of a record type: its stored attributes in their order.

    Args:
        kind: the record type.
        vocab_size: entries of the vocabulary; for types with token ids.
        sequence_length: tokens in a row; for types with rows of tokens.
        without: attributes to leave out.

    Raises:
        ValueError: an annotation doesn't say how the attribute rests, or it takes a number that wasn't given.
    """
    fields = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name in without:
            continue
        try:
            if (field := _field(name, hint, vocab_size, sequence_length)) is not None:
                fields.append(field)
        except ValueError as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
    return pa.schema(fields)


def _field(name: str, hint: Any, vocab_size: int | None, sequence_length: int | None) -> pa.Field | None:
    column = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Column)), None)
    if column is not None:
        if not column.stored:
            return None
        if column.dtype is not None:
            element = pa.from_numpy_dtype(column.dtype)
        elif vocab_size is not None:
            element = token_arrow_type(vocab_size)
        else:
            raise ValueError("the type of token ids needs vocab_size")
        if get_args(hint)[0] is not np.ndarray:
            return pa.field(name, element, nullable=False)
        if column.per_token and sequence_length is None:
            raise ValueError("the length of a row needs sequence_length")
        return pa.field(name, _list(element, sequence_length if column.per_token else None), nullable=False)
    if isinstance(hint, types.UnionType):
        return pa.field(name, _plain(next(kind for kind in get_args(hint) if kind is not types.NoneType)))
    if get_origin(hint) is list:
        return pa.field(name, _list(_plain(get_args(hint)[0]), None), nullable=False)
    return pa.field(name, _plain(hint), nullable=False)


def _plain(hint: Any) -> pa.DataType:
    if hint not in _PLAIN:
        raise ValueError(f"{hint} needs an annotation of sharding.records.arrow that says how it is stored")
    return _PLAIN[hint]


def _list(element: pa.DataType, length: int | None) -> pa.DataType:
    items = pa.field("item", element, nullable=False)
    return pa.list_(items) if length is None else pa.list_(items, length)


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


@cache
def _declared(kind: type[Record]) -> dict[str, tuple[frozenset[Any], bool]]:
    """Column → the types that it may have, and whether there may be nulls in it."""
    narrow, wide = (schema_of(kind, vocab_size=size, sequence_length=1) for size in (1, 1 << 32))
    return {
        field.name: (frozenset((_shape(field.type), _shape(wide.field(field.name).type))), field.nullable)
        for field in narrow
    }


def _shape(kind: pa.DataType) -> Any:
    """A type without what differs between files of one family: lengths of rows, names within."""
    if pa.types.is_fixed_size_list(kind):
        return "row", kind.value_type
    return ("list", kind.value_type) if pa.types.is_list(kind) else kind


def check_schema(kind: type[Record], schema: pa.Schema, wanted: Collection[str] | None = None) -> None:
    """Whether the columns that are read of a file are those of its records.

    Args:
        kind: the type of its records.
        schema: of the file.
        wanted: the columns that are read; all when None. Those with a default may be absent.

    Raises:
        pa.ArrowInvalid: one is absent, there twice, or of another type.
    """
    defaults = {field.name for field in msgspec.structs.fields(kind) if not field.required}
    for name, (shapes, nullable) in _declared(kind).items():
        if wanted is not None and name not in wanted:
            continue
        found = schema.get_all_field_indices(name)
        if len(found) > 1 or (not found and name not in defaults):
            raise pa.ArrowInvalid(f"it has {len(found)} columns {name}")
        if found and _shape(schema.field(found[0]).type) not in shapes:
            raise pa.ArrowInvalid(f"its column {name} is of the type {str(schema.field(found[0]).type)[:100]}")
        if found and schema.field(found[0]).nullable != nullable:
            raise pa.ArrowInvalid(f"its column {name} may {'not ' * nullable}lack values")


def check_values(kind: type[Record], batch: pa.RecordBatch) -> None:
    """Whether every value is there in a batch of checked columns that may be read without harm.

    Raises:
        pa.ArrowInvalid: one is missing.
    """
    for name, (_, nullable) in _declared(kind).items():
        if nullable or name not in batch.schema.names:
            continue
        column = batch.column(name)
        if column.null_count or (isinstance(_shape(column.type), tuple) and column.flatten().null_count):
            raise pa.ArrowInvalid(f"its column {name} lacks values")


def from_batch(kind: type[R], batch: pa.RecordBatch) -> Iterator[R]:
    """The rows of a batch as records. Columns absent from the batch get their default, or are empty or zero.

    Absent columns are how a reader leaves the bulk unread: see `storage.read_records(columns=...)`.
    """
    hints = get_type_hints(kind)
    columns = {
        name: _values(batch.column(name), hints[name]) if name in batch.schema.names else None
        for name in kind.__struct_fields__
    }
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    absent = {name: _zero(hints[name]) for name, values in columns.items() if values is None and name in required}
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
