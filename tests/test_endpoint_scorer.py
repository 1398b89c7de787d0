"""The endpoint scorer on servers that misbehave; see test_vllm_serve.py for a real one."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from difficulty.config import DifficultyConfig
from difficulty.scorers import describe_scorer, make_scorer
from difficulty.scorers import endpoint as endpoint_module
from difficulty.scorers.endpoint import EndpointScorer, _nats, _TokenLogprob
from difficulty.scorers.protocol import TokenScores
from difficulty.scorers.windows import cut_windows
from difficulty.scoring import score_texts
from sharding.errors import MillError, RequestError
from sharding.models import server_patience, server_pool
from sharding.models.tokenizer import UnencodableText, load_tokenizer
from tests.endpoint_server import CUT, SERVED, ScriptedServer

TEXTS = ("A list is a mutable sequence. " * 12, "Größe und 大きさ, with <|im_end|> as text.", "", "Short.")
CONTEXT, MIN_CONTEXT = 24, 8
KEY = "sk-planted-4f1c9d7e2b"
KEY_VARIABLE = "THOUGHTMILL_TEST_KEY"


def toy_logprob(before: int, token: int) -> float:
    """ln p of a token after another, under a model that looks one token back."""
    return -int.from_bytes(hashlib.blake2b(f"{before} {token}".encode(), digest_size=2).digest()) / 4096


def toy_answer(body: dict[str, Any]) -> dict[str, Any]:
    """As vLLM answers: nothing for the first token, and the most likely ones beside each of the others."""
    prompt, entries = body["prompt"], [None]
    for before, token in pairwise(prompt):
        told = {str(token): {"logprob": toy_logprob(before, token), "rank": 3, "decoded_token": "x"}}
        for rank in range(body["prompt_logprobs"]):
            told[str(10**6 + rank)] = {"logprob": -2.0 - rank, "rank": rank}
        entries.append(told)
    return {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": entries}], "model": SERVED}


def entropy_of(probabilities: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "FIRST_PAUSE_S", 0.03)
    monkeypatch.setattr(server_pool, "MAX_PAUSE_S", 0.04)
    monkeypatch.setattr(endpoint_module, "BACKOFF_S", 0.002)


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    made: list[ScriptedServer] = []

    def start(script: Callable[[int, dict[str, Any]], Any] | None = None) -> ScriptedServer:
        made.append(ScriptedServer(script or (lambda number, body: toy_answer(body))))
        return made[-1]

    yield start
    for server in made:
        server.stop()


@pytest.fixture
def scorer(byte_tokenizer: str) -> Iterator[Callable[..., EndpointScorer]]:
    made: list[EndpointScorer] = []
    # A worker process keeps the scorer of an earlier run, as a mill in this process may have left one.
    before = set(threading.enumerate())

    def make(*servers: ScriptedServer, **fields: Any) -> EndpointScorer:
        scorer = make_scorer(config(byte_tokenizer, *servers, **fields))
        assert isinstance(scorer, EndpointScorer)
        made.append(scorer)
        return scorer

    yield make
    for one in made:
        one.close()
        one.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "endpoint-scorer"]


def config(model: str, *servers: ScriptedServer, **fields: Any) -> DifficultyConfig:
    settings = {"context_tokens": CONTEXT, "min_context": MIN_CONTEXT, "segment_tokens": 16, "served_name": SERVED}
    urls = tuple(server.url for server in servers)
    return DifficultyConfig(**{"scorer": "endpoint", "model": model, "urls": urls, **settings, **fields})


def assert_toy_scores(scores: list[TokenScores], model: str, top_logprobs: int = 0) -> None:
    tokenizer = load_tokenizer(model)
    for text, scored in zip(TEXTS, scores, strict=True):
        ids = tokenizer.encode(text)
        assert scored.byte_ends.tolist() == tokenizer.byte_ends(ids).tolist()
        befores = [tokenizer.start_of_text_id, *ids[:-1].tolist()]
        expected = [-toy_logprob(*pair) for pair in zip(befores, ids.tolist(), strict=True)] if len(ids) else []
        np.testing.assert_allclose(scored.surprisal_nats, expected, atol=1e-6)
        others = [math.exp(-2.0 - rank) for rank in range(top_logprobs)]
        known = [[math.exp(-nats), *others] for nats in expected]
        bound = [entropy_of([*p, max(0.0, 1 - sum(p))]) for p in known]
        np.testing.assert_allclose(scored.entropy_nats, bound, atol=1e-5)
        assert scored.surprisal_nats.dtype == scored.entropy_nats.dtype == np.float32


def whole_prompt_answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
    """Of a model to which all that stands before a token matters."""
    prompt = body["prompt"]
    entries: list[Any] = [None]
    state = hashlib.blake2b(str(prompt[0]).encode())
    for token in prompt[1:]:
        state.update(f" {token}".encode())
        nats = int.from_bytes(state.digest()[:2]) / 4096
        entries.append({str(token): {"logprob": -nats, "rank": 3, "decoded_token": "x"}})
    return {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": entries}], "model": SERVED}


def test_a_trace_segment_and_continuation_are_one_request(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer]
) -> None:
    """Three long traces that differ in their first word: each does something else to the continuation."""
    server = serve(whole_prompt_answer)
    segment, after = "The segment, of some words. ", "What follows it."
    traces = [first + " and so on" * 60 for first in ("One", "Two", "Three")]
    found = scorer(server).nats_after(
        ["", *traces], segment + after, len(segment), prefix_tokens=1000, context_tokens=2000
    )
    assert len(server.bodies) == 4 and found.cut_tokens == 0
    lengths = [len(body["prompt"]) for body in server.bodies]
    assert max(lengths) > 5 * CONTEXT, "the window of score is no matter"
    sums = found.nats.sum(axis=1)
    assert len(set(sums.tolist())) == 4
    # What is longer than the window has no nats, and isn't asked for.
    short = scorer(server).nats_after(
        ["", traces[0]], segment + after, len(segment), prefix_tokens=100, context_tokens=128
    )
    assert np.isfinite(short.nats[0]).all() and np.isnan(short.nats[1]).all()
    assert len(server.bodies) == 5


@pytest.mark.parametrize("top_logprobs", [0, 3])
def test_scores(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer], byte_tokenizer: str, top_logprobs: int
) -> None:
    """Of a model that looks one token back, they don't depend on windows; a token off by one would show."""
    server = serve()
    scores = scorer(server, top_logprobs=top_logprobs).score(TEXTS)
    assert_toy_scores(scores, byte_tokenizer, top_logprobs)
    tokenizer = load_tokenizer(byte_tokenizer)
    documents = [tokenizer.encode(text).tolist() for text in TEXTS]
    windows = [
        [tokenizer.start_of_text_id, *ids[window.start : window.end]]
        for ids in documents
        for window in cut_windows(len(ids), CONTEXT, MIN_CONTEXT)
    ]
    assert len(windows) > 6 and max(map(len, windows)) == CONTEXT + 1
    assert sorted(body["prompt"] for body in server.bodies) == sorted(windows)
    assert len({body.pop("cache_salt") for body in server.bodies}) == len(windows)
    asked = {json.dumps({**body, "prompt": 0}, sort_keys=True) for body in server.bodies}
    (settings,) = map(json.loads, asked)
    assert settings == {
        "model": SERVED,
        "prompt": 0,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": top_logprobs,
    }


def test_what_a_text_scores_does_not_depend_on_the_others(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer]
) -> None:
    one = scorer(serve())
    together = one.score(TEXTS)
    for text, scored in zip(reversed(TEXTS), reversed(together), strict=True):
        (alone,) = one.score([text])
        assert alone.surprisal_nats.tolist() == scored.surprisal_nats.tolist()
    assert one.score([]) == []


def test_several_windows_at_once_from_several_threads(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer], byte_tokenizer: str
) -> None:
    changed, running, most = threading.Condition(), 0, 0

    def script(number: int, body: dict[str, Any]) -> Any:
        nonlocal running, most
        with changed:
            running += 1
            most = max(most, running)
            changed.notify_all()
            changed.wait_for(lambda: most >= 5, timeout=10)
        time.sleep(0.01)
        with changed:
            running -= 1
        return toy_answer(body)

    one = scorer(serve(script), max_in_flight=5)
    results: list[list[TokenScores]] = []
    threads = [threading.Thread(target=lambda: results.append(one.score(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and most == 5
    for scores in results:
        assert_toy_scores(scores, byte_tokenizer)


def test_failures_are_tried_again(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer], byte_tokenizer: str
) -> None:
    acts = {1: (500, {}, {}), 3: CUT, 5: b"no", 6: (429, {"Retry-After": "0"}, {}), 8: (503, {}, {}), 9: {"choices": 3}}
    server = serve(lambda number, body: acts.get(number) or toy_answer(body))
    one = scorer(server, max_in_flight=2)
    assert_toy_scores(one.score(TEXTS), byte_tokenizer)
    sent = len(server.bodies)
    one.score(TEXTS)
    assert sent - (len(server.bodies) - sent) == len(acts)


def test_a_server_that_dies(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer], byte_tokenizer: str
) -> None:
    dying, other = serve(), serve()
    one = scorer(dying, other)
    one.score(TEXTS)
    assert dying.bodies and other.bodies
    dying.stop()
    assert_toy_scores(one.score(TEXTS), byte_tokenizer)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda number, body: (500, {}, {"message": "boom"}), "6 tries failed, the last: .*answered 500: boom"),
        (lambda number, body: (400, {}, {"message": "too much"}), "tokens can't be scored: .*400: too much"),
        (lambda number, body: (401, {}, {"message": "who?"}), "401: who?"),
        (lambda number, body: {"choices": [{"text": ""}]}, "report no logprobs of the prompt; .*vLLM"),
        (lambda number, body: {"choices": []}, "report no logprobs of the prompt"),
        (lambda number, body: {"choices": [{"prompt_logprobs": [None]}]}, "report no logprobs of the prompt"),
        (
            lambda number, body: {"choices": [{"prompt_logprobs": [None] * len(body["prompt"])}]},
            "reported no logprob of token",
        ),
    ],
)
def test_errors(
    serve: Callable[..., ScriptedServer],
    scorer: Callable[..., EndpointScorer],
    byte_tokenizer: str,
    script: Callable[[int, dict[str, Any]], Any],
    message: str,
) -> None:
    server = serve(script)
    one = scorer(server)
    with pytest.raises(MillError, match=message):
        one.score(TEXTS)
    server.script = lambda number, body: toy_answer(body)
    assert_toy_scores(one.score(TEXTS), byte_tokenizer)
    with pytest.raises(UnencodableText):
        one.score(["fine", "half a character \ud800"])


def test_what_the_servers_are_is_looked_at_first(
    serve: Callable[..., ScriptedServer], scorer: Callable[..., EndpointScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for fields, message in (
        ({"served_name": "other"}, "does not serve 'other' but 'small'"),
        ({"context_tokens": 4095, "batch_tokens": 4095}, "context_tokens: 4095: .* takes 4096 .* windows of 4094"),
        ({"api_key_env": KEY_VARIABLE}, KEY_VARIABLE),
    ):
        with pytest.raises(RequestError, match=message):
            scorer(server, **fields)
    scorer(server, context_tokens=4094)
    monkeypatch.setattr(server_patience, "START_WAIT_S", 0.1)
    server.stop()
    with pytest.raises(MillError, match="no connection"):
        scorer(server)


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=12), st.data())
def test_the_entropy_is_a_lower_bound(weights: list[float], data: st.DataObject) -> None:
    """Of the whole distribution exact, of a part of it less; the more tokens are known, the tighter."""
    total = math.fsum(weights)
    p = sorted((weight / total for weight in weights), reverse=True)
    token = data.draw(st.integers(0, len(p) - 1))
    bounds = []
    for top in range(len(p) + 1):
        known = {i: _TokenLogprob(logprob=math.log(p[i])) for i in {*range(top), token}}
        surprisal, bound = _nats(token, known)
        assert surprisal == pytest.approx(-math.log(p[token]), abs=1e-12)
        bounds.append(bound)
    true = entropy_of(p)
    assert bounds[-1] == pytest.approx(true, abs=1e-9)
    assert bounds[0] <= math.log(2) + 1e-12
    assert all(0 <= less <= more + 1e-9 for less, more in pairwise(bounds))


def test_certainty_and_impossibility_are_finite() -> None:
    assert _nats(1, {1: _TokenLogprob(logprob=0.0)}) == (0.0, 0.0)
    assert _nats(1, {1: _TokenLogprob(logprob=1e-7)}) == (0.0, 0.0)
    assert _nats(1, {1: _TokenLogprob(logprob=-9999.0)}) == (9999.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"urls": ()}, "needs difficulty.urls"),
        ({"model": None}, "endpoint needs difficulty.model"),
        ({"urls": ("http://me:hunter2@a",)}, "holds a password"),
        ({"reference_model": "m"}, "reference_model needs scorer causal_lm"),
        ({"scorer": "causal_lm"}, "difficulty.urls is for scorer endpoint"),
        ({"scorer": "rehearsal", "urls": (), "top_logprobs": 3}, "difficulty.top_logprobs is for scorer endpoint"),
        ({"timeout_s": 0.0}, "timeout_s"),
    ],
)
def test_wrong_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DifficultyConfig(**{"scorer": "endpoint", "model": "m", "urls": ("http://a",), **fields})


def test_from_texts_to_segments_without_the_key_in_sight(
    serve: Callable[..., ScriptedServer], byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    server = serve()
    settings = config(byte_tokenizer, server, api_key_env=KEY_VARIABLE)
    segments = score_texts([TEXTS[0], TEXTS[1]], settings)
    assert len(segments) > 4 and all(np.isfinite(segment.entropy_nats).all() for segment in segments)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    described = describe_scorer(settings)
    assert described == {
        "scorer": "endpoint",
        "measure": "surprisal",
        "model": byte_tokenizer,
        "revision": described["revision"],
        "served_name": SERVED,
        "context_tokens": CONTEXT,
        "min_context": MIN_CONTEXT,
        "top_logprobs": 0,
    }
    shown = [json.dumps(described), repr(settings), TypeAdapter(DifficultyConfig).dump_json(settings).decode()]
    assert not [text for text in shown if KEY in text]
