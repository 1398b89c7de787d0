"""Tombstones: who was taken down, known again by a hash of the id, so that no later run brings them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sharding import storage
from sharding.errors import RequestError
from sharding.hashing import Purpose, fingerprint, hashed
from sharding.storage.json_files import MAX_BYTES, read_json
from sharding.storage.output import Output


class Removal(msgspec.Struct, frozen=True):
    """One removal: when it was begun, as the UTC date and time, and how many documents went."""

    at: str
    documents: int


class Tombstones(msgspec.Struct, frozen=True):
    """Who was taken down from an output.

    Attributes:
        ids: a hash of each id, ascending: nobody reads them off it, and whoever has an id finds it.
        removals: one after the other.
    """

    ids: list[str] = []
    removals: list[Removal] = []

    @property
    def digest(self) -> str:
        """What the fingerprint of the score stage says of them."""
        return fingerprint(["\n".join(self.ids)])


def tombstone(doc_id: str) -> str:
    """The hash by which a document is known again."""
    return hashed(Purpose.REMOVED, doc_id, 16).hex()


def read_tombstones(output: str) -> Tombstones:
    """Those of an output; none where nothing was removed.

    Raises:
        MillError: the file is something else.
    """
    url = Output(output).tombstones
    return read_json(url, Tombstones, "a list of tombstones", MAX_BYTES) if storage.exists(url) else Tombstones()


def removed_from(output: str) -> Callable[[str], bool]:
    """What tells of an id whether its document was taken down from an output.

    Raises:
        MillError: see `read_tombstones`.
    """
    gone = frozenset(read_tombstones(output).ids)
    return lambda doc_id: bool(gone) and tombstone(doc_id) in gone


def removed_inputs(output: str) -> dict[str, str]:
    """What a score stage is made from besides, where documents were taken down."""
    found = read_tombstones(output)
    return {"removed": found.digest} if found.ids else {}


def removal_facts(output: str) -> dict[str, Any]:
    """What a manifest and the card say of removals; nothing where there were none."""
    found = read_tombstones(output)
    return {"removals": msgspec.to_builtins(found.removals)} if found.removals else {}


def refuse_unfinished(output: str) -> None:
    """Refuse to touch an output while a removal is to be finished.

    Raises:
        RequestError: there is one.
    """
    if storage.exists(Output(output).removal_journal):
        raise RequestError(
            f"output: a removal of documents from {output} was interrupted: `thoughtmill remove {output}` finishes it"
        )


def removed_counts(source: str) -> dict[str, int]:
    """What one document that was taken down adds to the counts of the score stage."""
    return {"documents_removed": 1} | ({f"removed.{source}": 1} if source else {})
