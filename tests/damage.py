"""Damage to a finished output that no hash tells: a file is changed, and every manifest is made to agree with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sharding import storage
from sharding.records.rows import TokenType
from sharding.storage import manifest

Columns = dict[str, list[Any]]
"""A file's columns as Python values."""


def manifest_tree(output: Path, stage: str) -> dict[str, Any]:
    """A stage's manifest as JSON values."""
    return msgspec.json.decode(Path(manifest.manifest_url(str(output), stage)).read_bytes())


def write_manifest(output: Path, stage: str, tree: dict[str, Any]) -> None:
    """Write a manifest as it is."""
    Path(manifest.manifest_url(str(output), stage)).write_bytes(msgspec.json.encode(tree))


def change_file(output: Path, stage: str, family: str, index: int, change: Callable[[Columns], None]) -> str:
    """Change the rows of one file, with size, sha256, rows, tokens and all fingerprints as if it had been made so.

    Returns:
        The name of the file.
    """
    tree = manifest_tree(output, stage)
    entry = tree["files"][family][index]
    path = Path(manifest.stage_url(str(output), stage)) / entry["name"]
    batches = list(storage.read_batches(str(path)))
    schema = batches[0].schema
    columns = pa.Table.from_batches(batches).to_pydict()
    change(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pydict(columns, schema=schema), max_chunksize=8)
    seal(output, stage, family, index)
    return entry["name"]


def seal(output: Path, stage: str, family: str, index: int) -> None:
    """Make the manifests agree with a file that was changed."""
    import hashlib

    tree = manifest_tree(output, stage)
    entry = tree["files"][family][index]
    data = (Path(manifest.stage_url(str(output), stage)) / entry["name"]).read_bytes()
    entry.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pa.ipc.open_stream(data) as reader:
        table = reader.read_all()
    entry["rows"] = table.num_rows
    if family == "shards":
        kinds = np.bincount(np.array(table["token_type"].to_pylist()).ravel(), minlength=256)
        for kind in TokenType:
            name = kind.name.lower()
            tree["counts"][f"tokens_{name}"] += int(kinds[kind]) - entry["tokens"][name]
            entry["tokens"][name] = int(kinds[kind])
    write_manifest(output, stage, tree)
    chain(output)


def chain(output: Path) -> None:
    """Make every manifest say that it was made from the others as they are."""
    for stage in manifest.STAGES:
        tree = manifest_tree(output, stage)
        for earlier in manifest.STAGES:
            if earlier in tree["inputs"]:
                made = manifest.read(str(output), earlier)
                assert made is not None
                tree["inputs"][earlier] = manifest.digest(made)
        tree["fingerprint"] = manifest.fingerprint(stage, tree["config"], tree["inputs"])
        write_manifest(output, stage, tree)
