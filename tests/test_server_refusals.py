"""What can't pass isn't tried again: it is told in one line, with what the server said and the way out, and at once."""

from __future__ import annotations

import gzip
import socketserver
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from augment.engines import create_engine
from augment.engines.config import ModelConfig
from augment.engines.endpoint import EndpointEngine
from augment.engines.protocol import GenerationRequest
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.tickets import Completed, Failure, Result
from augment.feeding.worker import way_out
from augment.requests.keys import what_decides_text
from difficulty.config import DifficultyConfig
from difficulty.scorers import make_scorer
from sharding.errors import MillError, RequestError
from sharding.models import server_pool
from tests.endpoint_server import SERVED, ScriptedServer, completion
from tests.engine_sources import Engines

QUICK = FeedingConfig(max_attempts=2, backoff_s=0.001, max_backoff_s=0.01)
STANDARD = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty"}
LOGIN = b"<!DOCTYPE html><html><head><title>Sign in\n to Acme</title><script>var x = '<b>';</script></head></html>"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(server_pool, "MAX_PAUSE_S", 0.05)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    made: list[ScriptedServer] = []

    def start(script: Callable[[int, dict[str, Any]], Any] | None = None) -> ScriptedServer:
        made.append(ScriptedServer(script))
        return made[-1]

    yield start
    for server in made:
        server.stop()


@pytest.fixture
def feed(byte_tokenizer: str) -> Iterator[Callable[..., Feeder]]:
    made: list[Feeder] = []

    def make(url: str, **fields: Any) -> Feeder:
        model = model_of(byte_tokenizer, url, **fields)
        made.append(Feeder(Engines(lambda: create_engine(model)), name="model", config=QUICK))
        return made[-1]

    yield make
    for feeder in made:
        feeder.close()


def model_of(name: str, url: str, **fields: Any) -> ModelConfig:
    return ModelConfig(engine="endpoint", name=name, served_name=SERVED, urls=(url,), **fields)


def request(key: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(key=key, prompt_token_ids=np.arange(4, dtype=np.uint32), max_tokens=8, **fields)


def run_all(feeder: Feeder, *requests: GenerationRequest) -> list[Result]:
    ticket = feeder.ticket()
    for one in requests or (request("a"), request("b")):
        ticket.submit(one)
    return list(ticket.drain())


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """One line with these words, from a wrong request, before anything was waited for."""
    began = time.monotonic()
    with pytest.raises(MillError) as caught:
        yield
    assert isinstance(caught.value, RequestError), caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert time.monotonic() - began < 5


# --- fields that a server doesn't know --------------------------------------------------------------------------------


def pydantic_says(names: list[str]) -> Any:
    found = [{"type": "extra_forbidden", "loc": ["body", n], "msg": "Extra inputs are not permitted"} for n in names]
    return 422, {}, {"detail": found}


STRICT = {
    "pydantic": pydantic_says,
    "OpenAI": lambda names: (
        *(400, {}),
        {"error": {"message": f"Unrecognized request arguments supplied: {', '.join(names)}", "code": None}},
    ),
    "the first one only": lambda names: (
        *(400, {}),
        {"error": {"message": f"property '{names[0]}' is unsupported, did you mean 'top_p'?"}},
    ),
    "in words": lambda names: (400, {}, f"unknown field `{names[-1]}`, expected one of `model`, `stream`".encode()),
    "a schema": lambda names: (
        *(400, {}),
        {"message": f"Additional properties are not allowed ({', '.join(map(repr, names))} were unexpected)"},
    ),
}


@pytest.mark.parametrize("name", STRICT)
def test_a_server_that_forbids_fields_names_them_and_the_key_that_leaves_them_out(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], name: str
) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        unknown = sorted(set(body) - STANDARD)
        return STRICT[name](unknown) if unknown else completion(body, token_ids=None)

    server = serve(script)
    engine_args: dict[str, None] = {}
    for _ in range(20):  # as a person would, message after message
        feeder = feed(server.url, engine_args=engine_args)
        before = len(server.bodies)
        try:
            results = run_all(feeder)
        except MillError as error:
            assert isinstance(error.__cause__, RequestError) and len(server.bodies) - before <= 2
            fields = str(error).partition("engine_args: {")[2].partition("}")[0].split(", ")
            told = {field.removesuffix(": null"): None for field in fields}
            assert told and not set(told) & {*engine_args, "model", "prompt", "top_p"}
            engine_args |= told
        else:
            break
    assert all(isinstance(result, Completed) for result in results) and len(results) == 2
    assert set(server.bodies[-1]) <= STANDARD
    assert {"top_k", "min_p", "return_token_ids", "min_tokens"} <= set(engine_args)


def test_a_bad_value_is_no_unknown_field(serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]) -> None:
    said = {"message": "max_tokens is too large: 8; top_k must be at least 0"}
    server = serve(lambda number, body: (400, {}, said) if body["seed"] == 7 else completion(body))
    results = run_all(feed(server.url), request("a"), request("bad", seed=7), request("b"))
    assert sorted(result.request.key for result in results if isinstance(result, Completed)) == ["a", "b"]


def test_a_server_that_has_taken_the_fields_knows_them(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]
) -> None:
    server = serve(lambda number, body: completion(body) if number == 0 else pydantic_says(["top_k"]))
    feeder = feed(server.url)
    assert isinstance(run_all(feeder, request("a"))[0], Completed)
    (failed,) = run_all(feeder, request("b"))
    assert isinstance(failed, Failure) and "top_k" in failed.error and not failed.may_pass


def test_without_what_must_be_asked_there_is_no_way(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]
) -> None:
    server = serve(lambda number, body: (400, {}, {"message": "Unsupported parameter: 'temperature'"}))
    with refused("temperature", "take another"):
        run_all(feed(server.url))


def test_the_scorer_says_what_it_needs(serve: Callable[..., ScriptedServer], byte_tokenizer: str) -> None:
    server = serve(lambda number, body: pydantic_says(["prompt_logprobs", "cache_salt"]))
    config = DifficultyConfig(scorer="endpoint", model=byte_tokenizer, urls=(server.url,), served_name=SERVED)
    scorer = make_scorer(config)
    with refused("prompt_logprobs, cache_salt", "needs vLLM"):
        scorer.score(["some text"])
    scorer.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", ["return_token_ids", "min_tokens", "seed", "stop", "logprobs", "top_k"])
def test_null_leaves_a_field_out_and_is_in_the_key(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], byte_tokenizer: str, field: str
) -> None:
    server = serve(lambda number, body: completion(body, text="one. two", token_ids=None))
    asked = request("a", stop=(". ",), temperature=1.0, top_p=1.0)
    (with_it,) = run_all(feed(server.url), asked)
    (without,) = run_all(feed(server.url, engine_args={field: None}), asked)
    assert isinstance(with_it, Completed) and isinstance(without, Completed)
    assert set(server.bodies[0]) - set(server.bodies[1]) == {field}
    assert without.generation.text == "one"  # a text is cut here wherever the server goes on
    plain, changed = (
        what_decides_text(model_of(byte_tokenizer, server.url, engine_args=args)) for args in ({}, {field: None})
    )
    assert plain != changed, "rows made with the field don't pass for rows without it"


@pytest.mark.parametrize("field", ["prompt", "max_tokens", "temperature", "top_p"])
def test_what_can_not_be_left_out(field: str) -> None:
    with pytest.raises(RequestError, match=f"engine_args.{field} of m: is set by the config's other sections$"):
        EndpointEngine(model_of("m", "http://a", engine_args={field: None}))


# --- something else than a server of the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ((200, {"Content-Type": "text/html"}, LOGIN), ["answered with a page ('Sign in to Acme')", "login"]),
        (
            (200, {}, b"<html><body><h1>It works!</h1><p>nginx</p></body></html>"),
            ["'It works! nginx'", "check the URL"],
        ),
        ({"models": [{"name": "llama3"}]}, ["with the fields 'models'", "check the URL"]),
        ({"object": "list", "result": {}}, ["with the fields 'object', 'result'"]),
        ([{"id": SERVED}], ["answered with '[{"]),
        ((200, {}, b"Ollama is running"), ["with the text 'Ollama is running'"]),
        ({"data": [{"name": SERVED}]}, ["with the fields 'data'"]),
        (
            (302, {"Location": "https://sso.example/login?next=secret"}, b""),
            ["answered 302", "leads to https://sso.example/login: name that in urls"],
        ),
        ((301, {"Location": "/api/v1/models"}, {}), ["answered 301", "leads to /api/v1/models"]),
        ((308, {"Location": "http://[nowhere"}, {}), ["answered 308", "an address that is none"]),
        ((403, {}, b"<html><title>Access denied</title></html>"), ["403: Access denied", "not about the key"]),
        ((401, {}, b"<!-- sso --><html><body>Log in first</body></html>"), ["401: ", "Log in first", "login page"]),
        ((407, {}, b"who are you?"), ["407: who are you?", "not about the key"]),
        ((402, {}, {"error": {"message": "no credit left"}}), ["402: no credit left", "no key: api_key_env"]),
        ((403, {}, {"error": {"message": "not yours"}}), ["403: not yours", "no key: api_key_env"]),
        (
            {"error": {"message": "bad key", "code": 401}},
            ["answered 200 with an error: bad key", "no key: api_key_env"],
        ),
    ],
)
def test_what_is_no_server_of_the_model_is_told_at_once(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], models: Any, words: list[str]
) -> None:
    server = serve()
    server.models = models
    with refused(server.url, *words):
        run_all(feed(server.url))
    assert not server.bodies


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ((200, {}, LOGIN), ["/v1/completions answered with a page ('Sign in to Acme')"]),
        ({"response": "hello", "done": True}, ["with the fields 'done', 'response'"]),
        ((307, {"Location": "/v1/completions/"}, {}), ["answered 307", "leads to /v1/completions/"]),
    ],
)
def test_also_where_only_the_completions_are_something_else(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], act: Any, words: list[str]
) -> None:
    server = serve(lambda number, body: act)
    with refused(*words):
        run_all(feed(server.url))
    assert len(server.bodies) <= 2


def test_a_login_page_in_the_middle_of_a_run_passes(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]
) -> None:
    server = serve(lambda number, body: (200, {}, LOGIN) if number == 1 else completion(body))
    feeder = feed(server.url)
    assert all(isinstance(run_all(feeder, request(key))[0], Completed) for key in "abc") and len(server.bodies) == 4


KEY = "sk-planted-4f1c9d7e2b"
REPEATED = {
    "a page": (200, {}, f"<html><title>\x1b[2JHello {KEY}</title>".encode()),
    "a text": (200, {}, f"your key is {KEY}\x1b[2J".encode()),
    "fields": {KEY: 1, "\x1b[2J": 2},
    "a list": [KEY, "\x1b[2J"],
    "a redirection": (302, {"Location": f"/{KEY}"}, f"\x9b {KEY}".encode()),
    "an error": (401, {}, {"error": {"message": f"no {KEY} \x1b[2J"}}),
    "an error with a good status": {"error": {"message": f"no {KEY} \x1b[2J", "code": 401}},
    "an error in no charset": (403, {"Content-Type": f"text/plain; charset={KEY}"}, KEY.encode()),
    "a bomb": (403, {"Content-Encoding": "gzip"}, gzip.compress(KEY.encode() + b"<" * (64 << 20))),
    "a page without end": (200, {}, b"<html><script>" * (2 << 20)),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_refusal_at_the_start_is_told_without_the_key_and_steers_no_terminal(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    server = serve()
    server.models = REPEATED[name]
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            run_all(feed(server.url, api_key_env="A_KEY"))
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert KEY not in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 1500


@pytest.mark.parametrize("most", ["4096", -1, 0, {}, True])
def test_what_is_odd_in_the_list_of_models_says_nothing(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], most: Any
) -> None:
    server = serve()
    server.models = {"data": [{"id": SERVED, "owned_by": 7, "max_model_len": most}]}
    assert all(isinstance(result, Completed) for result in run_all(feed(server.url)))


def test_no_cookies_are_kept(serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]) -> None:
    """They would bind all requests to one replica behind a balancer, and pile up."""
    server = serve(lambda number, body: (200, {"Set-Cookie": f"replica{number}=1; Path=/"}, completion(body)))
    feeder = feed(server.url)
    for key in "ab":
        run_all(feeder, request(key))
    assert "cookie" not in server.headers[1]


def test_nothing_packed_is_asked_for(serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]) -> None:
    server = serve()
    run_all(feed(server.url))
    assert server.headers[0]["accept-encoding"] == "identity"


# --- errors with a good status ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": {"message": "Provider returned error", "code": "upstream"}}, "Provider returned error"),
        ({"object": "error", "message": "the worker died", "type": "X"}, "the worker died"),
        ({"error": "out of memory"}, "out of memory"),
        ({"choices": [{"error": {"message": "cut off upstream"}, "token_ids": "?"}]}, "cut off upstream"),
        ({"error": {"message": "try again", "code": 500}}, "try again"),
        ({"error": {"message": "no such token", "code": 400}}, "no such token"),
    ],
)
def test_an_error_inside_a_200_keeps_its_words(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], answer: Any, words: str
) -> None:
    server = serve(lambda number, body: answer if body["seed"] == 7 else completion(body))
    results = run_all(feed(server.url), request("a"), request("bad", seed=7))
    (failed,) = (result for result in results if isinstance(result, Failure))
    assert failed.error.endswith(f"/v1/completions answered 200 with an error: {words}")
    assert failed.retries == (0 if "no such" in words else 1) and failed.may_pass == ("no such" not in words)


@pytest.mark.parametrize("code", [429, "503"])
def test_and_its_status(serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], code: Any) -> None:
    answer = {"error": {"message": "slow down", "code": code}}
    server = serve(lambda number, body: answer if number < 4 else completion(body))
    assert [result.retries for result in run_all(feed(server.url), request("a"))] == [0]


# --- proxies that refuse ----------------------------------------------------------------------------------------------


@contextmanager
def proxy(answer: bytes) -> Iterator[tuple[str, list[str]]]:
    """A proxy that gives everybody one answer: its address, and the first lines of what it was asked."""
    asked: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline().decode().strip())
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


REFUSALS = {
    "squid": b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>ERR_ACCESS_DENIED",
    "in words": b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nhost not in policy",
    "wants a login": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_s_refusal_names_the_proxy_and_not_the_key(
    feed: Callable[..., Feeder], monkeypatch: pytest.MonkeyPatch, scheme: str, name: str
) -> None:
    with proxy(REFUSALS[name]) as (address, asked):
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:hunter2@{address}")
        monkeypatch.setenv("A_KEY", "sk-1")
        status = REFUSALS[name][9:12].decode()
        with refused(status, f"the proxy http://{address} of {scheme.upper()}_PROXY", "not about the key", "NO_PROXY"):
            run_all(feed(f"{scheme}://gpu7.internal:8000", api_key_env="A_KEY"))
        assert asked and "gpu7.internal:8000" in asked[0]


def test_a_server_behind_a_proxy_may_refuse_the_key(
    feed: Callable[..., Feeder], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"error": "no such key"}'
    said = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    with proxy(said) as (address, _):
        monkeypatch.setenv("http_proxy", address)
        with refused("no such key", "api_key_env", f"through the proxy http://{address} of http_proxy"):
            run_all(feed("http://gpu7.internal:8000"))


# --- "run again" ------------------------------------------------------------------------------------------------------


def test_run_again_is_only_said_where_it_can_help() -> None:
    assert "run again" in way_out(5, 4) and "run again" in way_out(5, 0)
    assert "run again" not in way_out(5, 5) and "change what they failed for" in way_out(5, 5)
