"""JSON files of an output, which anyone may have written: of a known size, decoded strictly into a declared type.

Under `sharding.storage.manifest` and every other reader of such a file. What goes wrong is one error that names the
file; how much memory it takes is bounded before it is decoded.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from sharding.errors import MillError
from sharding.storage.files import read_bytes

MAX_BYTES = 128 << 20
"""Of a manifest: some 200,000 files."""

SMALL_BYTES = 1 << 20
"""Of what doesn't grow with the corpus: a plan, a snapshot, a heartbeat."""

MAX_VALUES = 1 << 21
"""So many values, of up to about 100 bytes each in memory, whatever they are in the file."""

Number = Annotated[float, msgspec.Meta(ge=-1e24, le=1e24)]
"""A number that sums, products and formats don't choke on."""

T = TypeVar("T")


def read_json(url: str, kind: type[T], what: str, max_bytes: int = SMALL_BYTES) -> T:
    """What a JSON file says.

    Args:
        url: the file.
        kind: what is in it.
        what: the same in words: "a plan".
        max_bytes: longer files are refused.

    Raises:
        MillError: it is absent, unreadable, too long, or something else; names it.
    """
    return decode_json(read_bytes(url, max_bytes), kind, f"{url} is not {what} of this version")


def decode_json(data: bytes, kind: type[T], otherwise: str) -> T:
    """What the bytes of a JSON file say.

    Raises:
        MillError: they are of another kind; begins with `otherwise`.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise MillError(f"{otherwise}: more than {MAX_VALUES:,} values")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MillError(f"{otherwise}: {error}") from error


def check_type(value: Any, kind: type[T], otherwise: str) -> T:
    """What was decoded before, as `kind`, or the same error."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MillError(f"{otherwise}: {error}") from error
