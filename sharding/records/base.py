"""A record: immutable, compared by its bytes, carried between workers as msgpack. Under every record type."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np


class Record(msgspec.Struct, frozen=True, kw_only=True, eq=False, array_like=True):
    """Base of every record: immutable, compared by its encoded bytes."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and encode(self) == encode(other)

    def __hash__(self) -> int:
        return hash(encode(self))


# --- bytes, for the way between workers -------------------------------------------------------------------------------


_GLANCE = bytes(64)
"""So many bytes tell most arrays from one of zeros alone."""


def _to_builtin(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = value.tobytes()
        # Without a scorer all nats are 0, and would be two thirds of what is carried.
        zeros = data.startswith(_GLANCE) and not np.frombuffer(data, np.uint8).any()
        return [value.dtype.str, len(value) if zeros else data]
    raise NotImplementedError(f"records hold no {type(value)}")


def _from_builtin(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        dtype, data = value
        return np.zeros(data, dtype) if isinstance(data, int) else np.frombuffer(data, dtype=dtype)
    raise NotImplementedError(f"records hold no {kind}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_builtin, order="deterministic")
_decoders: dict[type, msgspec.msgpack.Decoder] = {}


R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    """The record as compact bytes; equal records give equal bytes."""
    return _encoder.encode(record)


def decode(kind: type[R], data: bytes) -> R:
    """The record of type `kind` that `encode` turned into `data`. Its arrays are read-only views."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind, dec_hook=_from_builtin)
    return decoder.decode(data)
