"""Arrow columns, of Parquet, Arrow and datasets alike: checked by their schema, turned into documents row by row."""

from __future__ import annotations

import base64
import datetime
import decimal
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import RequestError
from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source, SourceConfig
from sharding.sources.documents import document_of, refuse, too_long

NAMES_SHOWN = 30


def wanted_columns(config: SourceConfig) -> list[str]:
    """The columns that are read, each once."""
    fields = [config.text_field, *([config.id_field] if config.id_field else []), *config.metadata_fields]
    return list(dict.fromkeys(fields))


def check_columns(schema: pa.Schema, source: Source, where: str) -> None:
    """Compare the columns a source names with those there are.

    Raises:
        RequestError: one is missing, or the text or id has a type that can't be one; names the key and the file.
    """
    config = source.config
    keys = {"text_field": config.text_field}
    if config.id_field is not None:
        keys["id_field"] = config.id_field
    keys |= {f"metadata_fields.{i}": name for i, name in enumerate(config.metadata_fields)}
    for key, name in keys.items():
        if schema.names.count(name) != 1:
            shown = ", ".join(schema.names[:NAMES_SHOWN]) + (", ..." if len(schema.names) > NAMES_SHOWN else "")
            how = "is there more than once in" if name in schema.names else "is no column of"
            raise RequestError(f"{source.key}.{key}: {name!r} {how} {where}; it has: {shown or 'no columns'}")
    text, identity = schema.field(config.text_field).type, config.id_field and schema.field(config.id_field).type
    if not is_text(text) and not pa.types.is_null(text):
        raise RequestError(f"{source.key}.text_field: {config.text_field!r} is {text} in {where}, not a string")
    if identity and not (is_text(identity) or pa.types.is_integer(identity) or pa.types.is_null(identity)):
        raise RequestError(
            f"{source.key}.id_field: {config.id_field!r} is {identity} in {where}, not strings or integers"
        )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's type can hold text: strings, or bytes that are decoded as UTF-8."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        of_type(kind)
        for of_type in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )


def documents_of(
    batch: pa.RecordBatch, source: Source, origin: Callable[[int], str]
) -> Iterator[Document | Quarantined]:
    """The rows of a batch as documents. One row at a time becomes Python values.

    Args:
        batch: has the wanted columns.
        source: says which column is what.
        origin: from the row's index in the batch to where it is.
    """
    config = source.config
    names = wanted_columns(config)
    limit = config.max_document_bytes
    cells = [_Cells(batch.column(name), as_text=name in (config.text_field, config.id_field)) for name in names]
    longest = [column.sizes for column in cells if column.sizes is not None]
    over = np.any([sizes > limit for sizes in longest], axis=0) if longest else np.zeros(batch.num_rows, bool)
    text = names.index(config.text_field)
    for row in range(batch.num_rows):
        if over[row]:
            yield too_long(origin(row), source)
            continue
        payload = cells[text].payload(row)
        try:
            record = {name: column.value(row) for name, column in zip(names, cells, strict=True)}
        except UnicodeDecodeError as error:
            yield refuse(origin(row), "invalid_utf8", str(error), payload)
        else:
            yield document_of(record, origin(row), source, payload)


class _Cells:
    """A column whose cells come out one by one.

    Text stays bytes until it is decoded here: Arrow doesn't check the UTF-8 of what it reads. A dictionary stays one,
    so that a column that repeats a long text is never written out.

    Attributes:
        sizes: (num_rows,) int64, bytes of each cell; None for a column that isn't text.
    """

    def __init__(self, column: pa.Array, *, as_text: bool) -> None:
        self._column = column
        self._indices: Sequence[Any] | None = None
        self.sizes: np.ndarray | None = None
        self._is_text = is_text(column.type)
        self._decode = self._is_text and (as_text or not _is_bytes(column.type))
        if not self._is_text:
            self._column = _to_microseconds(column)
        elif pa.types.is_dictionary(column.type):
            self._column, indices = column.dictionary.cast(pa.large_binary()), column.indices
            self._indices = indices
            self.sizes = _filled(pc.binary_length(self._column).take(indices))
        else:
            self._column = column.cast(pa.large_binary())
            self.sizes = _filled(pc.binary_length(self._column))

    def payload(self, row: int) -> bytes:
        """The bytes of a text cell; none for what isn't text."""
        return (self._cell(row) or b"") if self._is_text else b""

    def value(self, row: int) -> Any:
        """The cell as a JSON value.

        Raises:
            UnicodeDecodeError: it isn't UTF-8.
        """
        cell = self._cell(row)
        return cell.decode() if self._decode and cell is not None else json_value(cell)

    def _cell(self, row: int) -> Any:
        if self._indices is None:
            try:
                return self._column[row].as_py()
            except (OverflowError, ValueError):  # a time that Python has none for
                return None
        index = self._indices[row].as_py()
        return None if index is None else self._column[index].as_py()


def _filled(sizes: pa.Array) -> np.ndarray:
    return pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False)


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _to_microseconds(column: pa.Array) -> pa.Array:
    # Python's times end at microseconds; Arrow gives pandas' in their place where pandas is installed.
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None and not _is_zone(kind.tz):
        kind = pa.timestamp(kind.unit, "UTC")
        column = column.cast(kind)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pc.cast(column, pa.timestamp("us", tz=kind.tz), safe=False)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pc.cast(column, pa.duration("us"), safe=False)
    return column


def _is_zone(name: str) -> bool:
    try:
        pa.lib.string_to_tzinfo(name)
    except (LookupError, ValueError):
        return False
    return True


def json_value(value: Any) -> Any:
    """A value of an Arrow column as JSON has it: times in ISO 8601, durations in seconds, decimals as text, bytes in
    base 64, not-a-number and infinities as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(name): json_value(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(member) for member in value]
    return str(value)
