"""The endpoint engine on servers that misbehave, through the feeder; see test_vllm_serve.py for a real one."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import logging
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from augment.engines import create_engine
from augment.engines.config import ModelConfig
from augment.engines.endpoint import EndpointEngine
from augment.engines.protocol import Generation, GenerationFailed, GenerationRequest
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.tickets import Completed, Failure, Result
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.hashing import fraction_of
from sharding.models import server_patience, server_pool
from sharding.models.connections import read_key
from sharding.models.server import retry_after_s
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import LedgerRow
from sharding.storage.manifest import Manifest
from tests.endpoint_server import CUT, HANG, SERVED, ScriptedServer, completion
from tests.engine_sources import Engines

QUICK = FeedingConfig(backoff_s=0.001, max_backoff_s=0.01)
KEY = "sk-planted-4f1c9d7e2b"
KEY_VARIABLE = "THOUGHTMILL_TEST_KEY"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "FIRST_PAUSE_S", 0.03)
    monkeypatch.setattr(server_pool, "MAX_PAUSE_S", 0.05)


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
def config(byte_tokenizer: str) -> Callable[..., ModelConfig]:
    def make(*servers: ScriptedServer | str, **fields: Any) -> ModelConfig:
        urls = tuple(server if isinstance(server, str) else server.url for server in servers)
        return ModelConfig(
            **{"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": urls, **fields}
        )

    return make


@pytest.fixture
def feed() -> Iterator[Callable[..., Feeder]]:
    made: list[Feeder] = []

    def make(model: ModelConfig, feeding: FeedingConfig = QUICK) -> Feeder:
        made.append(
            Feeder(
                Engines(lambda: create_engine(model)), name="model", config=feeding, max_in_flight=model.max_in_flight
            )
        )
        return made[-1]

    yield make
    for feeder in made:
        feeder.close()


def request(key: str, max_tokens: int = 8, **fields: Any) -> GenerationRequest:
    return GenerationRequest(key=key, prompt_token_ids=np.arange(4, dtype=np.uint32), max_tokens=max_tokens, **fields)


def run_all(feeder: Feeder, requests: list[GenerationRequest]) -> dict[str, Result]:
    ticket = feeder.ticket()
    for one in requests:
        ticket.submit(one)
    return {result.request.key: result for result in ticket.drain()}


def run_one(feeder: Feeder, one: GenerationRequest) -> Completed:
    result = run_all(feeder, [one])[one.key]
    assert isinstance(result, Completed), result
    return result


def many(number: int) -> list[GenerationRequest]:
    return [request(str(i)) for i in range(number)]


# --- what is asked and what comes back --------------------------------------------------------------------------------


def test_what_is_asked(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
    byte_tokenizer: str,
) -> None:
    server = serve()
    model = config(
        f"{server.url}/v1/", engine_args={"top_k": 20, "min_p": None, "priority": 3, "tokenizer": byte_tokenizer}
    )
    asked = request(
        "a",
        max_tokens=50,
        min_tokens=7,
        temperature=0.25,
        top_p=0.75,
        seed=123,
        stop=("</think>", "<|im_end|>", "\n\n"),
        include_stop=True,
        repetition_detection=True,
    )
    made = run_one(feed(model), asked).generation
    tokenizer = load_tokenizer(byte_tokenizer)
    assert (made.text, made.token_ids.dtype) == ("all is well.", np.uint32)
    assert made.token_ids.tolist() == tokenizer.encode("all is well.").tolist()
    assert (made.finish_reason, made.sum_logprobs, made.engine_version) == ("stop", None, "scripted 7")

    (body,) = server.bodies
    assert body == {
        "model": SERVED,
        "prompt": [0, 1, 2, 3],
        "max_tokens": 50,
        "min_tokens": 7,
        "temperature": 0.25,
        "top_p": 0.75,
        "seed": 123,
        "stop": ["</think>", "<|im_end|>", "\n\n"],
        "stop_token_ids": [tokenizer.token_id("</think>"), tokenizer.token_id("<|im_end|>")],
        "include_stop_str_in_output": True,
        "no_stop_trim": True,
        "repetition_detection": {"min_pattern_size": 8, "max_pattern_size": 32, "min_count": 8},
        "return_token_ids": True,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "priority": 3,
    }
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("fields", "text", "finish"),
    [
        ({"text": "plain"}, "plain", "stop"),
        ({"text": "cut", "finish_reason": "length"}, "cut", "length"),
        ({"text": "again again", "finish_reason": "repetition"}, "again again", "repetition"),
        ({"text": "answer", "reasoning": "why"}, "<think>why</think>answer", "stop"),
        ({"text": "answer", "reasoning_content": "why"}, "<think>why</think>answer", "stop"),
        ({"text": "", "reasoning_content": "why, and", "finish_reason": "length"}, "why, and", "length"),
        ({"text": None, "message": {"content": "answer", "reasoning": "why"}}, "<think>why</think>answer", "stop"),
        (
            {"text": None, "message": {"content": "answer", "reasoning_content": "why"}},
            "<think>why</think>answer",
            "stop",
        ),
        ({"text": None, "message": {"content": None, "reasoning": "why"}}, "why", "stop"),
        ({"text": None, "message": {"role": "assistant", "content": "answer"}}, "answer", "stop"),
    ],
)
def test_text_and_reasoning(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
    fields: dict[str, Any],
    text: str,
    finish: str,
) -> None:
    server = serve(lambda number, body: completion(body, **fields))
    made = run_one(feed(config(server)), request("a")).generation
    assert (made.text, made.finish_reason) == (text, finish)


def test_token_ids_from_the_text_where_the_server_has_none(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
    byte_tokenizer: str,
) -> None:
    text = "Größe, 大きさ and <|im_end|> as text"
    server = serve(lambda number, body: completion(body, text=text, token_ids=None))
    server.version = (404, {}, {})
    made = run_one(feed(config(server)), request("a", max_tokens=90)).generation
    assert load_tokenizer(byte_tokenizer).decode(made.token_ids) == text
    assert made.engine_version == "scripted"


@pytest.mark.parametrize(
    ("fields", "text", "kept"),
    [
        ({}, "One, two", "One, two. "),
        ({"include_stop": True}, "One, two. ", "One, two. "),
        ({"include_stop": True, "stop": ("five", "six", "ee", ", t", ". ", "never")}, "One, t", "One, t"),
        ({"stop": ("a1", "a2", "a3", "a4", "a5")}, None, None),
        ({"stop": ("大き", "a2", "a3", "a4", "a5")}, "One, two. Three, ", "One, two. Three, 大き"),
        ({"min_tokens": 12}, "One, two. Three, 大きい", "One, two. Three, 大きい! "),
        ({"stop": ("</think>", *"12345")}, None, None),
    ],
)
def test_more_stop_texts_than_a_server_takes(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
    byte_tokenizer: str,
    fields: dict[str, Any],
    text: str | None,
    kept: str | None,
) -> None:
    """It is sent the first four; the generation ends where the first of all of them does, tokens and all."""
    tokenizer = load_tokenizer(byte_tokenizer)
    whole = "One, two. Three, 大きい! Four."
    ids = np.append(tokenizer.encode(whole), tokenizer.token_id("<|im_end|>")).tolist()
    server = serve(lambda number, body: completion(body, text=whole, token_ids=ids, finish_reason="length"))
    asked = request("a", max_tokens=64, **{"stop": ("x", "y", "z", "? ", ". ", "! "), **fields})
    made = run_one(feed(config(server)), asked).generation
    assert server.bodies[0]["stop"] == list(asked.stop[:4])
    if text is None:
        assert (made.text, made.token_ids.tolist(), made.finish_reason) == (whole, ids, "length")
        return
    assert (made.text, made.finish_reason) == (text, "stop")
    told = tokenizer.decode(made.token_ids)
    assert whole.startswith(told) and told.startswith(kept)
    assert not tokenizer.decode(made.token_ids[:-1]).startswith(kept)


@pytest.mark.parametrize(
    ("sampling", "engine_args", "expected"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, {}, -3.5),
        ({"temperature": 0.6, "top_p": 1.0}, {}, None),
        ({"temperature": 1.0, "top_p": 0.9}, {"logprobs_mode": "raw_logprobs"}, None),
        ({"temperature": 0.6, "top_p": 0.9}, {"logprobs_mode": "processed_logprobs"}, -3.5),
    ],
)
def test_logprobs_only_where_they_are_of_what_was_sampled(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
    sampling: dict[str, float],
    engine_args: dict[str, Any],
    expected: float | None,
) -> None:
    logprobs = {"token_logprobs": [-1.0, None, -2.5], "tokens": ["a", "b", "c"]}
    server = serve(lambda number, body: completion(body, logprobs=logprobs))
    made = run_one(feed(config(server, engine_args=engine_args)), request("a", **sampling)).generation
    assert made.sum_logprobs == expected
    assert server.bodies[0].get("logprobs") == (None if expected is None else 0)
    assert "logprobs_mode" not in server.bodies[0]


# --- failures ---------------------------------------------------------------------------------------------------------

ONCE = {
    "500": ((500, {}, {"error": {"message": "boom"}}), "answered 500: boom"),
    "502": ((502, {}, b"<html>no backend</html>"), "answered 502: no backend"),
    "hang": (HANG, "no answer within 2.5 s"),
    "cut": (CUT, "RemoteProtocolError"),
    "malformed": (b'{"choices": [{"text": "a', "makes no sense"),
    "not UTF-8": (b'{"choices": [{"text": "\xff"}]}', "makes no sense"),
    "another shape": ({"choices": []}, "makes no sense"),
    "half a character": (b'{"choices": [{"text": "\\ud800", "finish_reason": "stop"}]}', "makes no sense"),
    "aborted": ({"choices": [{"text": "a", "finish_reason": "abort"}]}, "'abort'"),
    "unfinished": ({"choices": [{"text": "a", "finish_reason": None}]}, "None"),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_failure_is_tried_again(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder], name: str
) -> None:
    act, message = ONCE[name]
    server = serve(lambda number, body: act if number == 0 else completion(body))
    feeder = feed(config(server, timeout_s=2.5 if act is HANG else 20.0))
    assert run_one(feeder, request("a")).retries == 1
    server.script = lambda number, body: act if body["seed"] == 7 else completion(body)
    results = run_all(feeder, [*many(20), request("bad", seed=7)])
    failed = results.pop("bad")
    assert isinstance(failed, Failure) and message in failed.error and failed.retries == 3
    assert all(isinstance(result, Completed) for result in results.values())


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_fails_alone_and_at_once(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder], status: int
) -> None:
    refusal = (status, {}, {"object": "error", "message": "no such\n thing"})
    server = serve(lambda number, body: refusal if body["seed"] == 7 else completion(body))
    feeder = feed(config(server))
    results = run_all(feeder, [*many(5), request("bad", seed=7), request("long", max_tokens=4093)])
    bad, long = results.pop("bad"), results.pop("long")
    assert isinstance(bad, Failure) and bad.retries == 0 and bad.error.endswith(f"answered {status}: no such thing")
    assert isinstance(long, Failure) and "4 tokens" in long.error and "4096" in long.error
    assert len(server.bodies) == 6 and all(isinstance(result, Completed) for result in results.values())
    assert feeder.error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": (401, {}, {"error": "who are you?"})}, "answered 401: who are you"),
        ({"models": (404, {}, b"Not Found")}, "answered 404: Not Found"),
        ({"models": {"data": [{"id": "other"}]}}, "does not serve 'small' but 'other'"),
        ({"models": {"data": [{"id": SERVED, "max_model_len": 2048}]}}, "max_model_len 4096 .* at most 2048"),
        ({"script": lambda number, body: (401, {}, {"detail": "key expired"})}, "answered 401: key expired"),
        ({"script": lambda number, body: (403, {}, {"detail": "not yours"})}, "answered 403: not yours"),
        ({"script": lambda number, body: (404, {}, {"error": {"message": "no such model"}})}, "404: no such model"),
        ({"script": lambda number, body: (301, {"Location": "https://x"}, {})}, "answered 301"),
    ],
)
def test_what_is_wrong_for_all_stops_the_run(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
    change: dict[str, Any],
    message: str,
) -> None:
    server = serve()
    for name, value in change.items():
        setattr(server, name, value)
    feeder = feed(config(server))
    with pytest.raises(MillError, match=message) as caught:
        run_all(feeder, many(20))
    assert isinstance(caught.value.__cause__, RequestError)
    assert server.url in str(caught.value)


def test_an_odd_answer_of_a_proven_server_passes(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    """A router that is being set up anew may know no route for a moment."""
    server = serve(lambda number, body: (404, {}, {}) if number == 1 else completion(body))
    feeder = feed(config(server))
    assert run_one(feeder, request("a")).retries == 0
    assert run_one(feeder, request("b")).retries == 1


def test_a_full_server_is_left_alone_for_as_long_as_it_says(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    """With one try per request, none fails: being sent away is no try. The other server has the work meanwhile."""
    full = serve(
        lambda number, body: (429, {"Retry-After": "1"}, {"message": "slow"}) if number < 3 else completion(body)
    )
    other = serve(lambda number, body: time.sleep(0.01) or completion(body))
    feeder = feed(config(full, other, max_in_flight=6), FeedingConfig(max_attempts=1))
    results = run_all(feeder, many(60))
    assert all(isinstance(result, Completed) and result.retries == 0 for result in results.values())
    sent_away_at, later = full.times[2], full.times[3:]
    assert all(at >= sent_away_at + 0.99 for at in later)
    meanwhile = [at for at in other.times if at < sent_away_at + 0.9]
    assert len(meanwhile) >= 50


def test_503_with_a_date_and_429_without_a_time(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    acts = [(503, {"Retry-After": past}, {}), (429, {}, {}), (429, {"Retry-After": "tomorrow"}, {})]
    server = serve(lambda number, body: acts[number] if number < 3 else completion(body))
    assert run_one(feed(config(server), FeedingConfig(max_attempts=1)), request("a")).retries == 0
    assert len(server.bodies) == 4


def test_a_request_that_was_sent_away_holds_no_slot() -> None:
    """The feeder's part: one slot, and the others pass the one that is to come later."""
    order: list[tuple[str, float]] = []

    class Engine:
        family = version = "scripted"
        memory_share = 0.0
        capacity = 1

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def generate(self, one: GenerationRequest) -> Generation:
            order.append((one.key, time.monotonic()))
            if one.key == "full" and len(order) == 1:
                raise GenerationFailed("full", retry_after_s=0.2)
            await asyncio.sleep(0.001)
            return Generation(
                text="", token_ids=np.zeros(1, np.uint32), sum_logprobs=None, finish_reason="stop", engine_version=""
            )

    feeder = Feeder(Engines(Engine), name="model", config=FeedingConfig(max_attempts=1, backoff_s=30.0))
    try:
        results = run_all(feeder, [request("full", max_tokens=99), *many(20)])
    finally:
        feeder.close()
    assert all(isinstance(result, Completed) for result in results.values())
    assert [key for key, _ in order].index("full", 1) == 21
    waited_s = order[21][1] - order[0][1]
    assert 0.2 * (1 + fraction_of("full") / 4) <= waited_s < 2


# --- health -----------------------------------------------------------------------------------------------------------


def test_work_goes_to_whoever_has_least_over_connections_that_are_kept(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    slow = serve(lambda number, body: time.sleep(0.06) or completion(body))
    fast = serve(lambda number, body: time.sleep(0.005) or completion(body))
    run_all(feed(config(slow, fast, max_in_flight=8)), many(160))
    assert len(slow.bodies) + len(fast.bodies) == 160
    assert 4 <= len(slow.bodies) < len(fast.bodies) / 2
    assert slow.connections <= 9 and fast.connections <= 9


def test_the_default_is_64_requests_per_url(config: Callable[..., ModelConfig]) -> None:
    assert create_engine(config("http://a", "http://b")).capacity == 128


def test_a_server_that_dies_and_comes_back(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    first, second = (serve(lambda number, body: time.sleep(0.01) or completion(body)) for _ in range(2))
    feeder = feed(config(first, second, max_in_flight=8))
    run_all(feeder, many(40))
    assert first.bodies and second.bodies

    first.stop()
    before = len(first.bodies), len(second.bodies)
    assert all(isinstance(result, Completed) for result in run_all(feeder, many(40)).values())
    assert len(first.bodies) == before[0] and len(second.bodies) >= before[1] + 40

    first.start()
    time.sleep(0.4)
    run_all(feeder, many(40))
    assert len(first.bodies) >= before[0] + 10


def test_while_the_only_server_is_away_requests_wait_and_no_try_is_spent(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    server = serve(lambda number, body: time.sleep(0.02) or completion(body))
    feeder = feed(config(server, max_in_flight=4), FeedingConfig(max_attempts=2, backoff_s=0.001))
    ticket = feeder.ticket()
    for one in many(40):
        ticket.submit(one)
    while len(server.bodies) < 10:
        time.sleep(0.001)
    server.stop()  # cuts what is in flight: one try each
    time.sleep(0.3)
    server.start()
    results = list(ticket.drain())
    assert len(results) == 40 and all(isinstance(result, Completed) for result in results)
    assert sum(result.retries for result in results) <= 4


@pytest.mark.parametrize("act", [(500, {}, {}), CUT])
def test_a_server_that_fails_fast_is_no_black_hole(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder], act: Any
) -> None:
    """It always has the fewest requests, and still the others do the work; it is tried with one now and then."""
    broken = serve(lambda number, body: act)
    well = serve(lambda number, body: time.sleep(0.01) or completion(body))
    feeder = feed(config(broken, well, max_in_flight=8))
    results = run_all(feeder, many(100))
    assert all(isinstance(result, Completed) for result in results.values())
    assert 3 <= len(broken.bodies) <= 25
    broken.script = lambda number, body: time.sleep(0.01) or completion(body)
    time.sleep(0.2)
    before = len(broken.bodies)
    run_all(feeder, many(60))
    assert len(broken.bodies) >= before + 15


def test_a_server_that_fails_again_is_tried_with_one_request_at_a_time(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
) -> None:
    """It looks well each time: so this is no outage, but only the first two rounds cost tries of all requests."""
    lock, running, together = threading.Lock(), 0, []

    def script(number: int, body: dict[str, Any]) -> Any:
        nonlocal running
        with lock:
            running += 1
        time.sleep(0.03)
        with lock:
            together.append((number, running))
            running -= 1
        return (500, {}, {}) if number < 40 else completion(body)

    server = serve(script)
    model = config(server, max_in_flight=16, max_wait_s=0.3)
    results = run_all(feed(model, FeedingConfig(max_attempts=8, backoff_s=0.001)), many(16))
    assert all(isinstance(result, Completed) for result in results.values())
    assert {at_once for number, at_once in together if 35 <= number < 40} == {1}
    assert max(at_once for _, at_once in together) > 8


def test_one_server_is_enough_to_start(
    serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig], feed: Callable[..., Feeder]
) -> None:
    here, away = serve(), serve()
    away.stop()
    feeder = feed(config(away, here))
    assert len(run_all(feeder, many(10))) == 10 and len(here.bodies) == 10
    away.start()
    time.sleep(0.3)
    run_all(feeder, many(10))
    assert away.bodies


def test_an_outage_that_lasts_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
) -> None:
    monkeypatch.setattr(server_patience, "START_WAIT_S", 0.2)
    server = serve()
    server.stop()
    with pytest.raises(MillError, match=rf"took a request for 0.2 s: {server.url}/v1/models: no connection"):
        run_all(feed(config(server)), many(3))
    server.start()
    feeder = feed(config(server, max_wait_s=0.3))
    run_all(feeder, many(3))
    server.stop()
    with pytest.raises(MillError, match=rf"took a request for 0.3 s: {server.url}/v1/.*: no connection"):
        run_all(feeder, many(3))

    always_full = serve(lambda number, body: (429, {"Retry-After": "0"}, {"message": "quota is used up"}))
    with pytest.raises(MillError, match=r"took a request for 0.3 s: .*quota is used up"):
        run_all(feed(config(always_full, max_wait_s=0.3)), many(3))


def test_a_slow_generation_is_no_outage(
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
    feed: Callable[..., Feeder],
) -> None:
    """The server is full and at work for longer than an outage may take."""

    def script(number: int, body: dict[str, Any]) -> Any:
        if number == 0:
            time.sleep(0.5)
        return (429, {}, {}) if number > 0 and time.monotonic() < server.times[0] + 0.4 else completion(body)

    server = serve(script)
    results = run_all(feed(config(server, max_wait_s=0.2)), many(4))
    assert all(isinstance(result, Completed) for result in results.values())


def test_closing_ends_what_it_started(serve: Callable[..., ScriptedServer], config: Callable[..., ModelConfig]) -> None:
    here, away = serve(), serve()
    away.stop()

    async def run() -> None:
        engine = EndpointEngine(config(here, away))
        await engine.close()
        await engine.start()
        await engine.generate(request("a"))
        await engine.close()
        await engine.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(MillError, match="closed"):
            await engine.generate(request("a"))

    asyncio.run(run())


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_reaches_the_server_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    serve: Callable[..., ScriptedServer],
    config: Callable[..., ModelConfig],
) -> None:
    """The server repeats it in every error; it is in no message, log, representation, config or result."""
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    said = {"error": {"message": f"key {KEY} is bad"}, "key": KEY}
    acts = [(500, {}, said), (400, {}, said), (429, {}, said), json.dumps([KEY]).encode(), CUT, (401, {}, said)]
    server = serve(lambda number, body: acts[number] if number < len(acts) else completion(body))
    model = config(server, api_key_env=KEY_VARIABLE)
    shown = [repr(model), TypeAdapter(ModelConfig).dump_json(model).decode()]

    async def run() -> None:
        engine = EndpointEngine(model)
        await engine.start()
        for _ in acts:
            try:
                await engine.generate(request("a"))
            except MillError as error:
                shown.extend(all_that_tracebacks_can_show(error))
        made = await engine.generate(request("a"))
        shown.extend([repr(made), repr(engine), repr(engine._pool), repr(vars(engine)), repr(vars(engine._pool))])
        shown.extend(repr(vars(endpoint)) + repr(vars(endpoint.client)) for endpoint in engine._pool._endpoints)
        await engine.close()

    def all_that_tracebacks_can_show(error: BaseException) -> Iterator[str]:
        told: traceback.TracebackException | None
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        while told is not None:
            yield from told.format_exception_only()
            yield from (repr(frame.locals) for frame in told.stack if frame.filename != __file__)
            told = told.__cause__ or told.__context__

    asyncio.run(run())
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 7
    assert len(shown) > 20 and any("*** is bad" in text for text in shown) and "httpcore" in caplog.text
    assert not [text for text in [*shown, caplog.text] if KEY in text]
    assert KEY_VARIABLE in next(text for text in shown if "answered 401" in text)


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "is not set"), (" \n", "is not set"), ("a\nb", "characters"), ("schlüssel", "characters")],
)
def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str | None, message: str) -> None:
    if value is None:
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(KEY_VARIABLE, value)
    with pytest.raises(RequestError, match=f"{KEY_VARIABLE}.*{message}") as caught:
        read_key(KEY_VARIABLE)
    assert not (value or "").strip() or value not in str(caught.value)


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs `urls`"),
        ({"urls": ("localhost:8000",)}, "localhost:8000.* is no URL of a server"),
        ({"urls": ("ftp://a",)}, "ftp://a.* is no URL of a server"),
        ({"urls": ("http://",)}, "is no URL of a server"),
        ({"urls": ("http://a:8000", "http://a:8000/v1/")}, "there twice"),
        ({"urls": ("http://me:hunter2@a",)}, "at a holds a password"),
        ({"urls": ("https://a/v1?key=hunter2",)}, "at a holds a password"),
        ({"urls": ("http://a",), "timeout_s": 0.0}, "timeout_s"),
        ({"urls": ("http://a",), "engine": "vllm"}, "urls is for engine endpoint"),
        ({"api_key_env": "KEY", "engine": "rehearsal"}, "api_key_env is for engine endpoint"),
        ({"served_name": "x", "engine": "vllm"}, "served_name is for engine endpoint"),
        ({"urls": ("http://a",), "engine_args": {"max_model_len": 5}}, "max_model_len"),
    ],
)
def test_wrong_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig(**{"engine": "endpoint", "name": "m", **fields})
    told = [error["msg"] for error in caught.value.errors()]  # beside it, pydantic shows the input
    assert "hunter2" not in str(told)


def test_engine_args_that_the_config_sets_elsewhere() -> None:
    for name in ("seed", "prompt", "max_tokens", "stream", "return_token_ids"):
        with pytest.raises(RequestError, match=f"engine_args.{name} "):
            create_engine(ModelConfig(engine="endpoint", name="m", urls=("http://a",), engine_args={name: 1}))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("-3", None),
        ("inf", None),
        ("soon", None),
        ("1.5", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds


def test_retry_after_as_a_date() -> None:
    now = datetime.datetime.now(datetime.UTC)
    later = retry_after_s(email.utils.format_datetime(now + datetime.timedelta(seconds=90), usegmt=True))
    assert later is not None and 85 < later <= 90
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_pauses_grow_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [server_pool._pause_s(n) for n in (0, 1, 2, 5, 6, 10_000)] == [1, 2, 4, 32, 60, 60]


# --- the whole mill ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_servers_leaves_no_key_behind(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    serve: Callable[..., ScriptedServer],
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
    byte_tokenizer: str,
) -> None:
    """Scores and generations from one server, a failed generation among them; no file, log or output has the key."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)

    refused: set[int] = set()  # the first generation that is asked for, whichever it is

    def script(number: int, body: dict[str, Any]) -> Any:
        if "prompt_logprobs" in body:
            told = [{str(token): {"logprob": -(token % 7)}} for token in body["prompt"]]
            return {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": [None, *told[1:]]}]}
        if body["seed"] in refused or not refused:
            refused.add(body["seed"])
            return 400, {}, {"message": f"{KEY} may not ask this"}
        return completion(body, text="All of this is well and good, as one can see from the words that it says.")

    server = serve(script)
    reached = {"urls": [server.url], "served_name": SERVED, "api_key_env": KEY_VARIABLE}
    tree = rehearsal_config(
        write_jsonl({"id": str(i), "text": f"Text number {i} says so. " * 40} for i in range(6)),
        difficulty={"scorer": "endpoint", "model": byte_tokenizer, "segment_tokens": 64, **reached},
        models={"pretend": {"engine": "endpoint", "name": byte_tokenizer, **reached}},
        ledger={"max_failed_fraction": 0.9},
        select={"min_kept_share": 0},
    )
    config = from_mapping(tree)
    mill(config)
    files = [path for path in Path(config.output).rglob("*") if path.is_file()]
    assert "_SUCCESS" in {path.name for path in files}
    of_ledger = [path for path in files if path.parent.name == "ledger" and path.suffix == ".arrow"]
    rows = [row for path in of_ledger for row in storage.read_records(str(path), LedgerRow)]
    assert rows and {(row.engine, row.engine_version) for row in rows} == {("endpoint", "scripted 7")}
    parts = [path for path in files if path.suffix == ".arrow"]
    shown = "".join(path.read_bytes().decode(errors="replace") for path in files if path not in parts)
    shown += "".join(str(batch.to_pylist()) for path in parts for batch in storage.read_batches(str(path)))
    shown += "".join(capfd.readouterr()) + caplog.text
    assert "*** may not ask this" in shown and KEY_VARIABLE in shown
    assert KEY not in shown


@pytest.mark.slow
def test_what_decides_the_text_makes_the_stage_anew_and_what_does_not_leaves_it(
    serve: Callable[..., ScriptedServer],
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
    byte_tokenizer: str,
    tmp_path: Path,
) -> None:
    """The ledger's keys and the stage's fingerprint agree: old traces never pass for those of another setting."""
    server = serve(lambda number, body: completion(body, text="All of this is well and good, as one can see."))
    tokenizer = Path(shutil.copytree(byte_tokenizer, tmp_path / "generator"))
    model: dict[str, Any] = {"engine": "endpoint", "name": str(tokenizer), "urls": [server.url], "served_name": SERVED}
    source = write_jsonl({"id": str(i), "text": f"Text number {i} says so. " * 40} for i in range(4))

    def augmented(replace: bool = False, **fields: Any) -> Manifest:
        config = from_mapping(rehearsal_config(source, models={"pretend": {**model, **fields}}))
        return mill(config, stages=["score", "augment"], replace=replace)["augment"]

    first = augmented(engine_args={"top_k": 20})
    assert first.counts["generated"] == first.counts["generations"] > 0
    again = augmented(engine_args={"top_k": 20, "priority": 1}, max_in_flight=2, timeout_s=60.0)
    assert again.counts == first.counts, "only the speed is another"
    with pytest.raises(RequestError, match=r"models\.pretend\.engine_args\.top_k: 20 → 40.*--replace"):
        augmented(engine_args={"top_k": 40})
    other = augmented(replace=True, engine_args={"top_k": 40})
    assert (other.counts["found"], other.counts["generated"]) == (0, other.counts["generations"])
    back = augmented(replace=True, engine_args={"top_k": 20})
    assert (back.counts["found"], back.counts["generated"]) == (back.counts["generations"], 0)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**settings, "changed": True}))
    with pytest.raises(RequestError, match=r"models\.pretend\.revision: .*--replace"):
        augmented(engine_args={"top_k": 20})
