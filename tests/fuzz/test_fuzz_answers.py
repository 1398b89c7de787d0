"""Random answers of model servers, and random traces: a failure of one request, or a generation that holds."""

import asyncio
import copy
import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.engines.config import ModelConfig
from augment.engines.endpoint import EndpointEngine
from augment.engines.protocol import Generation, GenerationFailed, GenerationRequest, RequestRejected
from augment.marks import DIALECTS
from augment.requests.closing import SENTENCE_STOPS, closed_of
from augment.selection.gates.gate import Subject
from augment.selection.gates.unprintable import Unprintable
from augment.traces import ends_sentence, parse_trace
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from tests.endpoint_server import SERVED
from tests.fuzz.conftest import Tally, fuzzed, random_of
from tests.fuzz.test_fuzz_configs import places
from tests.test_thoughts import generation, ledger_row

NUM_ANSWERS = 1_500
KEY = "sk-planted-in-answers-7d1"
CAP = 24

ODD: list[Any] = [
    None, True, 0, 1, -1, 5, 2002, 2**32, 2**64, 10**30, 0.5, -1e308, "", " ", "stop", "length", "abort", "\x00",
    "\x1b[2J", "\ud800", "\ufffd", "é" * 300, "x" * 9_000, KEY, "</think>" * 300, [], [None], [[]], [[[[]]]], {},
    {"": 1}, {"type": "stop"}, {"token_logprobs": ["a"]}, {"prompt_tokens": 4}, {"completion_tokens": 9},
    {"content": "all is well."}, [-1], [40] * 99,
]  # fmt: skip
HEADERS = [
    {"content-encoding": "gzip"}, {"content-encoding": "br"}, {"content-encoding": KEY}, {"retry-after": "7"},
    {"content-type": "text/plain; charset=zlib"}, {"content-type": f"text/plain; charset={KEY}"},
]  # fmt: skip


def answer(rng: random.Random, tokenizer: TextTokenizer) -> dict[str, Any]:
    """One that is right, of any length and kind."""
    text = "".join(
        rng.choices(["all is well. ", "大きい ", "🙂", "</think>", "<think>", "1. ", "\n\n", "é"], k=rng.randrange(7))
    )
    ids = tokenizer.encode_trusted(text).tolist()[: rng.choice([CAP, CAP, CAP + 1])]
    if rng.random() < 0.2:
        ids.append(tokenizer.token_id("<|im_end|>"))
    choice = {"index": 0, "text": tokenizer.decode(ids).replace("<|im_end|>", ""), "finish_reason": "stop"}
    choice["finish_reason"] = rng.choice(["stop", "length", "repetition"])
    if rng.random() < 0.7:
        choice["token_ids"] = ids
    if rng.random() < 0.2:
        choice["reasoning"] = rng.choice(["why", choice["text"]])
    usage = {"prompt_tokens": 3, "completion_tokens": len(ids)}
    return {"choices": [choice], "model": SERVED, "usage": usage, "system_fingerprint": "fp"}


def changed(rng: random.Random, tree: Any) -> Any:
    for _ in range(rng.choice([0, 1, 1, 2])):
        path = rng.choice(places(tree) or [()])
        if not path:
            return copy.deepcopy(rng.choice(ODD))
        node = tree
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = copy.deepcopy(rng.choice(ODD))  # the next change may be within it
    return tree


def response(rng: random.Random, tokenizer: TextTokenizer) -> httpx.Response:
    """An answer, changed in its fields, its bytes, its headers or its status."""
    body = json.dumps(changed(rng, answer(rng, tokenizer))).encode(errors="surrogatepass")
    headers = dict(rng.choice(HEADERS)) if rng.random() < 0.15 else {}
    if headers.get("content-encoding") == "gzip" and rng.random() < 0.7:
        body = gzip.compress(body * rng.choice([1, 3000]))
    if rng.random() < 0.1:
        at = rng.randrange(len(body) + 1)
        body = (
            body[:at] + rng.choice([b"", rng.randbytes(9), b"[" * 99_999, KEY.encode()]) + body[at + rng.randrange(9) :]
        )
    status = rng.choice([200] * 9 + [400, 418, 429, 500, 503])
    reason = rng.choice([b"", b"Oops", KEY.encode(), b"\x1b[2J"])

    return streamed(status, body, headers, reason)


def streamed(status: int, body: bytes, headers: dict[str, str], reason: bytes = b"OK") -> httpx.Response:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]

    return httpx.Response(status, headers=headers, content=chunks(), extensions={"reason_phrase": reason})


@fuzzed
@pytest.mark.slow
def test_random_answers(byte_tokenizer: str, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_KEY", KEY)
    tokenizer, rng, outcomes = load_tokenizer(byte_tokenizer), random_of(11), Counter[str]()

    def handle(asked: httpx.Request) -> httpx.Response:
        if asked.url.path == "/v1/models":
            return streamed(200, json.dumps({"data": [{"id": SERVED}]}).encode(), {})
        return response(rng, tokenizer) if asked.url.path == "/v1/completions" else streamed(404, b"", {})

    async def run() -> None:
        model = ModelConfig(
            engine="endpoint", name=byte_tokenizer, served_name=SERVED, urls=("http://fuzz",), api_key_env="FUZZ_KEY"
        )
        engine = EndpointEngine(model)
        monkeypatch.setattr(
            "sharding.models.server.new_client",
            lambda url, key: (httpx.AsyncClient(transport=httpx.MockTransport(handle)), None),
        )
        await engine.start()
        (endpoint,) = engine._pool._endpoints
        endpoint.client._proven = True
        for number in range(NUM_ANSWERS):
            endpoint.failures = endpoint.rests = endpoint.closed_until = 0  # its health is the pool's business
            stop = rng.choice([(), ("</think>",), SENTENCE_STOPS])
            asked = GenerationRequest(
                key=str(number),
                prompt_token_ids=np.arange(3, dtype=np.uint32),
                max_tokens=CAP,
                min_tokens=rng.choice([0, 0, 5]),
                stop=stop,
                include_stop=stop is SENTENCE_STOPS,
            )
            try:
                made = await engine.generate(asked)
            except (GenerationFailed, RequestRejected) as error:
                assert KEY not in str(error) and str(error).isprintable() and len(str(error)) < 2_000
                outcomes[type(error).__name__] += 1
            else:
                assert_holds(made, tokenizer)
                outcomes["made"] += 1
        await engine.close()

    asyncio.run(run())
    assert outcomes["made"] > NUM_ANSWERS // 6 and outcomes["GenerationFailed"] > NUM_ANSWERS // 10, outcomes
    tally("answers of servers", outcomes)


def assert_holds(made: Generation, tokenizer: TextTokenizer) -> None:
    assert KEY not in made.text and made.unseen_tokens >= 0 and made.paid_tokens < 2 * CAP
    written = ~np.isin(made.token_ids, sorted(tokenizer.special_ids))
    assert tokenizer.decode(made.token_ids[written]).startswith(made.text)
    assert closed_of(made) in ("natural", "forced", "cut")
    made.text.encode()
    parse_trace(ledger_row(made.text))


PIECES = [token for marks in DIALECTS for token in (*marks.tokens, *marks.stop)]
PIECES += [
    *SENTENCE_STOPS,
    "1. ",
    "e.g. ",
    "f(x) =",
    "```\n",
    "$$",
    "\\[",
    "\x1b",
    "\u202e",
    "\ufffd",
    "大",
    "a ",
    "\n",
    "analysis",
    "final",
]


@fuzzed
@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12), st.booleans())
def test_random_traces(pieces: list[str], forced: bool) -> None:
    text = "".join(pieces)
    trace = parse_trace(ledger_row(text))
    assert trace.text == trace.text.strip() and trace.text in text
    assert bool(trace.text) or not text.strip() or any(token in text for token in PIECES)
    closed = {reason: closed_of(generation(text, reason, forced=forced)) for reason in ("stop", "length", "repetition")}
    assert closed["stop"] != "cut" or forced
    assert closed["repetition"] in (closed["length"], "cut")
    ends_sentence(text)
    Unprintable().objects(Subject(trace=trace, source_text="", prompt="brief"))
