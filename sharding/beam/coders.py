"""The coder by which Beam carries records between workers."""

from __future__ import annotations

from typing import Any

from apache_beam import coders

from sharding import records
from sharding.records.base import Record


class RecordCoder(coders.Coder):
    """Carries a record between workers as the bytes of `records.encode`."""

    def __init__(self, kind: type[Record]) -> None:
        self._kind = kind

    def encode(self, value: Record) -> bytes:
        return records.encode(value)

    def decode(self, encoded: bytes) -> Record:
        return records.decode(self._kind, encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type[Record]:
        return self._kind

    @classmethod
    def from_type_hint(cls, typehint: type[Record], registry: Any) -> RecordCoder:
        return cls(typehint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordCoder) and self._kind is other._kind

    def __hash__(self) -> int:
        return hash(self._kind)


for _kind in Record.__subclasses__():
    coders.registry.register_coder(_kind, RecordCoder)
