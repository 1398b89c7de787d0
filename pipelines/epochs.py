"""Corpora with another trace each epoch (`pack.trace_per_epoch`): what can't be done with them, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator

from sharding.errors import RequestError
from sharding.packing.config import config_of
from sharding.records.families import EPOCH_ROWS
from sharding.records.types import FileEntry
from sharding.shards.rows import epoch_of
from sharding.storage.manifest import Manifest


def refuse_several(output: str, packed: Manifest | None, why: str) -> None:
    """Refuse what is not made for a corpus of several epochs, rather than do it to the first alone.

    Args:
        packed: the manifest of its pack stage; None where it has none.
        why: a clause that ends the sentence.

    Raises:
        RequestError: it has several.
    """
    if packed is None or not packed.files.get(EPOCH_ROWS.name):
        return
    epochs = config_of(packed).trace_per_epoch
    raise RequestError(
        f"pack.trace_per_epoch: {output} has {epochs} epochs with shards of their own, and {why}: `thoughtmill pack "
        "CONFIG --set pack.trace_per_epoch=1 --replace` packs it with one, which buys nothing, and afterwards the same "
        f"command with {epochs} makes the others again"
    )


def shards_by_epoch(packed: Manifest) -> Iterator[tuple[int, list[FileEntry]]]:
    """The shards of each later epoch, by its number."""
    later = packed.files.get(EPOCH_ROWS.name, [])
    for epoch in sorted(set(map(epoch_of, later))):
        yield epoch, [entry for entry in later if epoch_of(entry) == epoch]
