"""A file that is to be checked."""

from __future__ import annotations

from dataclasses import dataclass

from sharding import storage
from sharding.records.types import FileEntry
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


@dataclass(frozen=True)
class Task:
    """A file to check.

    Attributes:
        stage: the manifest that names it.
        vocab_size: token ids are below it.
    """

    output: str
    stage: Manifest
    family: str
    entry: FileEntry
    vocab_size: int

    @property
    def url(self) -> str:
        return storage.join(manifest.files_url(self.output, self.stage), self.entry.name)
