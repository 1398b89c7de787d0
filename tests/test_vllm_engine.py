"""The vLLM engine with the real small model: one engine for the module, through the feeder as in a run."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from augment import engines
from augment.engines import reaper
from augment.engines.config import ModelConfig, SamplingConfig
from augment.engines.protocol import GenerationFailed, GenerationRequest, RequestRejected
from augment.engines.vllm import VllmEngine
from augment.engines.vllm_settings import engine_arguments, idle_devices, slots_of
from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.tickets import Completed, Failure, Result
from augment.requests.closing import ClosingConfig, closed_of, make_closing
from augment.requests.keys import SPEED_ONLY, make_request
from augment.requests.prompts import PromptBuilder, prompt_builder
from augment.traces import ends_sentence
from sharding.errors import MillError, RequestError
from tests.engine_sources import Engines

pytestmark = pytest.mark.model

MAX_MODEL_LEN = 512
SEGMENTS = (
    "The pop method removes the last item of a list and returns it. On an empty list it raises an IndexError.",
    "Water boils when the pressure of its vapour equals that around it, so on a mountain it boils below 100 degrees.",
    "A prime number has exactly two divisors. One is not a prime, and two is the only even one.",
)


@pytest.fixture(scope="module")
def model(small_model: str) -> ModelConfig:
    return ModelConfig(
        engine="vllm",
        name=small_model,
        max_model_len=MAX_MODEL_LEN,
        engine_args={"max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 29},
    )


@pytest.fixture(scope="module")
def feeder(model: ModelConfig) -> Iterator[Feeder]:
    feeder = registry.acquire(model, FeedingConfig(backoff_s=0.1))
    yield feeder
    registry.release(feeder)
    registry.close_all()


@pytest.fixture(scope="module")
def builder(model: ModelConfig) -> PromptBuilder:
    return prompt_builder(model, "brief")


def generate(feeder: Feeder, requests: list[GenerationRequest]) -> dict[str, Result]:
    ticket = feeder.ticket()
    for request in requests:
        ticket.submit(request)
    return {result.request.key: result for result in ticket.drain()}


def ask(builder: PromptBuilder, key: str, max_tokens: int, **fields: Any) -> GenerationRequest:
    prompt = builder.build(SEGMENTS[len(key) % 3], max_tokens=max_tokens)
    return make_request(key, prompt.token_ids, sampling=SamplingConfig(), max_tokens=max_tokens, **fields)


def done(result: Result) -> Completed:
    assert isinstance(result, Completed), result
    return result


def test_caps_seeds_and_batches(feeder: Feeder, builder: PromptBuilder) -> None:
    requests = [ask(builder, f"{'x' * (i % 3)}{i}", 6 + 3 * i) for i in range(8)]
    together = generate(feeder, requests)
    assert len(together) == 8
    for request in requests:
        made = done(together[request.key]).generation
        assert 0 < len(made.token_ids) <= request.max_tokens
        assert (made.finish_reason == "length") == (len(made.token_ids) == request.max_tokens)
        assert made.sum_logprobs is not None and made.sum_logprobs < 0
        assert made.token_ids.dtype == np.uint32
        assert "<|im_" not in made.text
    assert {done(r).generation.finish_reason for r in together.values()} >= {"length"}

    alone = done(generate(feeder, [requests[5]])["xx5"]).generation
    assert alone.token_ids.tolist() == done(together["xx5"]).generation.token_ids.tolist()
    assert alone.text == done(together["xx5"]).generation.text

    other = ask(builder, "xx5", 21)
    reseeded = GenerationRequest(**{**other.__dict__, "seed": other.seed ^ 1})
    assert done(generate(feeder, [reseeded])["xx5"]).generation.text != alone.text


def test_floor_and_stop(feeder: Feeder, builder: PromptBuilder) -> None:
    floor = ask(builder, "floor", 16, min_tokens=16)
    comma = ask(builder, "comma", 200, stop=(",", "."))
    kept = GenerationRequest(**{**comma.__dict__, "key": "kept", "include_stop": True})
    results = generate(feeder, [floor, comma, kept])
    assert len(done(results["floor"]).generation.token_ids) == 16
    stopped, with_stop = done(results["comma"]).generation, done(results["kept"]).generation
    assert stopped.finish_reason == with_stop.finish_reason == "stop"
    assert not set(",.") & set(stopped.text)
    assert with_stop.text[-1] in ",." and with_stop.text[:-1] == stopped.text


def test_a_special_token_stops_too(feeder: Feeder, builder: PromptBuilder) -> None:
    """Special tokens never show in the text, so a stop text that names one needs its id."""
    generate(feeder, [ask(builder, "warm", 2)])
    params = feeder._replicas[0].engine._sampling_params(ask(builder, "a", 9, stop=("<|endoftext|>", "</think>")))
    assert params.stop_token_ids == [builder.dialect.tokenizer.token_id("<|endoftext|>")]


def test_loops_are_ended_early(feeder: Feeder, builder: PromptBuilder) -> None:
    loop = builder.encode("la " * 150)
    sampling = SamplingConfig(temperature=0.0)
    seen = make_request("a", loop, sampling=sampling, max_tokens=90)
    unseen = make_request(
        "b", loop, sampling=SamplingConfig(temperature=0.0, repetition_detection=False), max_tokens=90
    )
    results = generate(feeder, [seen, unseen])
    looped, full = done(results["a"]).generation, done(results["b"]).generation
    assert looped.finish_reason == "repetition" and len(looped.token_ids) < len(full.token_ids)
    assert closed_of(looped) == "cut"


def test_a_request_that_does_not_fit_fails_alone(feeder: Feeder, builder: PromptBuilder) -> None:
    long = make_request("long", np.full(500, 100, np.uint32), sampling=SamplingConfig(), max_tokens=13)
    fits = make_request("fits", np.full(499, 100, np.uint32), sampling=SamplingConfig(), max_tokens=13)
    empty = make_request("empty", np.empty(0, np.uint32), sampling=SamplingConfig(), max_tokens=5)
    bad = make_request("bad", np.full(5, 1 << 20, np.uint32), sampling=SamplingConfig(), max_tokens=5)
    results = generate(feeder, [long, fits, empty, bad])
    done(results["fits"])
    for key in ("long", "empty", "bad"):
        failed = results[key]
        assert isinstance(failed, Failure) and failed.retries == 0, key
    failed = results["long"]
    assert isinstance(failed, Failure) and "500 tokens" in failed.error and "512" in failed.error
    assert feeder.error is None


EMOJI = "Write 🙂🙃😉😊😇🥰😍🤩 four times.", "把这句话重复三遍：饕餮龘靐齉爩魑魅魍魉。"


@pytest.mark.parametrize("text", EMOJI)
def test_a_closing_that_begins_within_a_character(feeder: Feeder, builder: PromptBuilder, text: str) -> None:
    """vLLM 0.32 gives the whole prompt back where a prompt ends within a character; the trace is what its ids say."""
    tokenizer = builder.dialect.tokenizer
    prompt = builder.build(text, max_tokens=200).token_ids
    begun = tokenizer.encode("🙂🙃饕餮🙂🙃饕餮").astype(np.uint32)
    closing = make_closing(ClosingConfig(reserve_tokens=12), 80, np.empty(0, np.uint32))
    sampling = SamplingConfig(temperature=0.0, repetition_detection=False)
    requests = [
        make_request(
            f"cut {cap}", np.concatenate([prompt, begun]), sampling=sampling, max_tokens=cap + 12, closing=closing
        )
        for cap in range(1, 17)
    ]
    results = generate(feeder, requests)
    within = 0
    for request in requests:
        made = done(results[request.key]).generation
        within += made.unseen_tokens > 0
        assert made.text == tokenizer.decode(made.token_ids[~np.isin(made.token_ids, sorted(tokenizer.special_ids))])
        assert "helpful AI assistant" not in made.text and made.paid_tokens <= request.max_tokens
    assert within, "none of the caps was within a character"


def test_a_generation_at_its_cap_is_closed(feeder: Feeder, builder: PromptBuilder) -> None:
    closing = make_closing(ClosingConfig(reserve_tokens=48), 192, builder.encode(""))
    keys = [f"{i}" for i in range(6)]
    results = generate(feeder, [ask(builder, key, 96, min_tokens=48, closing=closing) for key in keys])
    generations = [done(results[key]).generation for key in keys]
    assert all(len(made.token_ids) <= 96 for made in generations)
    forced = [made for made in generations if closed_of(made) == "forced"]
    assert forced and all(ends_sentence(made.text) for made in forced)
    for made in generations:  # the texts of the two calls fit together as their tokens do
        decoded = builder.dialect.tokenizer.decode(made.token_ids)
        assert decoded.replace("<|im_end|>", "").startswith(made.text)


@pytest.mark.parametrize(
    ("engine_args", "slots"),
    [
        ({"max_num_seqs": 16}, 16),
        ({"max_num_seqs": 16, "data_parallel_size": 8}, 128),
        ({"max_num_seqs": 16, "data_parallel_size": 8, "max_num_active_seqs": 10}, 80),
        ({"max_num_seqs": 16, "data_parallel_size": 8, "data_parallel_size_local": 2}, 128),
        (
            {
                "max_num_seqs": 16,
                "data_parallel_size": 8,
                "data_parallel_size_local": 2,
                "data_parallel_hybrid_lb": True,
                "data_parallel_start_rank": 0,
            },
            32,
        ),
    ],
)
def test_capacity_counts_all_replicas(model: ModelConfig, engine_args: dict[str, Any], slots: int) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    several = dataclasses.replace(model, engine_args=engine_args)
    config = AsyncEngineArgs(**engine_arguments(several, on_cpu=True)).create_engine_config()
    assert slots_of(config) == slots
    if "max_num_active_seqs" not in engine_args and "data_parallel_hybrid_lb" not in engine_args:
        assert VllmEngine(several).capacity == slots + slots // 4, "what is taken for it before the engine has started"


def test_accelerators_without_work_are_told_of(model: ModelConfig) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    def of(**engine_args: Any) -> Any:
        arguments = engine_arguments(dataclasses.replace(model, engine_args=engine_args), on_cpu=True)
        return AsyncEngineArgs(**arguments).create_engine_config()

    said = idle_devices(of(), 8)
    assert said is not None and "1 of 8" in said and "replicas: 8" in said
    said = idle_devices(of(tensor_parallel_size=3), 8)
    assert said is not None and "3 of 8" in said and "replicas: 2" in said
    assert idle_devices(of(), 1) is None
    assert idle_devices(of(data_parallel_size=8), 8) is None
    assert idle_devices(of(tensor_parallel_size=3), 5) is None


class Upset:
    """In the place of an AsyncLLM: each answer ends with an error, or without a word."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        if self._error is not None:
            raise self._error
        return
        yield


def caused_by(cause: Exception) -> Exception:
    from vllm.v1.engine.exceptions import EngineGenerateError

    error = EngineGenerateError()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("make", "expected", "said"),
    [
        (lambda: None, GenerationFailed, "without an answer"),
        (lambda: caused_by(OSError("socket gone")), GenerationFailed, "socket gone"),
        (lambda: caused_by(TypeError("not 2")), RequestRejected, "not 2"),
        (lambda: ValueError("too long"), RequestRejected, "too long"),
        (lambda: TypeError("ours"), TypeError, "ours"),
    ],
    ids=["no answer", "may pass", "stays", "refused", "a mistake of ours"],
)
def test_what_may_pass_is_tried_again(
    model: ModelConfig, builder: PromptBuilder, make: Callable[[], Any], expected: type[Exception], said: str
) -> None:
    engine = VllmEngine(model)
    engine._engine = Upset(make())
    with pytest.raises(expected, match=said):
        asyncio.run(engine.generate(ask(builder, "a", 5)))


def test_the_arguments_that_only_change_speed_are_vllm_s() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert sorted(SPEED_ONLY["vllm"] - known) == []


def test_wrong_engine_arguments(model: ModelConfig) -> None:
    with pytest.raises(ValueError, match="max_model_len"):
        ModelConfig(engine="vllm", name="x", engine_args={"max_model_len": 5})
    for change, error, message in (
        ({"engine_args": {"no_such": 1}}, RequestError, "engine_args.no_such"),
        ({"name": "/nowhere/model"}, MillError, "/nowhere/model"),
    ):
        broken = Feeder(
            Engines(
                lambda change=change: engines.create_engine(
                    ModelConfig(**{"engine": "vllm", "name": model.name, **change})
                )
            ),
            name="broken",
        )
        ticket = broken.ticket()
        ticket.submit(make_request("a", np.arange(5), sampling=SamplingConfig(), max_tokens=5))
        with pytest.raises(MillError, match=message) as caught:
            list(ticket.drain())
        assert isinstance(caught.value.__cause__, error)
        broken.close()


def test_an_interrupted_generation_is_gone_on_with_as_if_nothing_had_been(
    feeder: Feeder, builder: PromptBuilder
) -> None:
    requests = [dataclasses.replace(ask(builder, key, 48, min_tokens=48), temperature=0.0) for key in ("one", "two")]
    undisturbed = generate(feeder, requests)
    ticket, engine = feeder.ticket(), feeder._replicas[0].engine
    assert isinstance(engine, VllmEngine)
    for request in requests:
        ticket.submit(request)
    under_way = engine._engine.output_processor.request_states
    end = time.monotonic() + 60
    while (
        not (lengths := [one.detokenizer.num_output_tokens() for one in list(under_way.values())]) or min(lengths) < 9
    ):
        assert time.monotonic() < end
        time.sleep(0.01)
    asyncio.run_coroutine_threadsafe(engine.interrupt(), feeder._loop).result(60)
    engine._interrupted = False  # it goes on here, where another run would
    for result in ticket.drain():
        made, whole = done(result).generation, done(undisturbed[result.request.key]).generation
        assert (made.continued, result.retries) == (1, 1)
        assert made.token_ids.tolist() == whole.token_ids.tolist() and made.text == whole.text
        assert made.paid_tokens == 48 and made.finish_reason == "length"


def test_a_killed_engine_is_replaced_and_the_last_leaves_nothing_behind(feeder: Feeder, builder: PromptBuilder) -> None:
    """Last in the module: ends the engine."""
    generate(feeder, [ask(builder, "warm", 2)])
    engine = feeder._replicas[0].engine
    core = [process for process in multiprocessing.active_children() if "EngineCore" in process.name]
    marked = {p.pid for p in reaper.marked_processes(engine._mark)}
    # What other tests of this process have left running is not the engine's.
    others = {p.pid for p in psutil.Process().children(recursive=True)} - marked
    assert core and {p.pid for p in reaper.marked_processes(engine._mark)} >= {p.pid for p in core}
    ticket = feeder.ticket()
    for i in range(24):
        ticket.submit(ask(builder, str(i), 24, min_tokens=24))
    core[0].kill()
    results = list(ticket.drain())
    assert len(results) == 24 and all(isinstance(result, Completed) for result in results)
    assert feeder.stats().restarts == 1
    assert reaper.marked_processes(engine._mark) == []

    mark = feeder._replicas[0].engine._mark
    assert mark != engine._mark and reaper.marked_processes(mark)
    registry.close_all()
    assert reaper.marked_processes(mark) == []
    children = [p for p in psutil.Process().children(recursive=True) if p.pid not in others]
    left = [p.cmdline() for p in children if p.status() != psutil.STATUS_ZOMBIE]
    # One without a command line is ending at this moment; the standard library's own end with this process.
    servers = ("resource_tracker", "multiprocessing.forkserver")
    assert not [line for line in left if line and not any(server in " ".join(line) for server in servers)]
