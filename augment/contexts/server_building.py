"""Building an index of passages in a search server: from many processes, and again where that was killed.

    made ─► bulk requests, shard by shard ─► refresh, count ─► marked as whole, last

A passage's id in the server follows from its document and place, and is only ever created: a build that was killed and
is run again neither doubles nor loses one, and leaves no deleted ones behind, which would count in the rarity of words.
The server is given words that are parted already, so that none of its analysers decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from augment.contexts.passages import Passage, document_term, terms_of
from augment.contexts.server_answers import (
    OWN,
    Acknowledged,
    Bulk,
    Counted,
    Created,
    Mark,
    Refreshed,
    other_index,
    read_mark,
)
from augment.contexts.server_index import AtServer, place_of
from augment.selection.words import words_of
from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.search.client import SMALL_BYTES, SearchClient
from sharding.search.config import SearchServerConfig
from sharding.search.waiting import SearchAway, SearchRefused, Waiting

BULK_PASSAGES, BULK_BYTES = 1000, 4 << 20
"""Of one request at most: small servers take 10 MB."""

_ITEM_BYTES = 4 << 10
"""Of an answer, for each passage that was sent."""

_MAPPING: dict[str, Any] = {
    "dynamic": "strict",
    "properties": {
        "words": {"type": "text", "analyzer": "whitespace", "index_options": "freqs"},
        "document": {"type": "keyword", "doc_values": False},
        "place": {"type": "keyword", "index": False},
        "passage": {"type": "object", "enabled": False},
    },
}
_BM25 = {"type": "BM25", "k1": 1.2, "b": 0.75}

_TAKEN, _THERE = (200, 201), 409
_FULL = (429, 503)


class ServerIndex:
    """An index in a server while it is built.

    Args:
        client: of the server.
        config: of the same.
        digest: of the corpus and of how it is made. With what the server is, it becomes the index's name, so that runs
            that search one corpus share one index, and a newer server makes its own.

    Raises:
        RequestError, MillError: the server is no search server, or can't be asked.
    """

    def __init__(self, client: SearchClient, config: SearchServerConfig, digest: str) -> None:
        self._client, self._shards = client, config.shards
        self.software = client.software()
        self._digest = fingerprint([digest, "\0", self.software])
        self.name = f"{config.index_prefix}-passages-{self._digest}"

    def begin(self) -> bool:
        """Make the index where it isn't there; whether it was made.

        Raises:
            MillError: what is there under its name is something else.
        """
        if self._mark() is not None:
            return False
        settings: dict[str, Any] = {"similarity": {"default": _BM25}}
        if self._shards is not None:
            settings["number_of_shards"] = self._shards
        mapping = {**_MAPPING, "_meta": {OWN: msgspec.to_builtins(Mark(self._digest))}}
        try:
            self._client.ask(
                "PUT", f"/{self.name}", Acknowledged, body={"settings": {"index": settings}, "mappings": mapping}
            )
        except SearchRefused:
            if self._mark() is None:  # else another run was quicker, or this one, whose answer was lost
                raise
            return False
        return True

    def whole(self) -> AtServer | None:
        """The index, where it was marked as whole and still is.

        Raises:
            MillError: it has other passages than when it was marked.
        """
        mark = self._mark()
        if mark is None or mark.passages is None:
            return None
        self._check_count(mark.passages, "when it was made")
        return AtServer(self.name, self.software, mark.passages)

    def finish(self, passages: int) -> AtServer:
        """Mark the index as whole, with so many passages.

        Raises:
            MillError: it has more or fewer.
        """
        self._client.ask("POST", f"/{self.name}/_refresh", Refreshed)
        if self._mark() is None:
            raise MillError(f"there is no index {self.name} at {self._client.url} any more: run again")
        self._check_count(passages, "in the scored documents")
        meta = {OWN: msgspec.to_builtins(Mark(self._digest, passages))}
        self._client.ask("PUT", f"/{self.name}/_mapping", Acknowledged, body={"_meta": meta})
        return AtServer(self.name, self.software, passages)

    def _mark(self) -> Mark | None:
        mark = read_mark(self._client, self.name)
        if mark is not None and mark.digest != self._digest:
            raise MillError(other_index(self._client, self.name))
        return mark

    def _check_count(self, passages: int, when: str) -> None:
        counted = self._client.ask("GET", f"/{self.name}/_count", Counted)
        if not counted.shards.all_answered:
            raise MillError(f"{self._client.url}/{self.name}: not all of its shards answer; run again when they do")
        if counted.count != passages:
            raise MillError(
                f"{self._client.url}/{self.name} has {counted.count:,} passages, and there were {passages:,} {when}: "
                "delete it there (DELETE and its address), and it is built again"
            )


def put_passages(config: SearchServerConfig, name: str, passages: Iterable[Passage]) -> int:
    """Put passages into an index that was begun, those that are there already aside; how many there are of them.

    Raises:
        MillError: the server took no requests for too long, or refuses a passage.
    """
    count = 0
    with SearchClient(config, known=True) as client:
        for batch in _batches(passages):
            _put(client, name, batch)
            count += len(batch)
    return count


def _batches(passages: Iterable[Passage]) -> Iterator[list[tuple[str, bytes]]]:
    """(id, lines of the request) of as many passages as one request takes."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for passage in passages:
        one = _lines_of(passage)
        if batch and (len(batch) == BULK_PASSAGES or size + len(one[1]) > BULK_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += len(one[1])
    if batch:
        yield batch


def _lines_of(passage: Passage) -> tuple[str, bytes]:
    place = place_of(passage)
    document = {
        "words": " ".join(terms_of(words_of(passage.text))),
        "document": document_term(passage.doc_id),
        "place": place,
        "passage": passage._asdict(),
    }
    return place, msgspec.json.encode({"create": {"_id": place}}) + b"\n" + msgspec.json.encode(document) + b"\n"


def _put(client: SearchClient, name: str, batch: list[tuple[str, bytes]]) -> None:
    path, left = f"/{name}/_bulk", batch
    with client.waiting() as waiting:
        while left:
            lines, size = b"".join(line for _, line in left), SMALL_BYTES + _ITEM_BYTES * len(left)
            answer = client.ask("POST", path, Bulk, lines=lines, max_bytes=size)
            left = _not_taken(client, path, left, answer, waiting)


def _not_taken(
    client: SearchClient, path: str, sent: list[tuple[str, bytes]], answer: Bulk, waiting: Waiting
) -> list[tuple[str, bytes]]:
    """What the server had no room for, after a pause."""
    told = [item.create for item in answer.items]
    if [one.id for one in told] != [place for place, _ in sent]:
        raise MillError(f"{client.url}{path} answered {len(told)} passages, and not the {len(sent)} that were sent")
    full = None
    for one in told:
        if one.status in _FULL:
            full = one
        elif one.status not in _TAKEN and one.status != _THERE:
            raise MillError(f"{client.url}{path}: passage {one.id} was refused ({_reason(client, one)})")
    if full is None:
        return []
    waiting.wait(SearchAway(f"{client.url}{path}: {_reason(client, full)}", answered=True))
    return [line for line, one in zip(sent, told, strict=True) if one.status in _FULL]


def _reason(client: SearchClient, one: Created) -> str:
    error = one.error if isinstance(one.error, dict) else {}
    return client.shown(f"{one.status}: {error.get('type', '')} {error.get('reason', '')}")
