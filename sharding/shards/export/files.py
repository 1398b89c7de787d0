"""Files of an export: published whole, with size and hash for EXPORT.json."""

from __future__ import annotations

from contextlib import AbstractContextManager

from sharding import storage
from sharding.storage.hashed_file import HashedFile, publish_hashed


def publish(target: str, name: str) -> AbstractContextManager[HashedFile]:
    """The file `name` of the export at `target`: there whole when the block ends, absent when it raises.

    Raises:
        MillError: the store refused; names the file.
    """
    return publish_hashed(storage.join(target, name), name)
