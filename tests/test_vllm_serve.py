"""Generation and scoring on a real `vllm serve` of the small model, one for the module."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import psutil
import pytest

from augment.engines import create_engine
from augment.engines.config import ModelConfig, SamplingConfig
from augment.engines.protocol import Closing, Generation, GenerationRequest
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.tickets import Completed, Failure
from augment.requests.closing import closed_of
from augment.requests.keys import make_request
from augment.requests.prompts import PromptBuilder, prompt_builder
from augment.traces import ends_sentence
from difficulty.config import DifficultyConfig
from difficulty.scorers import make_scorer
from difficulty.scorers.endpoint import EndpointScorer
from sharding.errors import RequestError
from sharding.models.served import Served
from sharding.models.server_pool import EndpointPool
from tests.endpoint_server import SERVED, vllm_serve
from tests.engine_sources import Engines

pytestmark = pytest.mark.model

KEY = "sk-planted-4f1c9d7e2b"
KEY_VARIABLE = "THOUGHTMILL_TEST_KEY"


TEXT = "The pop method removes the last item of a list and returns it. On an empty list it raises an IndexError."


@pytest.fixture(scope="module")
def vllm_url(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_serve(small_model, tmp_path_factory.mktemp("vllm") / "log", api_key=KEY) as (url, group):
        yield url
    give_up_at = time.monotonic() + 10
    while left := members(group):
        assert time.monotonic() < give_up_at, left
        time.sleep(0.1)


def members(group: int) -> list[psutil.Process]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="module")
def model(small_model: str, vllm_url: str) -> ModelConfig:
    return ModelConfig(
        engine="endpoint",
        name=small_model,
        served_name=SERVED,
        urls=(vllm_url,),
        api_key_env=KEY_VARIABLE,
        max_model_len=512,
    )


@pytest.fixture(scope="module")
def builder(model: ModelConfig) -> PromptBuilder:
    return prompt_builder(model, "brief")


@pytest.fixture
def feeder(model: ModelConfig) -> Iterator[Feeder]:
    feeder = Feeder(Engines(lambda: create_engine(model)), name="small", config=FeedingConfig(backoff_s=0.01))
    yield feeder
    feeder.close()


def generate(feeder: Feeder, requests: list[GenerationRequest]) -> dict[str, Generation]:
    ticket = feeder.ticket()
    for one in requests:
        ticket.submit(one)
    results = list(ticket.drain())
    assert all(isinstance(result, Completed) for result in results), results
    return {result.request.key: result.generation for result in results}


def ask(
    builder: PromptBuilder, key: str, max_tokens: int, sampling: SamplingConfig | None = None, **fields: Any
) -> GenerationRequest:
    prompt = builder.build(TEXT, max_tokens=max_tokens)
    return make_request(key, prompt.token_ids, sampling=sampling or SamplingConfig(), max_tokens=max_tokens, **fields)


def test_caps_seeds_and_token_ids(feeder: Feeder, builder: PromptBuilder) -> None:
    asked = [ask(builder, str(i), 8 + 4 * i) for i in range(8)]
    floor = ask(builder, "floor", 40, min_tokens=40)
    plain = ask(builder, "plain", 12, SamplingConfig(temperature=1.0, top_p=1.0))
    made = generate(feeder, [*asked, floor, plain])
    control_ids = builder.dialect.tokenizer.control_ids
    for one in asked:
        generation = made[one.key]
        assert 0 < len(generation.token_ids) <= one.max_tokens
        if generation.finish_reason == "length":
            assert len(generation.token_ids) == one.max_tokens
        else:
            assert generation.finish_reason == "stop" and generation.token_ids[-1] in control_ids
        decoded = builder.dialect.tokenizer.decode(generation.token_ids)
        assert decoded.replace("<|im_end|>", "") == generation.text and "<|im_" not in generation.text
        assert generation.engine_version.startswith("vllm 0.") and generation.sum_logprobs is None
    assert len(made["floor"].token_ids) == 40
    assert made["plain"].sum_logprobs is not None and made["plain"].sum_logprobs < 0

    reseeded = GenerationRequest(**{**asked[5].__dict__, "key": "other", "seed": asked[5].seed ^ 1})
    again = generate(feeder, [asked[5], reseeded])
    assert again["5"].token_ids.tolist() == made["5"].token_ids.tolist() and again["5"].text == made["5"].text
    assert again["other"].text != made["5"].text


def test_ends(feeder: Feeder, builder: PromptBuilder) -> None:
    """Stop texts, a loop, and a cap that is closed."""
    comma = ask(builder, "comma", 100, stop=(",", "."))
    kept = GenerationRequest(**{**comma.__dict__, "key": "kept", "include_stop": True})
    closing = Closing(reserve_tokens=40, phrase="", phrase_token_ids=np.empty(0, np.uint32))
    capped = ask(builder, "capped", 100, min_tokens=60, closing=closing)
    repeated = builder.encode("And so on and so forth it goes again and again. " * 24)
    loop = make_request("loop", repeated, sampling=SamplingConfig(temperature=0.0), max_tokens=150)
    made = generate(feeder, [comma, kept, capped, loop])
    assert made["comma"].finish_reason == made["kept"].finish_reason == "stop"
    assert made["kept"].text[-1] in ",." and made["kept"].text[:-1] == made["comma"].text
    assert made["capped"].forced and len(made["capped"].token_ids) <= 100
    assert (closed_of(made["capped"]) == "forced") == ends_sentence(made["capped"].text)
    assert made["loop"].finish_reason == "repetition" and len(made["loop"].token_ids) < 150


def test_a_special_token_stops_too(model: ModelConfig, builder: PromptBuilder) -> None:
    """It never shows in the text. A bias that is passed on makes it the only token there is."""
    start_id = builder.dialect.tokenizer.token_id("<|im_start|>")
    biased = dataclasses.replace(model, engine_args={"logit_bias": {str(start_id): 100.0}})
    feeder = Feeder(Engines(lambda: create_engine(biased)), name="small")
    try:
        made = generate(feeder, [ask(builder, "a", 20, stop=("<|im_start|>",))])["a"]
    finally:
        feeder.close()
    assert (made.text, made.token_ids.tolist(), made.finish_reason) == ("", [start_id], "stop")


def test_a_refused_request_fails_alone(feeder: Feeder, builder: PromptBuilder) -> None:
    ticket = feeder.ticket()
    ticket.submit(make_request("bad", np.full(5, 1 << 20, np.uint32), sampling=SamplingConfig(), max_tokens=5))
    ticket.submit(ask(builder, "good", 5))
    results = {result.request.key: result for result in ticket.drain()}
    bad = results["bad"]
    assert isinstance(bad, Failure) and bad.retries == 0 and "answered 400" in bad.error
    assert isinstance(results["good"], Completed)


def test_a_wrong_key_name_or_length(vllm_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(**fields: Any) -> str:
        right = {"model": SERVED, "api_key_env": KEY_VARIABLE, "timeout_s": 60, "max_wait_s": 60}
        pool = EndpointPool([vllm_url], **{**right, **fields})
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


def test_scores_are_those_of_the_model_itself(small_model: str, vllm_url: str) -> None:
    """Surprisal against `causal_lm` over several windows: 1e-3 nats at most. The entropy is a bound that grows."""
    texts = [topics["for"][:1500], "Größe, 大きさ and <|im_end|> as text.", "", topics["while"][:300]]
    windows = {"context_tokens": 160, "min_context": 60}
    local = make_scorer(DifficultyConfig(model=small_model, device="cpu", dtype="float32", **windows)).score(texts)
    entropy = []
    for top_logprobs in (0, 20):
        scorer = make_scorer(
            DifficultyConfig(
                scorer="endpoint",
                model=small_model,
                served_name=SERVED,
                urls=(vllm_url,),
                api_key_env=KEY_VARIABLE,
                top_logprobs=top_logprobs,
                **windows,
            )
        )
        assert isinstance(scorer, EndpointScorer)
        served = scorer.score(texts)
        scorer.close()
        for ours, theirs in zip(served, local, strict=True):
            assert ours.byte_ends.tolist() == theirs.byte_ends.tolist()
            np.testing.assert_allclose(ours.surprisal_nats, theirs.surprisal_nats, atol=1e-3, rtol=0)
            assert (ours.entropy_nats <= theirs.entropy_nats + 1e-3).all()
        entropy.append(np.concatenate([scores.entropy_nats for scores in served]))
    assert len(entropy[0]) > 400
    assert (entropy[0] <= np.log(2) + 1e-6).all() and (entropy[0] <= entropy[1] + 1e-3).all()
    true = np.concatenate([scores.entropy_nats for scores in local])
    assert entropy[1].sum() > 0.6 * true.sum()
