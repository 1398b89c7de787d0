"""The order of sending: by lengths that are learned, and prompts that begin alike together, at one engine."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pipeline import PipelineVisitor
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.lengths import PRIOR_GENERATIONS, REMEMBERED_GENERATIONS, LearnedLengths, measured_in
from augment.feeding.registry import Registry
from augment.feeding.tickets import Completed, Job
from augment.feeding.waiting import PREFILL_COST, Waiting, shared_tokens
from augment.feeding.worker import WorkOrder
from augment.ledger.reading import read_ledger
from augment.ledger.transforms import MissingSamples, encode_missing
from augment.transforms import ByDocument, GenerateMissing
from benchmarks.feeding_load import MODEL, Turn, make_load, run_ours
from benchmarks.prefixes import PrefixCache, learned_figures, load_of_documents, run
from benchmarks.prefixes_engine import WithoutGroups, alternating
from pipelines.beam_options import beam_options
from sharding.beam.shuffle import LocalShuffleOptions
from sharding.records.types import Request, sample_key
from tests.endpoint_server import SERVED, ScriptedServer
from tests.engine_sources import Engines
from tests.test_feeding import QUICK, ScriptedEngine, generation

NO_TOKENS = np.empty(0, np.uint32)


def asked(key: str, planned: float, *, kind: str = "", group: str = "", prompt: np.ndarray = NO_TOKENS) -> Any:
    return GenerationRequest(
        key=key,
        prompt_token_ids=prompt,
        max_tokens=1024,
        expected_tokens=planned,
        kind=kind,
        prefix_group=group,
    )


def job(*args: Any, **fields: Any) -> Job:
    return Job(asked(*args, **fields), None, cast(Any, None))


def _source(engine: ScriptedEngine) -> Engines:
    return Engines(lambda: engine)


def popped(waiting: Waiting, place: object = 0, slots: int = 1) -> str:
    return waiting.pop(place, slots).request.key


# --- learned lengths --------------------------------------------------------------------------------------------------


def test_a_mean_is_shrunk_to_the_plan() -> None:
    lengths = LearnedLengths([("deep", 200.0, 10_000)])
    lengths.begin_with([("deep", 5.0, 3), ("light", 40.0, 2)])
    shrunk = (PRIOR_GENERATIONS * 1000 + REMEMBERED_GENERATIONS * 200) / (PRIOR_GENERATIONS + REMEMBERED_GENERATIONS)
    assert lengths.expected("deep", 1000) == pytest.approx(shrunk), "what is known stays, and weighs so much at most"
    assert lengths.expected("light", 100) == pytest.approx((PRIOR_GENERATIONS * 100 + 80) / (PRIOR_GENERATIONS + 2))
    for _ in range(2000):
        lengths.note("light", 40)
        lengths.note("", 40)
    assert lengths.expected("light", 100) == pytest.approx(40, abs=1)
    assert lengths.expected("new", 100) == lengths.expected("", 100) == 100
    of_all = lengths.expected_of_all("light", 300, 3)
    assert of_all == pytest.approx(3 * lengths.expected("light", 100))


def test_what_waits_is_sent_by_what_was_learned_meanwhile() -> None:
    """Planned with 100 tokens the one kind takes 10: as soon as that is known, the other one goes first."""
    gate = threading.Event()

    class Gated(ScriptedEngine):
        async def start(self) -> None:
            await asyncio.get_running_loop().run_in_executor(None, gate.wait, 30)

    def made(request: GenerationRequest) -> Generation:
        tokens = 10 if request.kind == "chatty" else 60
        return Generation(**{**generation(request).__dict__, "token_ids": np.zeros(tokens, np.uint32)})

    engine = Gated(made, capacity=1)
    feeder = Feeder(Engines(lambda: engine), name="model", config=QUICK)
    ticket = feeder.ticket()
    for number in range(20):
        ticket.submit(asked(f"chatty {number}", 100, kind="chatty"))
        ticket.submit(asked(f"deep {number}", 60, kind="deep"))
    gate.set()
    results = list(ticket.drain())
    feeder.close()
    kinds = [key.split()[0] for key in engine.order]
    first = next(n for n in range(20) if (PRIOR_GENERATIONS * 100 + 10 * n) / (PRIOR_GENERATIONS + n) < 60)
    assert 0 < first < 20
    assert kinds == ["chatty"] * first + ["deep"] * 20 + ["chatty"] * (20 - first)
    assert len(results) == 40 and all(isinstance(result, Completed) for result in results)


def test_the_ledger_says_how_long_they_were(byte_tokenizer: str, tmp_path: Path) -> None:
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=512)
    load = make_load(model, tmp_path, tokenizer=byte_tokenizer, count=60, caps=(16, 64))
    ledger = str(tmp_path / "ledger")
    assert measured_in(ledger) == ()
    run_ours(load, ledger)
    rows = list(read_ledger(ledger))
    measured = {kind: (mean, number) for kind, mean, number in measured_in(ledger)}
    for request, _ in load.elements:
        made = load.planner.generation_request(request, sample_key(request.request_key, 0))
        tokens = [row.thought_tokens for row in rows if row.tier == request.tier]
        mean, number = measured[made.kind]
        assert mean == pytest.approx(np.mean(tokens)) and number == len(tokens)
    assert len(measured) == 2
    (tmp_path / "file").write_text("no ledger", encoding="utf-8")
    assert measured_in(str(tmp_path / "file")) == ()


def test_steps_of_recipes_are_no_lengths_of_runs(byte_tokenizer: str, tmp_path: Path) -> None:
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=2048)
    load = make_load(model, tmp_path, tokenizer=byte_tokenizer, count=4, caps=(256,), recipe="refine")
    run_ours(load, str(tmp_path / "ledger"))
    rows = list(read_ledger(str(tmp_path / "ledger")))
    ((kind, mean, number),) = measured_in(str(tmp_path / "ledger"))
    assert number == 4 < len(rows) and mean == np.mean([row.thought_tokens for row in rows if row.composed])
    assert kind == load.planner.kind(load.elements[0][0])


# --- prefix groups ----------------------------------------------------------------------------------------------------


def test_a_group_goes_to_one_engine_and_stays_together() -> None:
    waiting = Waiting()
    for number in range(60):  # the groups' requests come mixed, of lengths that come mixed too
        waiting.push(job(f"{number % 6}", 100 + number * 7 % 60, group=f"group {number % 6}"))
    sent: dict[str, list[str]] = defaultdict(list)
    for turn in range(40):  # until the end is near: what waits is as long as 20 requests
        place = "ab"[turn % 2]
        sent[place].append(popped(waiting, place))
    for keys in sent.values():
        assert [key for n, key in enumerate(keys) if n == 0 or keys[n - 1] != key] == list(dict.fromkeys(keys))
    assert not set(sent["a"]) & set(sent["b"])


def test_groups_go_by_their_longest_and_the_longest_of_a_group_first() -> None:
    waiting = Waiting()
    lengths = {"x": (10, 90, 50), "y": (80, 20, 40), "z": (100, 15, 60)}
    for number in range(3):
        for group, planned in lengths.items():
            waiting.push(job(f"{group}{planned[number]}", planned[number], group=group))
    keys = [popped(waiting) for _ in range(9)]
    assert keys[:5] == ["z100", "z60", "z15", "x90", "x50"]
    assert keys[5:] == ["y80", "y40", "y20", "x10"], "the end is near: the longest first, whatever its group"


def test_near_the_end_a_group_goes_on_where_that_saves_more_than_it_loses() -> None:
    document = np.arange(20_000, dtype=np.uint32)
    for shared, order in ((100, ["a", "long", "b"]), (8000, ["a", "b", "long"])):
        waiting = Waiting()
        waiting.push(job("a", 600, group="g", prompt=document[: shared + 1]))
        waiting.push(job("b", 400, group="g", prompt=document[:shared]))
        waiting.push(job("long", 500, prompt=document[::-1]))
        assert (PREFILL_COST * shared > 400) == (order[1] == "b")
        assert [popped(waiting, slots=64) for _ in range(3)] == order


def test_no_engine_idles_for_a_group() -> None:
    waiting = Waiting()
    for number in range(10):
        waiting.push(job(str(number), 100, group="the only one"))
    assert sorted(popped(waiting, "ab"[number % 2]) for number in range(10)) == sorted(map(str, range(10)))


def test_what_is_through_is_forgotten() -> None:
    """Jobs that are short and go with their group leave nothing behind, however many longer ones come."""
    waiting = Waiting()
    for number in range(5):
        waiting.push(job(f"stays {number}", 500, kind="light"))
    for number in range(2000):
        waiting.push(job("long", 900, kind="deep", group=str(number)))
        waiting.push(job("short", 2 + number % 5, kind="light", group=str(number)))
        assert [popped(waiting), popped(waiting)] == ["long", "short"]
    assert len(waiting) == len(waiting._groups) == 5
    assert sum(len(kind.fresh) for kind in waiting._kinds.values()) < 600


def test_samples_and_segments_of_a_document_are_one_group(byte_tokenizer: str) -> None:
    model = ModelConfig(engine="rehearsal", name="simulated", max_model_len=4096)
    load = load_of_documents(model, byte_tokenizer, 2)
    made = [load.planner.generation_request(request, request.request_key) for request, _ in load.elements]
    assert len({request.prefix_group for request in made}) == 2 and len({request.kind for request in made}) > 1
    by_group = defaultdict(list)
    for request in made:
        by_group[request.prefix_group].append(request.prompt_token_ids)
    one, other = by_group.values()
    assert min(shared_tokens(a, b) for a in one[1:] for b in other) < max(shared_tokens(a, b) for a in one for b in one)


def test_a_group_goes_to_one_replica_through_the_feeder() -> None:
    gate = threading.Event()

    class Gated(ScriptedEngine):
        async def start(self) -> None:
            await asyncio.get_running_loop().run_in_executor(None, gate.wait, 30)

    engines = [Gated(lambda request: None, capacity=2) for _ in range(2)]
    feeder = Feeder(*map(_source, engines), name="model", config=QUICK)
    ticket = feeder.ticket()
    for number in range(200):
        ticket.submit(asked(f"{number % 20}/{number}", 50, group=f"group {number % 20}"))
    gate.set()
    assert len(list(ticket.drain())) == 200
    feeder.close()
    groups = [[key.split("/")[0] for key in engine.order] for engine in engines]
    assert all(groups), "both have work"
    assert len(set(groups[0]) & set(groups[1])) <= 1, "but for the last group, which no engine waits for"


@pytest.mark.parametrize(("groups", "homes"), [(True, [0, 6]), (False, [3, 3])])
def test_servers_of_one_model_get_a_document_each_or_by_their_room(
    byte_tokenizer: str, groups: bool, homes: list[int]
) -> None:
    """Each request is through before the next one comes, so that room alone would give them in turn."""
    servers = [ScriptedServer() for _ in homes]
    urls = tuple(server.url for server in servers)
    model = ModelConfig(engine="endpoint", name=byte_tokenizer, served_name=SERVED, urls=urls, max_model_len=4096)
    registry = Registry()
    try:
        feeder = registry.acquire(model, FeedingConfig(prefix_groups=groups))
        ticket = feeder.ticket()
        for number in range(6):
            ticket.submit(asked(str(number), 50, group="a document", prompt=np.arange(5, dtype=np.uint32)))
            assert len(list(ticket.drain())) == 1
        registry.release(feeder)
        registry.close_all()
    finally:
        for server in servers:
            server.stop()
    assert sorted(len(server.bodies) for server in servers) == homes


@pytest.mark.parametrize(("said", "together"), [({}, True), ({"enable_prefix_caching": False}, False)])
def test_an_engine_without_a_cache_gets_no_groups(said: dict[str, Any], together: bool) -> None:
    registry = Registry()
    feeder = registry.acquire(ModelConfig(engine="vllm", name="m", engine_args=said), FeedingConfig())
    assert feeder._config.prefix_groups is together
    registry.release(feeder)
    registry.close_all()


@pytest.mark.parametrize("by_prefix", [True, False])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_request_goes_once_whatever_is_learned(by_prefix: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = LearnedLengths()
    waiting = Waiting(lengths, by_prefix=by_prefix)
    count = int(random.integers(0, 80))
    left = [
        job(str(n), int(random.integers(1, 500)), kind="abc"[n % 3], group=("", "g", "h", "i")[random.integers(4)])
        for n in range(count)
    ]
    sent: list[str] = []
    while left or waiting:
        if left and random.random() < 0.55:
            waiting.push(left.pop())
        elif waiting:
            one = waiting.pop(int(random.integers(3)), int(random.integers(1, 8)))
            if random.random() < 0.2 and not one.retries:
                one.retries += 1
                waiting.push(one)  # failed, and tried again
                continue
            lengths.note(one.request.kind, int(random.integers(1, 900)))
            sent.append(one.request.key)
    assert sorted(sent) == sorted(map(str, range(count))) and len(waiting) == 0


# --- on the way to the queue ------------------------------------------------------------------------------------------

PASSED: list[str] = []


def note(element: tuple[Request, list[int]]) -> tuple[Request, list[int]]:
    """Notes the document of a request. Beam finds it by name, so that it is this process's list."""
    PASSED.append(element[0].doc_id)
    return element


def test_requests_come_document_by_document_and_are_the_same(byte_tokenizer: str, tmp_path: Path) -> None:
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=4096)
    load = load_of_documents(model, byte_tokenizer, 5)
    mixed = [request.doc_id for request, _ in load.elements]
    assert changes(mixed) > 3 * 5, "by the hash of their keys"
    options = beam_options([])
    options.view_as(LocalShuffleOptions).local_shuffle_folder = str(tmp_path / "shuffle")
    PASSED.clear()

    def same(found: list[tuple[Request, list[int]]]) -> None:
        assert sorted(map(encode_missing, found)) == sorted(map(encode_missing, load.elements))

    with beam.Pipeline(options=options) as pipeline:
        made = pipeline | beam.Create(load.elements, reshuffle=False).with_output_types(MissingSamples)
        assert_that(made | ByDocument(1, {}) | beam.Map(note), same)
    assert changes(PASSED) == 4 and sorted(PASSED) == sorted(mixed)


def changes(documents: list[str]) -> int:
    """How often another document follows."""
    return sum(one != other for one, other in itertools.pairwise(documents))


@pytest.mark.parametrize(
    ("groups", "arguments", "by_document"),
    [(True, {}, True), (False, {}, False), (True, {"enable_prefix_caching": False}, False)],
)
def test_only_where_prompts_that_begin_alike_are_kept_together_another_shuffle_is_paid(
    byte_tokenizer: str, tmp_path: Path, groups: bool, arguments: dict[str, Any], by_document: bool
) -> None:
    model = ModelConfig(engine="vllm", name="m", max_model_len=4096, engine_args=arguments)
    planner = dataclasses.replace(load_of_documents(model, byte_tokenizer, 0).planner)
    planner._decides[MODEL] = {}
    options = beam_options([])
    for folder, wanted in ((str(tmp_path), by_document), ("", False)):
        options.view_as(LocalShuffleOptions).local_shuffle_folder = folder
        pipeline = beam.Pipeline(options=options)
        missing = pipeline | beam.Create([], reshuffle=False).with_output_types(MissingSamples)
        order = WorkOrder(run_id="r", began_ms=0, ledger_url=str(tmp_path / "ledger"), flush_rows=1, flush_seconds=1)
        missing | GenerateMissing(planner, FeedingConfig(prefix_groups=groups), order)
        steps = [step.full_label for step in steps_of(pipeline)]
        assert any("by document" in step for step in steps) is wanted


def steps_of(pipeline: beam.Pipeline) -> list[Any]:
    found: list[Any] = []

    class Visitor(PipelineVisitor):
        def enter_composite_transform(self, transform_node: Any) -> None:
            found.append(transform_node)

    pipeline.visit(Visitor())
    return found


# --- what comes of it -------------------------------------------------------------------------------------------------


def test_results_know_nothing_of_the_order(byte_tokenizer: str, tmp_path: Path) -> None:
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=4096, replicas=2)
    load = load_of_documents(model, byte_tokenizer, 6)
    columns = ["key", "request_key", "sample", "text", "token_ids", "thought_tokens", "finish_reason", "closed"]
    found = []
    for groups in (True, False):
        ledger = str(tmp_path / f"ledger {groups}")
        run_ours(load, ledger, feeding=FeedingConfig(prefix_groups=groups))
        rows = sorted(read_ledger(ledger, columns=columns), key=lambda row: row.key)
        found.append([(row.key, row.text, row.token_ids.tolist(), row.closed) for row in rows])
    assert found[0] == found[1] and len(found[0]) == sum(len(samples) for _, samples in load.elements)


def test_a_cache_knows_what_it_has_read_last() -> None:
    cache = PrefixCache(160)
    prompt = np.arange(100, dtype=np.uint32)
    assert cache.read(prompt) == 100 and cache.read(prompt) == 100 - 96, "whole blocks of 16 tokens alone"
    assert cache.read(np.concatenate([prompt[:40], prompt[:60]])) == 100 - 32, "as far as they begin alike"
    assert cache.read(prompt[::-1].copy()) == 100 and cache.read(prompt) == 100, "it has been forgotten"


def test_groups_are_read_once_where_the_cache_is_small(byte_tokenizer: str) -> None:
    settings: dict[str, Any] = {"documents": 6, "slots": 4, "step_s": 0.0002, "cache_tokens": 10_000}
    grouped, by_length = (run(byte_tokenizer, prefix_groups=groups, **settings) for groups in (True, False))
    assert grouped["share_read"] < 0.8 * by_length["share_read"]
    settings = {"documents": 24, "slots": 4, "step_s": 0.0002, "cache_tokens": 5_000, "max_waiting": 48}
    by_key, by_document = (run(byte_tokenizer, prefix_groups=True, through_files=f, **settings) for f in (False, True))
    assert by_document["share_read"] < 0.9 * by_key["share_read"], "also where not all of a document's requests wait"


def test_orders_take_turns_the_other_way_round_each_time() -> None:
    taken: list[tuple[str, int]] = []

    def turn(side: str, number: int) -> Turn:
        taken.append((side, number))
        return Turn(tokens=len(taken), elapsed_s=1.0)

    turns = alternating({side: functools.partial(turn, side) for side in "ab"}, 3)
    assert taken == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [[one.tokens for one in turns[side]] for side in "ab"] == [[1, 4, 5], [2, 3, 6]]


def test_without_groups_requests_are_the_same_otherwise(byte_tokenizer: str) -> None:
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=4096)
    load = load_of_documents(model, byte_tokenizer, 2, segments=3, samples=1, caps=(16, 32), to_the_cap=True)
    assert len(load.elements) == 2 * 3
    without = WithoutGroups.of(load.planner)
    for request, samples in load.elements:
        grouped, alone = (planner.generation_request(request, "key") for planner in (load.planner, without))
        one, other = ({k: v for k, v in vars(each).items() if k != "prompt_token_ids"} for each in (grouped, alone))
        assert one.pop("prefix_group") and not other.pop("prefix_group") and one == other
        assert np.array_equal(grouped.prompt_token_ids, alone.prompt_token_ids)
        assert samples == [0] and alone.min_tokens == alone.max_tokens in (16, 32) and not alone.repetition_detection


def test_learned_lengths_shorten_a_run_whose_plan_misleads() -> None:
    figures = learned_figures(rounds=(6, 12), trials=10)
    assert figures.pop("learned_ratio_where_right") > 0.99
    assert min(figures.values()) > 1.05
