"""Waiting for servers is bounded, shown, and fails no request; test_endpoint_engine.py has what else may go wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from augment.engines import create_engine
from augment.engines.config import ModelConfig
from augment.engines.protocol import GenerationRequest
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.heartbeat import Heartbeat, read_beats
from augment.feeding.tickets import Completed, Failure, Result
from difficulty.config import DifficultyConfig
from difficulty.scorers import endpoint as scorer_module
from difficulty.scorers import make_scorer
from pipelines.watch import progress, status
from pipelines.watch.files import read_snapshot
from sharding import storage, waits
from sharding.errors import MillError, RequestError
from sharding.models import server_patience, server_pool
from sharding.models.server import retry_after_s
from sharding.storage.output import Output
from tests.endpoint_server import SERVED, ScriptedServer, completion
from tests.engine_sources import Engines

LOADING = (503, {}, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
BEHIND_A_GATEWAY = (502, {}, b"<html><head><title>502 Bad Gateway</title></head></html>")
STARTING = (503, {}, b"<html><head><title>503 Service Temporarily Unavailable</title></head></html>")
DAY = {"Retry-After": "86400"}
YEAR_9999 = {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(server_pool, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(scorer_module, "BACKOFF_S", 0.002)


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

    def make(*servers: ScriptedServer, max_attempts: int = 1, **fields: Any) -> Feeder:
        urls = tuple(server.url for server in servers)
        model = ModelConfig(engine="endpoint", name=byte_tokenizer, served_name=SERVED, urls=urls, **fields)
        config = FeedingConfig(max_attempts=max_attempts, backoff_s=0.001, max_backoff_s=0.01)
        made.append(Feeder(Engines(lambda: create_engine(model)), name="model", config=config))
        return made[-1]

    yield make
    for feeder in made:
        feeder.close()


def run_all(feeder: Feeder, number: int = 1, **odd: int) -> list[Result]:
    """The results of some requests, the odd ones with a seed of their own."""
    ticket = feeder.ticket()
    for key, seed in {**{str(i): 0 for i in range(number)}, **odd}.items():
        prompt = np.arange(4, dtype=np.uint32)
        ticket.submit(GenerationRequest(key=key, prompt_token_ids=prompt, max_tokens=8, seed=seed))
    return list(ticket.drain())


def suppressing(act: Callable[..., Any], *arguments: Any) -> None:
    with contextlib.suppress(MillError):
        act(*arguments)


def completed(results: list[Result]) -> bool:
    return all(isinstance(result, Completed) and result.retries == 0 for result in results)


# --- how long a server wants to be left alone -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("9" * 400, None),
        ("0" * 400 + "7", 7.0),
        ("99999999999", None),
        ("86400", 86400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Fri, 31 Dec 2027 23:59:59 +9999", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None),
        ("Mon, 99 Foo 0000", None),
        ("1e9", None),
        ("-1", None),
        ("nan", None),
        ("\x00", None),
    ],
)
def test_what_nobody_can_mean_is_not_said(header: str, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "9" * 400}, YEAR_9999])
def test_a_wait_that_nobody_can_mean_is_looked_at_again(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], status: int, headers: dict[str, str]
) -> None:
    server = serve(lambda number, body: (status, headers, {}) if number < 3 else completion(body))
    assert completed(run_all(feed(server))) and len(server.bodies) == 4


@pytest.mark.parametrize("headers", [{"Retry-After": "9" * 400}, YEAR_9999, {}])
def test_and_not_for_good(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], headers: dict[str, str]
) -> None:
    server = serve(lambda number, body: (429, headers, {"message": "come back later"}))
    with pytest.raises(MillError, match=r"took a request for 0.6 s: .*answered 429: come back later; .*run again"):
        run_all(feed(server, max_wait_s=0.6))
    assert len(server.bodies) >= 2


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ((429, DAY, {"message": "quota is used up"}), "86,400 s, longer than max_wait_s=900 .*429: quota is used up"),
        ((503, {"Retry-After": "1000"}, {"message": "nightly works"}), "1,000 s, longer than .*503: nightly works"),
    ],
)
def test_a_longer_wait_than_allowed_is_told_at_once(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], act: Any, words: str
) -> None:
    began = time.monotonic()
    with pytest.raises(MillError, match=words):
        run_all(feed(serve(lambda number, body: act)), 5)
    assert time.monotonic() - began < 5
    at_the_start = serve()
    at_the_start.models = act
    with pytest.raises(MillError, match=words):
        run_all(feed(at_the_start), 5)
    assert time.monotonic() - began < 10


def test_nothing_under_way_is_thrown_away_for_it(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]
) -> None:
    """The server wants no more for a day while it is at work; what it is at work on is finished first."""
    done = threading.Event()

    def script(number: int, body: dict[str, Any]) -> Any:
        if body["seed"] == 7:
            done.wait(0.4)
            return completion(body)
        return 429, DAY, {}

    kept: list[Result] = []

    class Sink:
        def keep(self, result: Result) -> None:
            kept.append(result)

    ticket = feed(serve(script)).ticket(Sink())
    for key, seed in {"slow": 7, "other": 0, "third": 0}.items():
        prompt = np.arange(4, dtype=np.uint32)
        ticket.submit(GenerationRequest(key=key, prompt_token_ids=prompt, max_tokens=8, seed=seed))
    with pytest.raises(MillError, match="86,400 s"):
        list(ticket.drain())
    assert [result.request.key for result in kept if isinstance(result, Completed)] == ["slow"]


def test_another_server_has_the_work_at_once(serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]) -> None:
    """Also that which was sent away: it doesn't come back when the full one wants it, but when any is open."""
    full = serve(lambda number, body: (429, {"Retry-After": "600"}, {}))
    well = serve()
    began = time.monotonic()
    assert completed(run_all(feed(full, well), 20)) and time.monotonic() - began < 5
    assert full.bodies


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [LOADING, STARTING])
@pytest.mark.parametrize("number", [1, 5])
def test_loading_is_no_failure_however_small_the_run(
    serve: Callable[..., ScriptedServer],
    feed: Callable[..., Feeder],
    monkeypatch: pytest.MonkeyPatch,
    act: Any,
    number: int,
) -> None:
    monkeypatch.setattr(server_patience, "RECENT_S", 0.1)
    server = serve(lambda _, body: act if time.monotonic() < ready_at else completion(body))
    feeder = feed(server)
    ready_at = time.monotonic() + 0.5
    assert completed(run_all(feeder, number)) and len(server.bodies) > number + 4
    time.sleep(0.1)
    ready_at = time.monotonic() + 0.4  # it is started again
    assert completed(run_all(feeder, number))


@pytest.mark.parametrize("act", [LOADING, STARTING, BEHIND_A_GATEWAY])
def test_a_server_that_loads_at_the_start_is_waited_for_longer_than_one_that_is_away(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    monkeypatch.setattr(server_patience, "START_WAIT_S", 0.1)
    server = serve()
    right, server.models = server.models, act
    threading.Timer(0.4, setattr, (server, "models", right)).start()
    assert completed(run_all(feed(server)))
    server.models = act
    with pytest.raises(MillError, match=r"took a request for 0.3 s: .*answered 50[23]: "):
        run_all(feed(server, max_wait_s=0.3))


def test_loading_for_one_request_alone_is_its_failure(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder]
) -> None:
    """A server that answers all the others is there: what kills whatever is behind it is given up alone."""
    server = serve(lambda number, body: LOADING if body["seed"] == 7 else completion(body))
    results = run_all(feed(server, max_attempts=3), 30, poison=7)
    failed = [result for result in results if isinstance(result, Failure)]
    assert [result.key for result in failed] == ["poison"] and "Loading model" in failed[0].error
    assert len(results) == 31


def test_the_scorer_waits_too(serve: Callable[..., ScriptedServer], byte_tokenizer: str) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        told = [None, *({str(token): {"logprob": -1.0}} for token in body["prompt"][1:])]
        return LOADING if number < 9 else {"choices": [{"text": "", "prompt_logprobs": told}]}

    server = serve(script)
    config = DifficultyConfig(
        scorer="endpoint", model=byte_tokenizer, urls=(server.url,), served_name=SERVED, max_wait_s=5
    )
    scorer = make_scorer(config)
    assert len(scorer.score(["A list is a sequence."])[0].surprisal_nats) > 3
    server.script = lambda number, body: (429, DAY, {"message": "no more today"})
    with pytest.raises(MillError, match=r"max_wait_s=5 allows: .*no more today"):
        scorer.score(["A list is a sequence."])
    scorer.close()  # type: ignore[attr-defined]


# --- what a person sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [LOADING, (429, {"Retry-After": "30"}, {"message": "Loading model"})])
def test_a_long_wait_is_shown_with_server_and_reason(
    serve: Callable[..., ScriptedServer],
    feed: Callable[..., Feeder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    act: Any,
) -> None:
    """The one that says how long is shown at once, the other once it has lasted."""
    if act is LOADING:
        monkeypatch.setattr(server_patience, "SHOWN_S", 0.1)
    caplog.set_level(logging.WARNING)
    server = serve(lambda _, body: act)
    feeder = feed(server, max_wait_s=60)
    waiting = threading.Thread(target=suppressing, args=(run_all, feeder))
    waiting.start()
    until = time.monotonic() + 5
    while not waits.current() and time.monotonic() < until:
        time.sleep(0.01)
    (wait,) = waits.current()
    said = waits.told(wait, wait["since"] + 150)
    assert said.startswith(f"{SERVED} for 2 min, given up after 60 s: {server.url}/v1/completions answered ")
    assert said.endswith("Loading model")
    assert any("waiting for the servers of small" in message and server.url in message for message in caplog.messages)
    feeder.close()
    waiting.join()
    assert not waits.current()


def test_status_and_progress_show_it_from_elsewhere(tmp_path: Path) -> None:
    """By the heartbeat of each process: a wait of all of them is one, since the first; no time left is made up."""
    waiter, now = object(), time.time()
    waits.begin(waiter, who="small", reason="http://a answered 503: [red]Loading", since=now - 240, until=now + 660)
    heartbeat = Heartbeat(str(tmp_path), beat_s=30)
    try:
        heartbeat.begin()
        until = time.monotonic() + 5
        while not (beats := read_beats(str(tmp_path), time.time())) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        heartbeat.close()
        waits.end(waiter)
    (wait,) = beats[0]["waits"]
    told = "small for 4 min, given up after 15 min: http://a answered 503: [red]Loading"
    assert waits.all_told([wait, {**wait, "since": now - 100}]) == [told]
    generation = {
        **dict.fromkeys(("generations", "generations_planned", "in_flight", "waiting", "failed", "processes"), 1),
        "unit": "tokens",
        "spent": 1,
        "budget": 2,
        "dollars": None,
        "gpu_hours": None,
        "thought_tokens": 1,
        "tokens_per_second": 9.0,
        "seconds_left": 480.0,
        "waits": [wait],
        "thought_tokens_planned": 2,
    }
    snapshot = {"counts": {}, "tokens_per_second": None, "generation": generation, "waits": [wait], "warning": None}
    said = {**snapshot, "stage": "augment", "at": now, "elapsed_s": 1.0}
    said["generation"] = {**generation, "seconds_since_last": None}
    storage.write_json(Output(str(tmp_path)).progress, said)
    facts = list(progress.facts(read_snapshot(str(tmp_path))))
    assert facts.count(("waiting", told)) == 1 and "time left" not in dict(facts)
    generation["waits"], snapshot["waits"] = [], []
    assert "waiting" not in dict(progress.facts(snapshot)) and "time left" in dict(progress.facts(snapshot))
    found = {"output": "o", "complete": False, "stages": {"augment": "not done"}, "rehearsal": False}
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(status.render({**found, "generation": {**generation, "waits": [wait]}}))
    shown = console.export_text()
    assert told in shown and "time left" not in shown


def test_a_short_wait_is_not_shown(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = serve(lambda number, body: LOADING if number < 5 else completion(body))
    assert completed(run_all(feed(server))) and not waits.current() and not caplog.messages


@pytest.mark.parametrize("models", [{"data": [{"id": "other"}]}, (401, {}, {"error": "who are you?"})])
def test_what_turns_out_to_be_something_else_is_not_waited_for(
    serve: Callable[..., ScriptedServer], feed: Callable[..., Feeder], models: Any
) -> None:
    """It wasn't there at the first look, which would have told."""
    server = serve()
    server.stop()
    server.models = models
    feeder = feed(server)
    threading.Timer(0.2, server.start).start()
    began = time.monotonic()
    with pytest.raises(MillError, match=r"'other'|who are you") as caught:
        run_all(feeder)
    assert isinstance(caught.value.__cause__, RequestError) and time.monotonic() - began < 5
