"""Strays: files beside the shards that a loader would take for shards although no manifest names them.

A pack stage that was killed leaves them. The next one removes them before it publishes; `verify` tells of any.
"""

from __future__ import annotations

import re

from sharding import storage
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

_SHARD_NAME = re.compile(r"[a-z]+-.+-of-\d+\.arrow")


def stray_shards(output: str, packed: Manifest) -> list[str]:
    """The URLs of the strays; of whatever else lies in the folder nothing is said.

    Args:
        output: the run's output folder.
        packed: the manifest of its pack stage, published or not.
    """
    named = {entry.name.rsplit("/", 1)[-1] for entry in packed.files.get("shards", [])}
    names = storage.list_names(Output(output).data)
    return [storage.join(Output(output).data, n) for n in names if n not in named and _SHARD_NAME.fullmatch(n)]
