"""Storage: files on any fsspec store, whole or absent; Arrow files; and who may write where."""

from sharding.storage.arrow_files import (
    BATCH_BYTES,
    chunks,
    read_batches,
    read_records,
    record_size_bytes,
    write_part,
)
from sharding.storage.files import (
    EXTRA_FOR_PROTOCOL,
    Location,
    exists,
    filesystem,
    foreign,
    join,
    list_names,
    publish,
    read_bytes,
    remove,
    sweep,
    write_bytes,
    write_json,
)

__all__ = [
    "BATCH_BYTES",
    "EXTRA_FOR_PROTOCOL",
    "Location",
    "chunks",
    "exists",
    "filesystem",
    "foreign",
    "join",
    "list_names",
    "publish",
    "read_batches",
    "read_bytes",
    "read_records",
    "record_size_bytes",
    "remove",
    "sweep",
    "write_bytes",
    "write_json",
    "write_part",
]
