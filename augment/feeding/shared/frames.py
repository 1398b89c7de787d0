"""What processes of one machine say to each other about generations: frames over a Unix socket.

`shared.client` asks, `shared.owner` answers. A frame is its length in four bytes and a msgpack message; a
connection begins with `Hello` and is about one model.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from pydantic import TypeAdapter

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.feeding.config import FeedingConfig

LENGTH_BYTES = 4

_model_json = TypeAdapter(ModelConfig)
_feeding_json = TypeAdapter(FeedingConfig)


class Hello(msgspec.Struct, tag=True):
    """The model the connection is about: its name in the config, and, as JSON, its section and how it is fed."""

    name: str
    model: bytes
    feeding: bytes

    def sections(self) -> tuple[ModelConfig, FeedingConfig]:
        """The sections of the config."""
        return _model_json.validate_json(self.model), _feeding_json.validate_json(self.feeding)


class Ask(msgspec.Struct, tag=True):
    """Make this; `number` comes back with the answer."""

    number: int
    request: GenerationRequest


class Made(msgspec.Struct, tag=True):
    """It is made."""

    number: int
    generation: Generation


class Begun(msgspec.Struct, tag=True):
    """The owner is told to end, and this is what there is of it; the connection ends next."""

    number: int
    generation: Generation


class Refused(msgspec.Struct, tag=True):
    """This request was given up, alone, after all the tries it may have."""

    number: int
    error: str
    may_pass: bool


class Broken(msgspec.Struct, tag=True):
    """There will be no engine for this model."""

    error: str


Frame = Hello | Ask | Made | Begun | Refused | Broken


def hello(name: str, model: ModelConfig, feeding: FeedingConfig) -> Hello:
    """What a connection about a model begins with."""
    return Hello(name, _model_json.dump_json(model), _feeding_json.dump_json(feeding))


def pack(frame: Frame) -> bytes:
    """A frame as it goes over the socket."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(LENGTH_BYTES) + body


def unpack(body: bytes) -> Frame:
    """The frame of a message without its length."""
    return _decoder.decode(body)


def _encode_array(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.astype("<u4").tobytes()
    raise NotImplementedError(f"{type(value).__name__} does not travel between processes")


def _decode_array(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        return np.frombuffer(value, "<u4").astype(np.uint32)
    raise NotImplementedError(f"{kind.__name__} does not travel between processes")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame, dec_hook=_decode_array)
