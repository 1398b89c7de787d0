"""The coder by which Beam carries records between workers; without it they would be pickled.

Those of `sharding.records` are registered with the shuffles, without which there is no pipeline. A record type of
another package is registered by the module whose transforms give it.
"""

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


def carry_as_records(*kinds: type[Record]) -> None:
    """Has Beam carry these record types by `RecordCoder`."""
    for kind in kinds:
        coders.registry.register_coder(kind, RecordCoder)


carry_as_records(*(kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record)))
