"""Contraction: prompts as long in the middle of a book as on its first pages, and no call of it made twice."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from augment.contexts.contractor import Contracted, Contractor
from augment.engines.protocol import Generation, GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import registry, worker
from augment.ledger.reading import read_ledger
from augment.recipes.contracting import CONTRACTION_STEP
from augment.requests.contexts import Contexts
from augment.requests.contraction import contraction_request
from augment.traces import answer_of
from difficulty.budget.prices import ModelPrice
from difficulty.budget.tiers import BudgetConfig, TierConfig
from pipelines.joints import Choices, holdback_of, plan_budget, trace_planner
from pipelines.plan import make_plan as plan
from pipelines.plan.measured import budget_section
from pipelines.run import mill
from pipelines.sample_text import topic_documents
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.beam.part_join import scored_documents
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Quarantined, Request, ScoredSegment
from sharding.storage import manifest
from tests.endpoint_server import SERVED, ScriptedServer, completion
from tests.recipe_jobs import FallingEngine, made, order_in

TIERS: list[dict[str, Any]] = [
    {"name": "skip"},
    {"name": "plain", "model": "pretend", "prompt": "brief", "max_tokens": 48},
    {"name": "short", "model": "pretend", "prompt": "expert", "max_tokens": 64, "context": "contraction"},
]
MODELS = {name: {"engine": "rehearsal", "name": name} for name in ("pretend", "cheap")}


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    source = write_jsonl(
        [{"id": str(i), "text": f"text {i} of many words and {i * i} numbers. " * (5 + 9 * i)} for i in range(5)]
    )
    budget = {
        "policy": "uniform",
        "thinking_tokens_per_source_token": 2,
        "tiers": TIERS,
        "contraction_model": "cheap",
        "contraction_tokens": 64,
    }
    return rehearsal_config(source, models=MODELS, budget=budget, ledger={"flush_seconds": 0.2})


def served(server: ScriptedServer, tokenizer: str, *, contraction_tokens: int) -> dict[str, Any]:
    """Models and budget of a run whose one tier shows contractions, both by one server."""
    return {
        "models": {"m": {"engine": "endpoint", "name": tokenizer, "served_name": SERVED, "urls": [server.url]}},
        "budget": {
            "policy": "fixed",
            "fixed_tier": "short",
            "thinking_tokens_per_source_token": 50,
            "tiers": [{"name": "short", "model": "m", "prompt": "brief", "max_tokens": 32, "context": "contraction"}],
            "contraction_model": "m",
            "contraction_tokens": contraction_tokens,
        },
    }


def requests(output: str) -> list[Request]:
    made = manifest.require(output, "augment")
    return [r for url in manifest.file_urls(output, made, "requests") for r in storage.read_records(url, Request)]


def test_documents_are_contracted_up_to_the_last_segment_that_shows_it_and_nothing_is_bought_twice(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    config = from_mapping(tree)
    done = mill(config, stages=["score", "augment"])
    rows = list(read_ledger(config.ledger_url))
    calls = [row for row in rows if row.step == CONTRACTION_STEP]
    assert {row.model for row in calls} == {"cheap"} and len({row.key for row in calls}) == len(calls)
    needed = {r.doc_id: 0 for r in requests(config.output)}
    for request in requests(config.output):
        if request.tier == "short":
            needed[request.doc_id] = max(needed[request.doc_id], request.segment_index)
    found = {doc: sum(row.segment_id == f"{doc}#0" for row in calls) for doc in needed}
    assert found == needed and sum(needed.values()) == len(calls) > 10
    keys = {row.key for row in calls}
    assert all(set(row.made_from) <= keys and len(row.made_from) <= 1 for row in calls)
    counts = done["augment"].counts
    assert counts["contractions_now"] == len(calls) and "contractions_found" not in counts
    assert counts["contraction_tokens_now"] == sum(row.thought_tokens for row in calls)
    assert counts["contraction_prompt_tokens_now"] == (read := sum(row.prompt_tokens for row in calls)) > 0
    assert counts["thought_tokens"] == sum(row.thought_tokens for row in rows if not row.step)

    again = from_mapping({**tree, "output": str(tmp_path / "again"), "ledger": {"path": config.ledger_url}})
    repeated = mill(again)["augment"].counts
    card = (Path(again.output) / "README.md").read_text(encoding="utf-8")
    assert f"{len(calls):,} contractions by `cheap`, of at most 64 tokens each" in card
    assert f"made from {read:,} tokens of prompts" in card
    assert re.search(r"\| short \| contraction \| [\d,]+ \|", card) and re.search(r"\| plain \| full \| ", card)
    assert repeated["generated"] == 0 and repeated["contractions_found"] == len(calls)
    assert "contractions_now" not in repeated and len(list(read_ledger(config.ledger_url))) == len(rows)


def test_the_plan_counts_contractions_and_keeps_to_the_budget(tree: dict[str, Any]) -> None:
    config = from_mapping(tree)
    told = plan(config)
    done = mill(config, stages=["score", "augment"])
    scored, augmented = done["score"].counts, done["augment"]
    most = 64 * (scored["segments"] - scored["documents"])
    assert told["augment"]["contraction"]["model"] == "cheap"
    assert told["augment"]["contraction"]["tokens_out"]["value"] == most
    read = sum(row.prompt_tokens for row in read_ledger(config.ledger_url) if row.step == CONTRACTION_STEP)
    asked = told["augment"]["contraction"]["tokens_in"]["value"]
    assert read <= asked < 2 * told["augment"]["tokens_in"]["value"] and asked < told["augment"]["tokens_in"]["value"]
    target = augmented.facts["target_spend"]
    assert target == 2 * scored["source_tokens"] == told["budget"]["target"]
    assert (
        augmented.facts["planned_spend"] <= target * 1.01 and augmented.facts["planned_tokens"] <= target - most * 0.99
    )
    assert any("kept back for contractions" in warning for warning in augmented.facts["warnings"])
    spent = augmented.counts["thought_tokens"] + augmented.counts["contraction_tokens_now"]
    assert augmented.counts["contraction_tokens_now"] <= most and spent <= target


def test_a_pilot_contracts_what_the_run_then_finds(tree: dict[str, Any]) -> None:
    config = from_mapping({**tree, "select": {"value": "length"}})
    mill(config, stages=["score"])
    plan(config, pilot=8)
    piloted = {row.key for row in read_ledger(config.ledger_url)}
    contracted = [row for row in read_ledger(config.ledger_url) if row.step == CONTRACTION_STEP]
    counts = mill(config, stages=["augment"])["augment"].counts
    assert contracted and counts["contractions_found"] == len(contracted)
    keys = [row.key for row in read_ledger(config.ledger_url)]
    assert len(keys) == len(set(keys)) and piloted < set(keys)
    assert counts["found"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contraction_model": "nobody"}, "budget.contraction_model: 'nobody' is not one of models: cheap, pretend"),
        ({"contraction_model": None}, "tier short shows a contraction: name the model"),
        ({"contraction_tokens": 8}, "budget.contraction_tokens.*greater than or equal to 64"),
        ({"contraction_tokens": 2048}, "budget.contraction_tokens: 2048 leaves no room in models.cheap.max_model_len"),
        ({"tiers": TIERS[:2]}, "no tier shows a contraction"),
        ({"tiers": [{"name": "skip", "context": "contraction"}]}, "tier skip has context but no model"),
    ],
)
def test_contractions_that_can_not_be_are_refused(tree: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    models = {**MODELS, "cheap": {**MODELS["cheap"], "max_model_len": 4096}}
    with pytest.raises(RequestError, match=said):
        from_mapping({**tree, "models": models, "budget": {**tree["budget"], **changes}})


def test_a_budget_that_contractions_may_take_whole_is_refused(tree: dict[str, Any]) -> None:
    tree["budget"] |= {"thinking_tokens_per_source_token": 0.2, "contraction_tokens": 128}
    with pytest.raises(RequestError, match=r"0\.2 may go on contractions alone, which take up to .*raise it above"):
        mill(from_mapping(tree), stages=["score", "augment"])


def test_a_budget_that_tiers_can_not_take_says_what_was_kept_back(tree: dict[str, Any]) -> None:
    tree["budget"] |= {"thinking_tokens_per_source_token": 90}
    with pytest.raises(
        RequestError, match=r"can't be spent on .*\(all of this without .* kept back for contractions\)"
    ):
        mill(from_mapping(tree), stages=["score", "augment"])


@pytest.mark.parametrize(
    ("unit", "spend"),
    [
        ({"thinking_tokens": 10_000}, 40 * 64),
        ({"dollars": 9.0}, 40 * 64 * 5 / 1e6),
        ({"gpu_hours": 2.0}, 40 * 64 / 7200),
    ],
)
def test_contractions_are_priced_as_their_model_is(unit: dict[str, Any], spend: float) -> None:
    tiers = tuple(TierConfig(**tier) for tier in TIERS)
    budget = BudgetConfig(**unit, tiers=tiers, contraction_model="cheap", contraction_tokens=64)
    prices = {"cheap": ModelPrice(dollars_per_million_tokens=5.0, tokens_per_gpu_second=2.0)}
    assert budget.contraction_spend(50, 10, prices) == pytest.approx(spend)
    assert budget.contraction_spend(10, 10, prices) == 0.0
    if "thinking_tokens" not in unit:
        with pytest.raises(RequestError, match=r"models\.cheap\..* not set, but a budget in .* for contractions"):
            budget.contraction_spend(50, 10, {})


def test_without_contractions_the_manifest_says_nothing_of_them(tree: dict[str, Any]) -> None:
    tree["budget"] = {"policy": "uniform", "thinking_tokens_per_source_token": 2, "tiers": TIERS[:2]}
    section = budget_section(from_mapping(tree).budget)
    assert not [key for key in section if "contraction" in key] and "context" not in section["tiers"][1]


def test_the_prompt_stays_as_long_in_a_document_of_any_length(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    """A document of 200,000 characters, by a scripted server whose contractions are as long as allowed."""
    tokenizer = load_tokenizer(byte_tokenizer)
    sizes: list[int] = []

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.decode(np.array(body["prompt"], np.uint32))
        contracts = "How it goes on:" in prompt
        if contracts:
            sizes.append(len(body["prompt"]))
        return completion(body, text="so far. " * 24 if contracts else "a thought.")

    text = "".join(f"Line {i:05d} of a long text, all lines of one length.\n" for i in range(4000))
    assert len(text) >= 200_000
    server = ScriptedServer(answer)
    try:
        by_server = served(server, byte_tokenizer, contraction_tokens=128)
        tree = rehearsal_config(write_jsonl([{"id": "long", "text": text}]), **by_server)
        tree["difficulty"]["segment_tokens"] = 512
        config = from_mapping(tree)
        counts = mill(config, stages=["score", "augment"])["augment"].counts
    finally:
        server.stop()
    lengths = [r.prompt_tokens for r in requests(config.output)]
    assert counts["requests"] == len(lengths) > 100 and len(sizes) == len(lengths) - 1
    whole = lengths[1:-1]  # the first shows no contraction, and the last segment is shorter
    assert max(whole) - min(whole) < 40, "but for where a segment is cut, prompts are of one length"
    steady = sizes[1:]
    assert max(steady) - min(steady) < 40 and np.corrcoef(np.arange(len(steady)), steady)[0, 1] < 0.5


def test_where_a_call_fails_the_segments_behind_it_are_given_up_and_no_others(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)

    def answer(number: int, body: dict[str, Any]) -> Any:
        prompt = tokenizer.decode(np.array(body["prompt"], np.uint32))
        if "How it goes on:" in prompt and "the third part" in prompt.partition("How it goes on:")[2]:
            return 400, {}, {"error": "no"}
        return completion(body, text="so it goes.")

    parts = ["the first part. ", "the second part. ", "the third part. ", "the fourth part. ", "the fifth part. "]
    text = "\n\n".join(part * 12 for part in parts)
    server = ScriptedServer(answer)
    try:
        by_server = served(server, byte_tokenizer, contraction_tokens=64)
        source = write_jsonl([{"id": "bad", "text": text}, {"id": "good", "text": text.replace("third", "3rd")}])
        tree = rehearsal_config(source, **by_server, ledger={"max_failed_fraction": 0.9})
        config = from_mapping(tree)
        made = mill(config, stages=["score", "augment"])["augment"]
        strict = from_mapping({**tree, "output": f"{config.output}-strict", "ledger": {"max_failed_fraction": 0.01}})
        with pytest.raises(MillError, match=r"(could not be contracted|generations of a worker failed)"):
            mill(strict, stages=["score", "augment"])
    finally:
        server.stop()
    refused = [
        record
        for url in manifest.file_urls(config.output, made, "quarantine")
        for record in storage.read_records(url, Quarantined)
    ]
    asked = {doc: sum(r.doc_id == doc for r in requests(config.output)) for doc in ("bad", "good")}
    assert refused and {record.reason for record in refused} == {"no_contraction"}
    assert {record.doc_id for record in refused} == {"bad"}
    assert made.counts["segments_without_contraction"] == len(refused) == asked["good"] - asked["bad"]
    assert asked["bad"] >= 3 and made.counts["contractions_failed"] == 1


def bundle(tree: dict[str, Any], folder: Path, falls_at: int | None) -> None:
    """One bundle that contracts a document, for a process of its own."""
    config = from_mapping(tree)
    registry.create_engine = lambda model: FallingEngine(model, folder, falls_at)
    order = order_in(folder)
    planner = trace_planner(config)
    document = segments_of(config)
    request = contraction_request(planner, document)
    known = [row for row in read_ledger(order.ledger_url) if row.request_key == request.request_key]
    contractor: Contractor[str] = Contractor(planner, config.feeding, order)
    contractor.begin()
    texts = [f"part {number} of the text" for number in range(3)]
    outcomes = [*contractor.take("d", request, texts, known), *contractor.finish()]
    contractor.leave()
    worker.close_all()
    (end,) = [outcome for outcome in outcomes if isinstance(outcome, Contracted)]
    assert len(end.contractions) == 3 and not end.error
    (folder / "contractions").write_text("\n---\n".join(end.contractions), encoding="utf-8")


def segments_of(config: Any) -> list[ScoredSegment]:
    ids = load_tokenizer(config.tokenizer).encode("A passage of a few words about nothing. " * 6)
    nats = np.ones(len(ids), np.float16)
    return [
        ScoredSegment(
            doc_id="d",
            segment_index=0,
            num_segments=1,
            token_start=0,
            input_ids=ids,
            surprisal_nats=nats,
            entropy_nats=nats,
            memory_nats=nats[:0],
            difficulty_nats=1.0,
        )
    ]


def test_killed_between_any_two_calls_none_is_repeated(tree: dict[str, Any], tmp_path: Path) -> None:
    """Each process makes one call and is killed outright when the next one begins."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["apache_beam", "pipelines.augment", "tests.test_contraction"])

    def run(folder: Path, falls_at: int | None) -> int | None:
        folder.mkdir(exist_ok=True)
        child = context.Process(target=bundle, args=(tree, folder, falls_at))
        child.start()
        child.join(300)
        return child.exitcode

    ends = [run(tmp_path / "killed", 1) for _ in range(3)]
    assert ends == [-9, -9, 0]
    calls = made(tmp_path / "killed")
    assert len(calls) == len(set(calls)) == 3, "a call that had ended was made again"
    assert run(tmp_path / "whole", None) == 0
    texts = [(tmp_path / name / "contractions").read_text(encoding="utf-8") for name in ("killed", "whole")]
    assert texts[0] == texts[1] and sorted(made(tmp_path / "whole")) == sorted(calls)


def test_documents_go_side_by_side_and_the_calls_of_one_follow_each_other(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No first call is answered before the engine has those of all documents: else this would wait for ever."""
    begun: list[str] = []
    at_work: set[str] = set()

    class Meeting(RehearsalEngine):
        async def start(self) -> None:
            self._all_there = asyncio.Event()

        async def generate(self, request: GenerationRequest) -> Generation:
            document = request.key.partition("/")[0]
            assert document not in at_work, "two calls of one document at a time"
            at_work.add(document)
            begun.append(document)
            if len(set(begun)) == 3:
                self._all_there.set()
            await asyncio.wait_for(self._all_there.wait(), 60)
            at_work.remove(document)
            return await super().generate(request)

    monkeypatch.setattr(registry, "create_engine", Meeting)
    config = from_mapping(tree)
    planner = trace_planner(config)
    contractor: Contractor[str] = Contractor(planner, config.feeding, order_in(tmp_path))
    contractor.begin()
    outcomes: list[Any] = []
    try:
        for number in range(3):
            segments = [msgspec.structs.replace(one, doc_id=str(number)) for one in segments_of(config)]
            request = contraction_request(planner, segments)
            outcomes += contractor.take(str(number), request, ["one", "two", "three"], [])
        outcomes += contractor.finish()
    finally:
        contractor.leave()
        worker.close_all()
    ends = [outcome for outcome in outcomes if isinstance(outcome, Contracted)]
    assert len(ends) == 3 and all(len(end.contractions) == 3 and not end.error for end in ends)
    assert len(begun) == 9 and len(set(begun[:3])) == 3


@pytest.mark.model
def test_a_document_is_contracted_by_the_real_model(
    small_model: str, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    """By the small model on CPU: each made from the one before, within its cap, and shown in the prompts."""
    source = write_jsonl([{"id": "page", "text": topic_documents()[0]["text"][:620]}])
    arguments = {"max_num_seqs": 4, "kv_cache_memory_bytes": 128 << 20, "gpu_memory_utilization": 0.5}
    model = {"engine": "vllm", "name": small_model, "max_model_len": 1024, "engine_args": arguments}
    tier = {"name": "short", "model": "m", "prompt": "brief", "max_tokens": 16, "context": "contraction"}
    budget = {"policy": "fixed", "fixed_tier": "short", "thinking_tokens_per_source_token": 20, "tiers": [tier]}
    contracting = {"contraction_model": "m", "contraction_tokens": 64}
    tree = rehearsal_config(source, models={"m": model}, budget={**budget, **contracting}, select={"value": "none"})
    config = from_mapping({**tree, "tokenizer": small_model})
    done = mill(config, stages=["score", "augment"])
    (url,) = manifest.file_urls(config.output, done["score"], "segments")
    (document,) = scored_documents(url)
    segments = list(document.segments())
    calls = [row for row in read_ledger(config.ledger_url) if row.step == CONTRACTION_STEP]
    calls.sort(key=lambda row: row.finished_at)
    assert len(calls) == len(segments) - 1 >= 2 and done["augment"].counts["failed"] == 0
    assert [row.made_from for row in calls] == [[], *([row.key] for row in calls[:-1])]
    assert all(row.engine == "vllm" and 0 < row.thought_tokens <= 64 for row in calls)

    # A request's key covers its prompt.
    def keys(contractions: list[str]) -> list[str]:
        choices = Choices(plan_budget(config, done["score"]), holdback_of(config))
        found = trace_planner(config).requests(segments, choices, Contexts(contractions=contractions))
        return [request.request_key for request in found if isinstance(request, Request)]

    asked, said = [request.request_key for request in requests(config.output)], [answer_of(row.text) for row in calls]
    assert all(text.strip() for text in said) and keys([text.strip() for text in said]) == asked
    assert keys(["nothing"] * len(said))[1:] != asked[1:]
