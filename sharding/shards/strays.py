"""Strays: files beside the shards that a loader would take for shards although no manifest names them.

A pack stage that was killed leaves them. The next one removes them before it publishes; `verify` tells of any.
"""

from __future__ import annotations

import re

from sharding import storage
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

_SHARD = re.compile(r"\.?[a-z]+-.+-of-\d+\.arrow(\.[0-9a-f]+\.tmp)?")
"""A shard, and one that was being written."""


def stray_shards(output: str, packed: Manifest) -> list[str]:
    """The URLs of the strays; of whatever else lies in the folder nothing is said.

    Args:
        output: the run's output folder.
        packed: the manifest of its pack stage, published or not.
    """
    named = {entry.name.rsplit("/", 1)[-1] for entry in packed.files.get("shards", [])}
    folder = Output(output).data
    fs, path = storage.filesystem(folder)
    fs.invalidate_cache()
    if not fs.isdir(path):
        return []
    names = sorted(found.rstrip("/").rsplit("/", 1)[-1] for found in fs.ls(path, detail=False))
    return [storage.join(folder, name) for name in names if name not in named and _SHARD.fullmatch(name)]
