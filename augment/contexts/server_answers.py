"""What a search server answers about an index of passages, as far as it is looked at; anyone may have written it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from sharding.errors import MillError
from sharding.search.client import SearchClient
from sharding.search.waiting import SearchRefused

OWN = "thoughtmill"
"""What ours stands under in the `_meta` of an index."""

GONE = 404


class Mark(msgspec.Struct, frozen=True):
    """What an index says of itself, in the `_meta` of its mapping: how many passages it has once it is whole."""

    digest: str
    passages: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Shards(msgspec.Struct):
    total: int
    successful: int
    failed: int

    @property
    def all_answered(self) -> bool:
        return self.failed == 0 and self.successful == self.total


class _Mappings(msgspec.Struct):
    meta: Any = msgspec.field(default=None, name="_meta")


class _Mapped(msgspec.Struct):
    mappings: _Mappings


class Acknowledged(msgspec.Struct):
    acknowledged: bool


class Refreshed(msgspec.Struct):
    shards: Shards = msgspec.field(name="_shards")


class Counted(msgspec.Struct):
    count: int
    shards: Shards = msgspec.field(name="_shards")


class Created(msgspec.Struct):
    id: str = msgspec.field(name="_id")
    status: int
    error: Any = None


class _Item(msgspec.Struct):
    create: Created


class Bulk(msgspec.Struct):
    items: list[_Item]


class _Stored(msgspec.Struct):
    doc_id: str
    number: int
    text: str


class _Source(msgspec.Struct):
    passage: _Stored


class Hit(msgspec.Struct):
    id: str = msgspec.field(name="_id")
    score: float = msgspec.field(name="_score")
    source: _Source = msgspec.field(name="_source")


class _Hits(msgspec.Struct):
    hits: list[Hit]


class Found(msgspec.Struct):
    hits: _Hits
    timed_out: bool
    shards: Shards = msgspec.field(name="_shards")


def read_mark(client: SearchClient, name: str) -> Mark | None:
    """What an index says of itself; None where there is none.

    Raises:
        MillError: it is none of ours.
    """
    try:
        mapped = client.ask("GET", f"/{name}/_mapping", dict[str, _Mapped])
    except SearchRefused as error:
        if error.status == GONE:
            return None
        raise
    found = mapped.get(name)
    meta = found.mappings.meta if found is not None else None
    try:
        return msgspec.convert(meta[OWN] if isinstance(meta, dict) else None, Mark)
    except (msgspec.ValidationError, KeyError) as error:
        raise MillError(other_index(client, name)) from error


def other_index(client: SearchClient, name: str) -> str:
    return (
        f"{client.url}/{name} is no index of passages that was begun here: delete it there (DELETE and its address), "
        "or name another retrieval.server.index_prefix"
    )
