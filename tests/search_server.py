"""A search server for tests: the part of OpenSearch's and Elasticsearch's API that is used, on a port of its own.

It keeps documents in shards, shows them from the next refresh on, and ranks by tantivy's BM25: over all of them where
the rarity of words in all shards is asked for, else shard by shard, as the real ones do.
"""

from __future__ import annotations

import http.server
import json
import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import tantivy

from tests.endpoint_server import CUT, Act, _Listener
from tests.kept_connections import handler_of

OPENSEARCH = {"version": {"distribution": "opensearch", "number": "2.19.1"}, "tagline": "The OpenSearch Project"}
ELASTICSEARCH = {"version": {"number": "8.17.0", "build_flavor": "default"}, "tagline": "You Know, for Search"}


@dataclass
class Kept:
    """An index.

    Attributes:
        body: that it was made with.
        documents: id → document, all that were taken. shown: those of the last refresh.
    """

    body: dict[str, Any]
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        return int(self.body["settings"]["index"].get("number_of_shards", 1))


class SearchServer:
    """A server that keeps indexes until it is asked otherwise.

    Attributes:
        info: the answer of `/`.
        script: (method, path, number of such requests from 0) → an `Act` in place of what would be done, or None.
        items: (number of the bulk request, place in it) → the status of a passage that isn't taken, or None.
        requests: (method, path with its query), in order.
        headers: of the last request.
    """

    def __init__(self) -> None:
        self.info: dict[str, Any] = OPENSEARCH
        self.script: Callable[[str, str, int], Act | None] = lambda method, path, number: None
        self.items: Callable[[int, int], int | None] = lambda number, place: None
        self.requests: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.indexes: dict[str, Kept] = {}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._address: Any = ("127.0.0.1", 0)
        self._server: _Listener | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._address[1]}"

    def start(self) -> None:
        """Listen; after a `stop` on the same port."""
        self._server = _Listener(self._address, self._handler())
        self._address = self._server.server_address[:2]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Die: all connections are cut and new ones refused. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            sockets = list(self._sockets)
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def asked(self, method: str, ending: str) -> int:
        """How many such requests there were."""
        return sum(m == method and path.partition("?")[0].endswith(ending) for m, path in self.requests)

    def _answer(self, method: str, target: str, content: bytes) -> Act:
        parts = urlsplit(target)
        number = self.asked(method, parts.path)
        self.requests.append((method, target))
        if (act := self.script(method, parts.path, number)) is not None:
            return act
        _, name, *rest = parts.path.split("/")
        does = rest[0] if rest else ""
        if not name:
            return self.info
        if method == "PUT" and not does:
            if name in self.indexes:
                return _error(400, "resource_already_exists_exception", f"index [{name}] already exists")
            self.indexes[name] = Kept(json.loads(content))
            return {"acknowledged": True, "index": name}
        kept = self.indexes.get(name)
        if kept is None:
            return _error(404, "index_not_found_exception", f"no such index [{name}]")
        if method == "DELETE":
            del self.indexes[name]
            return {"acknowledged": True}
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return {
            ("GET", "_mapping"): lambda: {name: {"mappings": kept.body["mappings"]}},
            ("PUT", "_mapping"): lambda: _map(kept, json.loads(content)),
            ("POST", "_bulk"): lambda: self._bulk(kept, name, number, content),
            ("POST", "_refresh"): lambda: _refresh(kept),
            ("GET", "_count"): lambda: {"count": len(kept.shown), "_shards": _shards(kept)},
            ("POST", "_search"): lambda: _search(kept, query, json.loads(content)),
        }[method, does]()

    def _bulk(self, kept: Kept, name: str, number: int, content: bytes) -> Act:
        assert self.headers["content-type"] == "application/x-ndjson" and content.endswith(b"\n")
        lines = [json.loads(line) for line in content.splitlines()]
        items = []
        for place, (action, document) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
            doc_id = action["create"]["_id"]
            status = self.items(number, place)
            if status is None:
                assert set(document) == set(kept.body["mappings"]["properties"]), "the mapping is strict"
                status = 409 if doc_id in kept.documents else 201
            if status == 201:
                kept.documents[doc_id] = document
            error = {} if status == 201 else {"error": {"type": f"of_{status}", "reason": "is told"}}
            items.append({"create": {"_index": name, "_id": doc_id, "status": status, **error}})
        return {"took": 1, "errors": any("error" in item["create"] for item in items), "items": items}

    def _handler(server: SearchServer) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(handler_of(server._sockets, server._lock)):  # type: ignore[misc]
            def _do(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length", 0)))
                with server._lock:
                    server.headers = {name.lower(): value for name, value in self.headers.items()}
                    act = server._answer(self.command, self.path, content)
                if act == CUT:
                    self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"items": [')
                    self.close_connection = True
                    return
                status, headers, answer = act if isinstance(act, tuple) else (200, {}, act)
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = _do

            def log_message(self, format: str, *args: Any) -> None: ...

        return Handler


def _error(status: int, kind: str, reason: str) -> Act:
    return (status, {}, {"error": {"type": kind, "reason": reason, "root_cause": []}, "status": status})


def _shards(kept: Kept) -> dict[str, int]:
    return {"total": kept.num_shards, "successful": kept.num_shards, "skipped": 0, "failed": 0}


def _map(kept: Kept, body: dict[str, Any]) -> Act:
    kept.body["mappings"] |= body
    return {"acknowledged": True}


def _refresh(kept: Kept) -> Act:
    kept.shown = dict(kept.documents)
    copies = 2 * kept.num_shards  # of which one is nowhere, as on a cluster of one node
    return {"_shards": {"total": copies, "successful": kept.num_shards, "failed": 0}}


def _search(kept: Kept, query: dict[str, str], body: dict[str, Any]) -> Act:
    mapping = kept.body["mappings"]["properties"]
    assert mapping["words"]["analyzer"] == "whitespace" and query["allow_partial_search_results"] == "false"
    asked = body["query"]["bool"]
    words = [clause["term"]["words"]["value"] for clause in asked["should"]]
    (without,) = [clause["term"]["document"]["value"] for clause in asked["must_not"]]
    shards: list[dict[str, Any]] = [{} for _ in range(kept.num_shards)]
    for doc_id, document in kept.shown.items():
        shards[zlib.crc32(doc_id.encode()) % len(shards)][doc_id] = document
    if query.get("search_type") == "dfs_query_then_fetch":
        shards = [kept.shown]
    hits = [hit for shard in shards for hit in _ranked(shard, words) if kept.shown[hit[1]]["document"] != without]
    hits.sort(key=lambda hit: (-hit[0], kept.shown[hit[1]]["place"]))
    return {
        "timed_out": False,
        "_shards": _shards(kept),
        "hits": {
            "hits": [
                {"_id": doc_id, "_score": score, "_source": {"passage": kept.shown[doc_id]["passage"]}}
                for score, doc_id in hits[: body["size"]]
            ]
        },
    }


def _ranked(documents: dict[str, Any], words: list[str]) -> list[tuple[float, str]]:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("words", tokenizer_name="whitespace", index_option="freq")
    builder.add_text_field("id", stored=True, tokenizer_name="raw")
    schema = builder.build()
    index = tantivy.Index(schema)
    writer = index.writer(num_threads=1)
    for doc_id, document in documents.items():
        entry = tantivy.Document()
        entry.add_text("words", document["words"])
        entry.add_text("id", doc_id)
        writer.add_document(entry)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()
    clauses = [
        (tantivy.Occur.Should, tantivy.Query.term_query(schema, "words", word, index_option="freq")) for word in words
    ]
    found = searcher.search(tantivy.Query.boolean_query(clauses), limit=max(1, len(documents)), count=False).hits
    return [(float(score), str(searcher.doc(address).get_first("id"))) for score, address in found]
