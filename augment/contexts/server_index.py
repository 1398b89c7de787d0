"""An index of passages in an OpenSearch or Elasticsearch server, for corpora beyond the disks of one machine.

One request is one look; what ranks, leaves out and breaks ties is `augment.contexts.passage_index`. The server ranks by
BM25 with the rarity of a word in all of its shards, so that where a passage lies decides nothing. How the index gets
there is in `augment.contexts.server_building`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from augment.contexts.passages import Passage, document_term, rounded
from augment.contexts.server_answers import GONE, OWN, Found, Hit, read_mark
from augment.requests.tiers import PASSAGE_CHARACTERS
from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.models.bodies import MAX_ANSWER_BYTES
from sharding.search.client import SMALL_BYTES, SearchClient
from sharding.search.config import SearchServerConfig
from sharding.search.waiting import SearchRefused

SERVER_FORMAT = 1
"""Of what is put into a server and how it is asked; in the digest of every index in one."""

_HIT_BYTES = 16 << 10
"""Of an answer, for each passage that is found; a character takes 12 as JSON may spell it."""

_SEARCH = f"search_type=dfs_query_then_fetch&allow_partial_search_results=false&preference={OWN}"
"""The rarity of words in all shards; all shards or none; the same copies of them each time."""


class AtServer(msgspec.Struct, frozen=True):
    """Of `index.json`: which index of a server it is.

    Attributes:
        name: of the index.
        software: that made it, such as "opensearch 2.19.1".
        passages: how many there are.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,120}$")]
    software: Annotated[str, msgspec.Meta(max_length=80)]
    passages: Annotated[int, msgspec.Meta(ge=0)]


def place_of(passage: Passage) -> str:
    """The id of a passage in a server, whatever its document's looks like."""
    return f"{fingerprint([passage.doc_id])}-{passage.number}"


def open_place(config: SearchServerConfig, index: AtServer) -> ServerPlace:
    """An index that is whole, to be asked.

    Raises:
        MillError: it isn't there, isn't whole, or the server is another one by now.
    """
    client = SearchClient(config, known=True)
    again = "run `thoughtmill augment` again, and it is built again"
    if (software := client.software()) != index.software:
        raise MillError(f"{client.url} is {software}, and {index.name} was made by {index.software}: {again}")
    mark = read_mark(client, index.name)
    if mark is None:
        raise MillError(f"there is no index {index.name} at {client.url}: {again}")
    if mark.passages != index.passages:
        raise MillError(f"{client.url}/{index.name} is not whole: {again}")
    return ServerPlace(client, index.name)


class ServerPlace:
    """An index in a server that can be asked. Threads may share one."""

    def __init__(self, client: SearchClient, name: str) -> None:
        self._client, self._name = client, name

    def hits(self, words: Sequence[str], doc_id: str, depth: int) -> list[tuple[float, Passage]]:
        """(score, passage) of the first so many that are not of a document, the best first.

        Raises:
            MillError: the server took no requests for too long, or answers something else.
        """
        path = f"/{self._name}/_search"
        size = min(MAX_ANSWER_BYTES, SMALL_BYTES + _HIT_BYTES * depth)
        try:
            body = _query(words, doc_id, depth)
            found = self._client.ask("POST", f"{path}?{_SEARCH}", Found, body=body, max_bytes=size)
        except SearchRefused as error:
            if error.status != GONE:
                raise
            raise MillError(f"{error}: run `thoughtmill augment` again, and the index is built again") from error
        if found.timed_out or not found.shards.all_answered:
            raise MillError(f"{self._client.url}{path} was answered in part: run again when all its shards answer")
        ranked = [self._ranked(hit, doc_id) for hit in found.hits.hits]
        scores = [score for score, _ in ranked]
        if len(ranked) > depth or scores != sorted(scores, reverse=True):
            raise MillError(f"{self._client.url}{path} answered what it was not asked for: more, or not in order")
        return ranked

    def _ranked(self, hit: Hit, doc_id: str) -> tuple[float, Passage]:
        stored = hit.source.passage
        passage = Passage(stored.doc_id, stored.number, stored.text)
        own = passage.doc_id == doc_id
        if own or hit.id != place_of(passage) or len(passage.text) > PASSAGE_CHARACTERS or hit.score < 0:
            told = self._client.shown(hit.id)
            raise MillError(f"{self._client.url}/{self._name}: {told} was found, and is none that was asked for")
        return rounded(hit.score), passage


def _query(words: Sequence[str], doc_id: str, depth: int) -> dict[str, Any]:
    wanted = [{"term": {"words": {"value": word}}} for word in words]
    own = {"term": {"document": {"value": document_term(doc_id)}}}
    return {
        "size": depth,
        "query": {"bool": {"should": wanted, "must_not": [own], "minimum_should_match": 1}},
        "sort": [{"_score": {"order": "desc"}}, {"place": {"order": "asc"}}],
        "track_scores": True,
        "track_total_hits": False,
        "_source": ["passage"],
    }
