"""An index of passages in a search server: found as on disk, whole or absent, and what a server may do is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from augment.contexts import server_building
from augment.contexts.passage_index import PassageIndex, StoredIndex, load_index, read_index
from augment.contexts.passages import Passage, passages_of
from augment.contexts.server_building import ServerIndex, put_passages
from augment.contexts.server_index import AtServer, open_place
from pipelines import passages, preflight
from pipelines.cli.removing import _told
from pipelines.joints import index_inputs, index_request
from pipelines.run import mill
from pipelines.takedown.ids import Wanted
from pipelines.takedown.removing import remove
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.hashing import fingerprint
from sharding.search import waiting
from sharding.search.client import SearchClient
from sharding.search.config import SearchServerConfig
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree
from tests.endpoint_server import CUT, free_port
from tests.search_server import ELASTICSEARCH, OPENSEARCH, SearchServer
from tests.test_retrieval import FILLER, PLANTED, documents, index_of, own

LOGIN = "SEARCH_LOGIN_OF_TESTS"
PASSWORD = "hunter2:with/all=sorts"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(waiting, "MAX_PAUSE_S", 0.05)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[SearchServer]:
    made = SearchServer()
    yield made
    made.stop()


def put(config: SearchServerConfig, texts: list[tuple[str, str]]) -> tuple[PassageIndex, AtServer]:
    """An index of documents, as (id, text), in a server."""
    pieces = [passage for doc_id, text in texts for passage in passages_of(doc_id, text)]
    with SearchClient(config) as client:
        index = ServerIndex(client, config, fingerprint([str(texts)]))
        index.begin()
        half = len(pieces) // 2
        there = sum(put_passages(config, index.name, part) for part in (pieces[:half], pieces[half:]))
        whole = index.finish(there)
    return PassageIndex([open_place(config, whole)]), whole


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
TEXTS = [
    *((f"other-{n}", f"{FILLER} {n} {FILLER}") for n in range(20)),
    *((f"turned-{n}", " ".join(WORDS[n % 8 :] + WORDS[: n % 8])) for n in range(8)),
    *((f"copy-{n:02d}", f"{PLANTED} {n}") for n in range(50)),
    ("own", f"{FILLER}{PLANTED} {FILLER}"),
    ("planted", "Monodromy is what loops do to a fibre. Its eigenvalues, by Grothendieck, are roots of unity."),
    ("p2", "Monodromy is what loops do to a fibre. Its eigenvalues, by Grothendieck, are roots of unity."),
    ("last", f"An operator, and {' '.join(f'word{n}' for n in range(110))}"),
]
QUESTIONS = [
    (["eigenvalue of the monodromy operator", "Grothendieck"], "own", own(f"{FILLER}{PLANTED} {FILLER}")),
    (["monodromy operator"], "x", own(PLANTED)),
    (["gamma", "eta"], "x", frozenset[str]()),
    (["remarkable texts", "alpha unity"], "other-3", frozenset[str]()),
    (["zymurgy"], "x", frozenset[str]()),
    ([], "x", frozenset[str]()),
]


def test_a_server_of_three_shards_finds_what_an_index_on_disk_finds(tmp_path: Path, server: SearchServer) -> None:
    on_disk = index_of(tmp_path, TEXTS)
    in_server, _ = put(SearchServerConfig(url=server.url, shards=3), TEXTS)
    for spans, doc_id, said in QUESTIONS:
        found = in_server.find(spans, doc_id, said, 8)
        assert found == on_disk.find(spans, doc_id, said, 8)
        assert found or not spans or spans == ["zymurgy"]
    assert in_server.find(*QUESTIONS[0], 3)[0] == Passage("p2", 0, dict(TEXTS)["p2"]), "of equals the first by id"
    assert "last" in [passage.doc_id for passage in in_server.find(*QUESTIONS[1], 9)], "behind fifty copies"
    (kept,) = server.indexes.values()
    assert len(kept.documents) == len(kept.shown) >= len(TEXTS) and kept.num_shards == 3


def test_what_a_server_does_in_between_changes_nothing(server: SearchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_building, "BULK_PASSAGES", 10)
    acts: list[Any] = [
        (429, {}, {}),
        (503, {}, b"<html>no</html>"),
        (502, {}, b""),
        CUT,
        b'{"items": ',
        (500, {}, {}),
        None,
    ]
    server.script = lambda method, path, number: acts[number] if path.endswith("_bulk") and number < 7 else None
    server.items = lambda number, place: 429 if number in (8, 9) and place % 3 else None
    index, whole = put(SearchServerConfig(url=server.url), TEXTS)
    (kept,) = server.indexes.values()
    assert whole.passages == len(kept.documents) == len(TEXTS) + 0
    calm = SearchServer()
    try:
        put(SearchServerConfig(url=calm.url), TEXTS)
        assert calm.indexes == server.indexes
        assert server.asked("POST", "_bulk") > calm.asked("POST", "_bulk")
    finally:
        calm.stop()
    server.script = lambda method, path, number: (
        (429, {"Retry-After": "0"}, {}) if path.endswith("_search") and (number < 3) else None
    )
    assert index.find(["monodromy"], "x", frozenset(), 1)


def test_a_server_that_dies_and_comes_back_is_waited_for(server: SearchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_building, "BULK_PASSAGES", 10)
    died = threading.Event()

    def away() -> None:
        server.stop()
        threading.Timer(0.3, server.start).start()

    def script(method: str, path: str, number: int) -> Any:
        if path.endswith("_bulk") and number == 3 and not died.is_set():
            died.set()
            threading.Thread(target=away).start()
            return CUT
        return None

    server.script = script
    _, whole = put(SearchServerConfig(url=server.url), TEXTS)
    assert died.is_set() and whole.passages == len(TEXTS)


def test_a_server_that_was_there_is_waited_for_by_processes_that_have_not_seen_it(
    server: SearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchServerConfig(url=server.url, max_wait_s=60.0)
    _, whole = put(config, TEXTS[:3])
    monkeypatch.setattr(waiting, "START_WAIT_S", 0.0)
    for act in (lambda: open_place(config, whole), lambda: put_passages(config, whole.name, [Passage("d", 0, "t")])):
        server.stop()
        threading.Timer(0.2, server.start).start()
        act()
    server.stop()
    with SearchClient(config) as client, pytest.raises(MillError, match=r"no connection.*never reached"):
        client.software()


PAGE = b"<html><title>Sign in</title></html>"
HIT = {"_id": "x-0", "_score": 1.0, "_source": {"passage": {"doc_id": "d", "number": 0, "text": "t"}}}
WELL = {"timed_out": False, "_shards": {"total": 1, "successful": 1, "failed": 0}}


def hit(doc_id: str, text: str = "t", score: Any = 1.0) -> dict[str, Any]:
    passage = {"doc_id": doc_id, "number": 0, "text": text}
    return {"_id": f"{fingerprint([doc_id])}-0", "_score": score, "_source": {"passage": passage}}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {}, {"error": {"reason": "no such index"}}), "404: no such index.*run `thoughtmill augment` again"),
        (PAGE, r"answered with a page \('Sign in'\): check retrieval\.server\.url"),
        ((200, {}, b"{" * 100_000), "makes no sense.*5 tries"),
        ({"hits": []}, "makes no sense.*5 tries"),
        ((200, {}, b" " * (3 << 20)), "has more than"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip"), "isn't packed by gzip.*5 tries"),
        ((302, {"Location": "https://me:hunter2@other/x?key=hunter2"}, {}), "leads to https://other/x: name that"),
        ((401, {}, {"error": {"reason": "missing authentication"}}), "401.*it was given no key: retrieval.server.api"),
        ((400, {}, {"error": {"reason": "too_many_clauses"}}), "400: too_many_clauses"),
        ({**WELL, "timed_out": True, "hits": {"hits": []}}, "answered in part"),
        ({**WELL, "_shards": {"total": 2, "successful": 1, "failed": 0}, "hits": {"hits": []}}, "answered in part"),
        ({**WELL, "hits": {"hits": [HIT]}}, "x-0 was found, and is none that was asked for"),
        ({**WELL, "hits": {"hits": [hit("own")]}}, "is none that was asked for"),
        ({**WELL, "hits": {"hits": [hit("d", "t" * 1001)]}}, "is none that was asked for"),
        ({**WELL, "hits": {"hits": [hit("d", score=-1.0)]}}, "is none that was asked for"),
        ({**WELL, "hits": {"hits": [hit("d", score=1.0), hit("e", score=2.0)]}}, "what it was not asked for"),
        ({**WELL, "hits": {"hits": [hit(str(n)) for n in range(33)]}}, "what it was not asked for"),
        ((429, {"Retry-After": "3600"}, {}), r"429.*wants 3600 s more, of the 2 s .*max_wait_s"),
    ],
)
def test_an_answer_that_is_no_good_is_one_error(server: SearchServer, answer: Any, said: str) -> None:
    index, _ = put(SearchServerConfig(url=server.url, max_wait_s=2.0), TEXTS[:3])
    server.script = lambda method, path, number: answer if path.endswith("_search") else None
    with pytest.raises(MillError, match=f"(?s){server.url}.*{said}") as caught:
        index.find(["remarkable"], "own", frozenset(), 1)
    assert "hunter2" not in str(caught.value) and len(str(caught.value)) < 1500


def test_a_server_that_is_gone_is_given_up(server: SearchServer) -> None:
    index, whole = put(SearchServerConfig(url=server.url, max_wait_s=0.2), TEXTS[:3])
    server.stop()
    with pytest.raises(MillError, match=r"no connection.*of the 0\.2 s that it may take"):
        index.find(["remarkable"], "x", frozenset(), 1)
    with pytest.raises(MillError, match="no connection"):
        open_place(SearchServerConfig(url=server.url, max_wait_s=0.2), whole)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (
            {"version": {"number": "6.8.0"}},
            "elasticsearch 6.8.0.*takes opensearch from 1 on or elasticsearch from 7 on",
        ),
        ({"version": {"distribution": "quickwit", "number": "0.8"}}, "says that it is quickwit 0.8"),
        ({"version": {"number": "9" * 5000}}, "says that it is"),
        ({"version": 3}, "says that it is no search server"),
        ({"models": []}, "says that it is no search server"),
        ((404, {}, {"detail": "Not Found"}), "404: Not Found .asked what it is"),
        (PAGE, "a page"),
    ],
)
def test_what_is_no_search_server_is_told_at_once(server: SearchServer, info: Any, said: str) -> None:
    server.info = info
    with SearchClient(SearchServerConfig(url=server.url)) as client, pytest.raises(RequestError, match=said):
        client.software()
    assert len(server.requests) == 1


def test_another_version_or_an_index_that_is_another_is_not_asked(server: SearchServer) -> None:
    config = SearchServerConfig(url=server.url)
    _, whole = put(config, TEXTS[:3])
    server.info = ELASTICSEARCH
    with pytest.raises(MillError, match=r"is elasticsearch 8\.17\.0, and .* was made by opensearch 2\.19\.1: run"):
        open_place(config, whole)
    server.info = OPENSEARCH
    kept = server.indexes[whole.name]
    kept.body["mappings"]["_meta"] = {"thoughtmill": {"digest": whole.name.rpartition("-")[2]}}
    with pytest.raises(MillError, match=f"{whole.name} is not whole"):
        open_place(config, whole)
    for meta in (None, {}, {"thoughtmill": {"digest": 3}}, {"thoughtmill": {"digest": "of-another", "passages": 3}}):
        kept.body["mappings"]["_meta"] = meta
        with SearchClient(config) as client, pytest.raises(MillError, match="is no index of passages that was begun"):
            ServerIndex(client, config, fingerprint([str(TEXTS[:3])])).begin()
    del server.indexes[whole.name]
    with pytest.raises(MillError, match=f"there is no index {whole.name} at {server.url}: run `thoughtmill augment`"):
        open_place(config, whole)


@pytest.mark.parametrize("status", [400, 404, 507])
def test_a_passage_that_is_refused_stops_the_build(server: SearchServer, status: int) -> None:
    server.items = lambda number, place: status if place == 1 else None
    with pytest.raises(MillError, match=rf"passage \w+-0 was refused \({status}: of_{status} is told\)"):
        put(SearchServerConfig(url=server.url), TEXTS[:5])


def test_an_answer_to_other_passages_stops_the_build(server: SearchServer) -> None:
    server.script = lambda method, path, number: {"items": []} if path.endswith("_bulk") else None
    with pytest.raises(MillError, match="answered 0 passages, and not the 2 that were sent"):
        put(SearchServerConfig(url=server.url), TEXTS[:4])


def test_secrets_come_from_the_environment_and_go_nowhere_else(
    server: SearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGIN, f"miller:{PASSWORD}")
    config = SearchServerConfig(url=server.url, login_env=LOGIN)
    with SearchClient(config) as client:
        client.software()
        sent = server.headers["authorization"]
        assert sent.startswith("Basic ")
        telling = {"error": {"reason": f"{sent} or {PASSWORD} or miller:{PASSWORD} is wrong"}}
        answers: list[Any] = [(403, {}, telling), (400, {}, telling), (500, {}, telling), telling]
        for answer in (*answers, json.dumps(telling).encode()):
            server.script = lambda method, path, number: answer  # noqa: B023
            with pytest.raises(MillError) as caught:
                client.ask("GET", "/x/_count", AtServer)
            said = f"{caught.value} {caught.value!r} {client!r} {vars(client)}"
            assert PASSWORD not in said and sent.removeprefix("Basic ") not in said, said
    server.script = lambda method, path, number: (403, {}, {})
    with SearchClient(config) as client, pytest.raises(RequestError, match=rf"the login in \${LOGIN}"):
        client.software()
    server.script = lambda method, path, number: None
    monkeypatch.setenv(LOGIN, "key-of-elasticsearch")
    with SearchClient(SearchServerConfig(url=server.url, api_key_env=LOGIN)) as client:
        client.software()
    assert server.headers["authorization"] == "ApiKey key-of-elasticsearch"
    with pytest.raises(RequestError, match=f"login_env: {LOGIN} does not hold `user:password`"):
        SearchClient(config)


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    """Output of a run that has scored a few documents, in several parts."""
    folder = tmp_path_factory.mktemp("corpus")
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents(12)), encoding="utf-8")
    config = from_mapping(rehearsal_tree(folder, byte_tokenizer, str(source)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipelines.score.PART_SOURCE_BYTES", 4000)
        mill(config, stages=["score"])
    return config.output


@pytest.fixture
def tree(
    corpus: str, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], server: SearchServer
) -> dict[str, Any]:
    found = {"name": "found", "model": "pretend", "prompt": "brief", "max_tokens": 48, "context": "retrieved"}
    budget = {"policy": "fixed", "fixed_tier": "found", "thinking_tokens_per_source_token": 50, "tiers": [found]}
    kept = {"url": server.url, "index_prefix": "mill", "shards": 2, "max_wait_s": 5.0}
    retrieval = {"corpus": corpus, "server": kept}
    return rehearsal_config(write_jsonl(documents(3)), budget=budget, retrieval=retrieval)


def at_server(tree: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A config whose server is described otherwise."""
    retrieval = tree["retrieval"]
    return {**tree, "retrieval": {**retrieval, "server": {**retrieval["server"], **fields}}}


def build(tree: dict[str, Any]) -> StoredIndex:
    config = from_mapping(tree)
    wanted = index_request(config)
    assert wanted is not None
    return passages.build_index(config, wanted, PipelineOptions([]))


def test_a_run_has_its_index_in_the_server_and_shares_it(
    tree: dict[str, Any], server: SearchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGIN, f"miller:{PASSWORD}")
    tree = at_server(tree, login_env=LOGIN)
    del tree["retrieval"]["corpus"]
    config = from_mapping(tree)
    mill(config, stages=["score", "augment"])
    (name,) = server.indexes
    stored = read_index(Output(config.output).passages)
    assert stored is not None and stored.server is not None and stored.server.name == name
    assert name.startswith("mill-passages-") and stored.server.software == "opensearch 2.19.1"
    assert stored.server.passages == len(server.indexes[name].documents) >= 3
    assert storage.list_names(Output(config.output).retrieval) == ["index.json"]
    assert server.asked("POST", "_search") > 0
    for file in Path(config.output).rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    assert manifest.require(config.output, "augment").inputs["passages"].endswith("in a search server 1")
    on_disk = from_mapping({**tree, "retrieval": {}})
    assert index_inputs(config) != index_inputs(on_disk), "how passages are found is part of what is asked"

    second = {**tree, "output": str(tmp_path / "second")}
    second["retrieval"] = {**tree["retrieval"], "corpus": config.output}
    assert build(second).server == stored.server and server.asked("POST", "_bulk") == 1

    server.stop()
    mill(config, stages=["score", "augment"])  # what is done needs no server
    done = remove(config.output, Wanted(frozenset(["1"]), {}))
    assert f"the index {name} may hold their text" in _told(config.output, done)
    assert done.search_index == name and not storage.list_names(Output(config.output).retrieval)


def killed_build(tree: dict[str, Any]) -> None:
    """Builds an index in a server, for a process of its own, which is killed outright between two bulk requests."""
    passages.SEGMENTS_PER_UPLOAD, server_building.BULK_PASSAGES = 4, 2
    asked, ask = [0], SearchClient.ask

    def counted(self: SearchClient, method: str, path: str, *args: Any, **named: Any) -> Any:
        answer = ask(self, method, path, *args, **named)
        asked[0] += path.endswith("_bulk")
        if asked[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    SearchClient.ask = counted  # type: ignore[method-assign]
    build(tree)


def test_a_build_that_was_killed_neither_doubles_nor_loses_passages(
    tree: dict[str, Any], server: SearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["apache_beam", "pipelines.passages", "tests.test_retrieval"])
    child = context.Process(target=killed_build, args=(tree,))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL

    config = from_mapping(tree)
    wanted = index_request(config)
    assert wanted is not None and wanted.server is not None
    (name,) = server.indexes
    kept = server.indexes[name]
    begun = set(kept.documents)
    told = [found for found in storage.list_names(Output(config.output).retrieval) if found.endswith(".json")]
    assert begun and told and "index.json" not in told and read_index(wanted.url) is None
    with SearchClient(wanted.server) as client:
        assert ServerIndex(client, wanted.server, wanted.digest).whole() is None, "half an index is none"
    monkeypatch.setattr(passages, "SEGMENTS_PER_UPLOAD", 4)
    stored = build(tree)
    assert stored.server is not None and stored.server.passages == len(kept.documents) > len(begun)

    other = SearchServer()
    try:
        elsewhere = at_server(tree, url=other.url)
        elsewhere["output"] = f"{tree['output']}-elsewhere"
        assert build(elsewhere) == stored, "where it is decides nothing"
        assert other.indexes == server.indexes, "as if nothing had happened"
    finally:
        other.stop()


def test_an_index_that_was_deleted_or_changed_in_the_server_is_noticed(
    tree: dict[str, Any], server: SearchServer
) -> None:
    first = build(tree)
    (name,) = server.indexes
    before = dict(server.indexes[name].documents)
    assert build(tree) == first and server.asked("POST", "_bulk") == 1
    del server.indexes[name]
    assert build(tree) == first and server.indexes[name].documents == before
    taken = server.indexes[name].shown.popitem()
    with pytest.raises(MillError, match=rf"{name} has {len(before) - 1} passages, and there were {len(before)} when"):
        build(tree)
    server.indexes[name].shown[taken[0]] = taken[1]

    del server.indexes[name]
    server.items = lambda number, place: 409 if place == 0 else None  # says that it is there, and it isn't
    with pytest.raises(MillError, match=rf"has {len(before) - 1} passages.* in the scored documents: delete it there"):
        build(tree)
    wanted = index_request(from_mapping(tree))
    assert wanted is not None
    with pytest.raises(MillError, match="is not the index that this run has made"):
        load_index(wanted.url, wanted.digest, None)


def test_preflight_names_a_server_with_all_else(tree: dict[str, Any], server: SearchServer) -> None:
    def told(**fields: Any) -> str:
        config = from_mapping({**at_server(tree, **fields), "tokenizer": "./no-such-folder"})
        with pytest.raises(MillError) as caught:
            preflight.check(config, ["score", "augment"])
        return str(caught.value)

    away = told(url=f"http://127.0.0.1:{free_port()}")
    assert "2 things" in away and "\n  retrieval.server: http://127.0.0.1:" in away and "no connection" in away
    assert "retrieval.server" not in told()
    server.info = {"version": {"number": "6.8.0"}}
    assert "retrieval.server: " in told() and "elasticsearch 6.8.0" in told()
    assert "retrieval.server: api_key_env: the environment variable NO_SUCH_KEY" in told(api_key_env="NO_SUCH_KEY")
    server.script = lambda method, path, number: (503, {}, {})
    assert "retrieval.server" not in told(), "it is there, and is waited for"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "https://me:hunter2@host:9200"}, "holds a password"),
        ({"url": "host:9200"}, "is no URL of a server"),
        ({"url": "http://h", "index_prefix": "Mill"}, "index_prefix.*pattern"),
        ({"url": "http://h", "index_prefix": "a,b"}, "index_prefix.*pattern"),
        ({"url": "http://h", "api_key_env": "A", "login_env": "B"}, "two ways to the same end"),
        ({"url": "http://h", "shards": 0}, "shards"),
        ({"url": "http://h", "password": "hunter2"}, "password"),
    ],
)
def test_servers_that_can_not_be_are_refused(tree: dict[str, Any], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=rf"(?s)retrieval\.server.*{said}") as caught:
        from_mapping({**tree, "retrieval": {"server": fields}})
    assert "hunter2" not in str(caught.value)


def test_a_server_that_nobody_asks_is_refused(tree: dict[str, Any]) -> None:
    del tree["retrieval"]["corpus"]
    tree["budget"]["tiers"][0]["context"] = "full"
    with pytest.raises(RequestError, match=r"retrieval\.server: .* no tier shows passages"):
        from_mapping(tree)
