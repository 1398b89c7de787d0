"""Keeps a run from reading what it writes: an output or ledger inside its source is refused before anything is read.

The first run would be right, and the second would take manifests and shards for documents.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipelines.config import MillConfig
from sharding import storage
from sharding.errors import RequestError
from sharding.sources.places import kept_at
from sharding.storage.files import STORES
from sharding.storage.output import Output


def refuse_own_files(config: MillConfig) -> None:
    """Refuse a source that would find files of this run's output or ledger.

    Raises:
        RequestError: names both, and what to do.
    """
    at = Output(config.output)
    shard = "train-00000-of-00001.arrow"
    written = {
        "output": (at.card, at.config, at.report, at.difficulty, at.lease, at.manifest("score"), f"{at.data}/{shard}"),
        "ledger.path": (storage.join(config.ledger_url, "part-0-0.arrow"),),
    }
    for source in config.all_sources:
        if source.config.format == "huggingface":
            continue
        for key, urls in written.items():
            if _finds(source.config.path, urls):
                place = config.output if key == "output" else config.ledger_url
                raise RequestError(
                    f"{key}: {place} is inside {source.key}.path={source.config.path}, and this run would read what it "
                    "has written as text: name a folder outside of it"
                )


def _finds(path: str, urls: Iterable[str]) -> bool:
    """Whether a source's path, a folder or a glob, finds one of these files, there or not."""
    path = kept_at(path)
    if "://" in path and path.split("://")[0] not in STORES:
        return False  # nothing of the mill's is kept there, and to open it may be to call a server
    store, pattern = _place(path)
    for url in urls:
        other, name = _place(url)
        if other != store:
            continue
        below = name.removeprefix(pattern.rstrip("/") + "/") if name.startswith(pattern.rstrip("/") + "/") else None
        if below is not None and not any(part.startswith((".", "_")) for part in below.split("/")):
            return True  # in a folder, what is hidden is left out
        if any(character in pattern for character in "*?[") and re.match(glob_translate(pattern), name):
            return True
    return False


def _place(url: str) -> tuple[str, str]:
    """A store and a path in it, links followed where they can be."""
    fs, path = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
        folder = posixpath.dirname(fixed) if fixed != path else path
        return "file", str(Path(folder).resolve()) + path[len(folder) :]
    return str(fs.protocol), path
