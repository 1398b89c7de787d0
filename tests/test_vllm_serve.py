"""Generation and scoring on a real `vllm serve` of the small model, one for the module."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import psutil
import pytest

from augment.engines import Closing, GenerationRequest, ModelConfig, SamplingConfig, create_engine
from augment.feeding import Completed, Failure, Feeder, FeedingConfig, Result
from augment.prompts import prompt_builder
from augment.requests import make_request
from augment.thoughts import closed_of, ends_sentence
from difficulty.config import DifficultyConfig
from difficulty.scorers import make_scorer
from difficulty.scorers.endpoint import EndpointScorer
from sharding.endpoints import EndpointPool, Served
from sharding.errors import RequestError
from tests.endpoint_server import SERVED, vllm_serve

pytestmark = pytest.mark.model

KEY = "sk-planted-4f1c9d7e2b"
KEY_VARIABLE = "THOUGHTMILL_TEST_KEY"


@pytest.fixture(scope="module")
def vllm_url(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_serve(small_model, tmp_path_factory.mktemp("vllm") / "log", api_key=KEY) as (url, group):
        yield url
    left = [p for p in psutil.process_iter() if os.getpgid(p.pid) == group and p.status() != psutil.STATUS_ZOMBIE]
    assert not left


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def run_all(feeder: Feeder, requests: list[GenerationRequest]) -> dict[str, Result]:
    ticket = feeder.ticket()
    for one in requests:
        ticket.submit(one)
    return {result.request.key: result for result in ticket.drain()}


@pytest.mark.model
def test_vllm_serve(small_model: str, vllm_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caps, seeds, stops, token ids, closing and refusals, as with the engine in this process."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    model = ModelConfig(
        engine="endpoint",
        name=small_model,
        served_name=SERVED,
        urls=(vllm_url,),
        api_key_env=KEY_VARIABLE,
        max_model_len=512,
    )
    builder = prompt_builder(model, "brief")
    feeder = Feeder(lambda: create_engine(model), name="small", config=QUICK)
    text = "The pop method removes the last item of a list and returns it. On an empty list it raises an IndexError."

    def ask(key: str, max_tokens: int, sampling: SamplingConfig | None = None, **fields: Any) -> GenerationRequest:
        prompt = builder.build(text, max_tokens=max_tokens)
        sampling = sampling or SamplingConfig()
        return make_request(key, prompt.token_ids, sampling=sampling, max_tokens=max_tokens, **fields)

    try:
        asked = [ask(str(i), 8 + 4 * i) for i in range(8)]
        floor = ask("floor", 40, min_tokens=40)
        hello = builder.dialect.tokenizer.encode_trusted(
            "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
        )
        special = make_request(
            "special", hello, sampling=SamplingConfig(temperature=0.0), max_tokens=60, stop=("<|im_end|>",)
        )
        comma = ask("comma", 200, stop=(",", "."))
        kept = GenerationRequest(**{**comma.__dict__, "key": "kept", "include_stop": True})
        plain = ask("plain", 12, SamplingConfig(temperature=1.0, top_p=1.0))
        closed = ask("closed", 160, min_tokens=100)
        closing = Closing(reserve_tokens=40, phrase="", phrase_token_ids=np.empty(0, np.uint32))
        closed = GenerationRequest(**{**closed.__dict__, "closing": closing})
        loop = builder.encode("And so on and so forth it goes again and again. " * 24)
        looped = make_request("loop", loop, sampling=SamplingConfig(temperature=0.0), max_tokens=150)
        bad = make_request("bad", np.full(5, 1 << 20, np.uint32), sampling=SamplingConfig(), max_tokens=5)
        results = run_all(feeder, [*asked, floor, special, comma, kept, plain, closed, looped, bad])

        refused = results.pop("bad")
        assert isinstance(refused, Failure) and refused.retries == 0 and "answered 400" in refused.error
        made = {key: result.generation for key, result in results.items() if isinstance(result, Completed)}
        assert made.keys() == results.keys()
        for one in asked:
            generation = made[one.key]
            assert 0 < len(generation.token_ids) <= one.max_tokens
            assert (generation.finish_reason == "length") == (len(generation.token_ids) == one.max_tokens)
            decoded = builder.dialect.tokenizer.decode(generation.token_ids)
            assert decoded.replace("<|im_end|>", "") == generation.text and "<|im_" not in generation.text
            assert generation.engine_version.startswith("vllm 0.") and generation.sum_logprobs is None
        assert len(made["floor"].token_ids) == 40
        assert made["special"].finish_reason == "stop"
        assert made["plain"].sum_logprobs is not None and made["plain"].sum_logprobs < 0
        assert made["kept"].text[-1] in ",." and made["kept"].text[:-1] == made["comma"].text
        assert made["loop"].finish_reason == "repetition"
        assert len(made["closed"].token_ids) <= 160 and made["closed"].forced
        assert closed_of(made["closed"]) == "cut" or ends_sentence(made["closed"].text)

        again = run_one(feeder, asked[5]).generation
        assert again.token_ids.tolist() == made["5"].token_ids.tolist() and again.text == made["5"].text
        reseeded = GenerationRequest(**{**asked[5].__dict__, "seed": asked[5].seed ^ 1})
        assert run_one(feeder, reseeded).generation.text != again.text
    finally:
        feeder.close()


@pytest.mark.model
def test_vllm_serve_and_a_wrong_key_name_or_length(
    small_model: str, vllm_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    right = {"model": SERVED, "api_key_env": KEY_VARIABLE}

    async def start(**fields: Any) -> str:
        pool = EndpointPool([vllm_url], timeout_s=60, **{**right, **fields})
        try:
            await pool.start()
            return pool.software
        finally:
            await pool.close()

    def no_room(url: str, served: Served) -> None:
        raise RequestError(f"{served.max_model_len} tokens")

    assert asyncio.run(start()).startswith("vllm 0.")
    for fields, message in (
        ({"model": "other"}, "does not serve 'other' but 'small'"),
        ({"api_key_env": None}, "answered 401.*api_key_env"),
        ({"check": no_room}, "1024 tokens"),
    ):
        with pytest.raises(RequestError, match=message):
            asyncio.run(start(**fields))
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    with pytest.raises(RequestError, match=f"answered 401.*{KEY_VARIABLE}"):
        asyncio.run(start())
