"""Recipes: what they ask for and within which caps, that a killed run repeats none of it, and what is told of them."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from rich.console import Console

from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import worker
from augment.feeding.recipe_runs import Asked, Counted, Ended, RecipeRuns
from augment.feeding.tickets import Completed, Failure
from augment.feeding.worker import Worker, WorkOrder
from augment.ledger.reading import read_ledger
from augment.ledger.recent import FinishedSince
from augment.recipes import load_recipe
from augment.recipes.branch import chosen
from augment.recipes.protocol import (
    LEAST_TOKENS,
    Call,
    Generate,
    Made,
    NothingLeft,
    RecipeRequest,
    SegmentView,
    StepRequest,
)
from augment.recipes.walk import End, Walk
from augment.requests.calls import RecipePlanner
from augment.traces import answer_of
from augment.transforms import _GenerateFn
from pipelines.cli import summary
from pipelines.joints import plain_tiers, trace_planner
from pipelines.plan import make_plan, show
from pipelines.plan.measured import read_pilot
from pipelines.report.facts import Facts
from pipelines.report.shards import tokens_by_model
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import records, storage
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate, LedgerRow, Request, ScoredSegment
from sharding.storage import manifest
from tests.endpoint_server import SERVED, ScriptedServer, completion
from tests.recipe_jobs import made, order_in, run_bundle

VIEW = SegmentView(text="a passage", context="", focus=())

OWN = '''
"""Two thoughts side by side, and a third from both."""


class Twins:
    async def __call__(self, segment, generate):
        one, other = await generate.several([generate("twin", share=0.3), generate("twin", share=0.3)])
        await generate("look", wants="answer", share=0.5, first=one, second=other)
        return f"{one.text} {other.text}"
'''


def request(name: str = "refine", **fields: Any) -> RecipeRequest:
    return RecipeRequest(**{"name": name, "prompt": "expert", "model": "m", "max_tokens": 1000, **fields})


def walked(
    walk: Walk, text: Callable[[Call], str] = lambda call: call.step, share: float = 1.0
) -> tuple[End, list[Call]]:
    """A walk to its end, each call answered with `share` of its cap; what it asked for."""
    asked: list[Call] = []
    wanted = walk.begin()
    waiting: list[Call] = []
    while not isinstance(wanted, End):
        waiting += wanted
        asked += wanted
        call = waiting.pop()  # in another order than they were asked for
        tokens = max(1, int(call.max_tokens * share))
        answer = Made(
            key=f"{call.step}/{call.number}", step=call.step, text=text(call), tokens=tokens, closed="natural"
        )
        wanted = walk.answer(call, answer)
    assert not waiting
    return wanted, asked


def test_refine_asks_for_a_draft_a_critique_and_a_rewrite_each_from_those_before() -> None:
    end, asked = walked(Walk(request(), VIEW))
    assert [call.step for call in asked] == ["draft", "critique", "rewrite"]
    assert [call.made_from for call in asked] == [(), ("draft/0",), ("critique/0", "draft/0")]
    assert [call.prompt for call in asked] == ["expert", "critique", "rewrite"]
    assert [call.wants for call in asked] == ["thought", "answer", "thought"]
    assert asked[2].slots == {"draft": "draft", "critique": "critique"}
    assert end.text == "rewrite" and end.made is not None and end.made.key == "rewrite/0"


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
@pytest.mark.parametrize(("name", "calls"), [("refine", 7), ("branch", 4 + 1 + 6)])
def test_all_calls_together_stay_within_the_cap_and_what_one_leaves_the_next_may_use(
    name: str, calls: int, share: float
) -> None:
    walk = Walk(request(name, rounds=3, drafts=4), VIEW)
    _, asked = walked(walk, share=share)
    assert len(asked) == calls
    assert walk.generate.spent + walk.generate.left == 1000
    if share == 1.0:
        assert sum(call.max_tokens for call in asked) <= 1000 < sum(call.max_tokens for call in asked) + 5
    else:
        assert sum(call.max_tokens for call in asked) > 1000 >= walk.generate.spent


def test_a_recipe_ends_with_what_it_has_where_the_cap_is_spent() -> None:
    end, asked = walked(Walk(request(max_tokens=200, rounds=8), VIEW))
    assert end.text.startswith("draft") or end.text.startswith("rewrite")
    assert all(call.max_tokens >= LEAST_TOKENS for call in asked) and sum(call.max_tokens for call in asked) <= 200
    with pytest.raises(NothingLeft, match=r"few.*raise max_tokens"):
        Walk(request(max_tokens=LEAST_TOKENS - 1), VIEW).begin()


def test_what_the_config_says_of_a_step_counts_before_what_the_recipe_says() -> None:
    told = StepRequest(prompt="mine.txt", model="other", max_tokens=70, temperature=0.1, top_p=0.5)
    _, asked = walked(Walk(request(rounds=2, steps={"critique": told}), VIEW))
    critiques = [call for call in asked if call.step.startswith("critique")]
    assert [call.step for call in critiques] == ["critique", "critique 2"]
    for call in critiques:
        assert (call.prompt, call.model, call.max_tokens, call.temperature, call.top_p) == (
            "mine.txt",
            "other",
            70,
            0.1,
            0.5,
        )
    assert {call.model for call in asked if call not in critiques} == {"m"}


def test_branch_refines_the_draft_that_was_chosen() -> None:
    end, asked = walked(
        Walk(request("branch", drafts=3), VIEW),
        text=lambda call: "weighed. Choice: 2" if call.step == "choice" else f"{call.step} {call.number}",
    )
    assert [call.step for call in asked] == ["draft"] * 3 + ["choice", "critique", "rewrite"]
    assert asked[-1].slots["draft"] == "draft 1" and "Thought 3:\ndraft 2" in asked[3].slots["drafts"]
    assert asked[3].temperature == 0.0 and asked[3].made_from == ("draft/0", "draft/1", "draft/2")
    assert end.text == "rewrite 0"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Choice: 2", 1),
        ("choice 1 is weak.\n**Choice:** 3", 2),
        ("none", 0),
        ("Choice: 9", 0),
        ("Choice: 0", 0),
        ("", 0),
    ],
)
def test_which_draft_a_choice_names(text: str, place: int) -> None:
    assert chosen(text, 3) == place


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>\n\nb", "b"),
        ("only this", "only this"),
        ("<think>cut", "cut"),
        ("<think>all</think>", "all"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "b"),
    ],
)
def test_the_answer_is_what_follows_the_thinking(text: str, answer: str) -> None:
    assert answer_of(text) == answer


async def waits_for_something_else(segment: SegmentView, generate: Generate) -> Any:
    await asyncio.sleep(0)


async def gives_a_number(segment: SegmentView, generate: Generate) -> Any:
    await generate("draft")
    return 7


async def is_wrong(segment: SegmentView, generate: Generate) -> Any:
    raise KeyError("here")


async def names_a_slot_twice(segment: SegmentView, generate: Generate) -> Any:
    return await generate("draft", text="mine")


async def asks_twice(segment: SegmentView, generate: Generate) -> Any:
    call = generate("draft")
    return (await call).text + (await call).text


def no_coroutine(segment: SegmentView, generate: Generate) -> None: ...


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("waits_for_something_else", "await only what `generate`"),
        ("gives_a_number", "returned 7"),
        ("is_wrong", r"raised KeyError\('here'\)"),
        ("names_a_slot_twice", "'text' can't be a slot"),
        ("no_coroutine", "no async function"),
        ("not_there", "can't be loaded"),
    ],
)
def test_a_recipe_of_ones_own_that_is_wrong_is_named(name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        walked(Walk(request(f"tests.test_recipes:{name}"), VIEW))


def test_a_call_that_is_awaited_twice_is_made_once() -> None:
    end, asked = walked(Walk(request("tests.test_recipes:asks_twice"), VIEW))
    assert len(asked) == 1 and end.text == "draftdraft" and end.made is None


# --- in a run ---------------------------------------------------------------------------------------------------------


def tiers(folder: Path) -> list[dict[str, Any]]:
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    thinking = {"model": "pretend", "prompt": "expert", "max_tokens": 400}
    return [
        {"name": "skip"},
        {"name": "plain", "model": "pretend", "prompt": "brief", "max_tokens": 48},
        {
            **thinking,
            "name": "refined",
            "recipe": "refine",
            "samples": 2,
            "rounds": 2,
            "steps": {"critique": {"temperature": 0.1, "model": "critic"}},
        },
        {**thinking, "name": "branched", "recipe": "branch", "drafts": 2},
        {**thinking, "name": "own", "recipe": f"{folder / 'own.py'}:Twins", "max_tokens": 300},
    ]


CALLS = {"refined": 5, "branched": 5, "own": 3}
CAPS = {"refined": 400, "branched": 400, "own": 300}

MODELS = {name: {"engine": "rehearsal", "name": name} for name in ("pretend", "critic")}


@pytest.fixture
def small_tree(tree: dict[str, Any], write_jsonl: Callable[..., str]) -> dict[str, Any]:
    """The same over a few segments."""
    source = write_jsonl([{"id": str(i), "text": f"text {i} of a few words. " * 9} for i in range(6)], "small.jsonl")
    return {**tree, "source": {"path": source, "id_field": "id"}}


@pytest.fixture
def tree(
    tmp_path: Path, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    source = write_jsonl(
        [{"id": str(i), "text": f"text {i} of many words and {i * i} numbers. " * 30} for i in range(10)]
    )
    budget = {"policy": "uniform", "thinking_tokens_per_source_token": 3, "tiers": tiers(tmp_path)}
    return rehearsal_config(source, models=MODELS, budget=budget, ledger={"flush_seconds": 0.2})


def test_a_run_with_recipes_adds_up_and_buys_nothing_twice(tree: dict[str, Any], tmp_path: Path) -> None:
    config = from_mapping(tree)
    done = mill(config)
    rows = list(read_ledger(config.ledger_url))
    calls = [row for row in rows if row.step]
    outcomes = {row.key: row for row in rows if row.composed}
    assert {row.tier for row in outcomes.values()} == set(CALLS)
    by_run: dict[str, list[LedgerRow]] = {}
    for row in calls:
        by_run.setdefault(row.key.partition("/")[0], []).append(row)
    assert set(by_run) == set(outcomes)
    for key, own in by_run.items():
        outcome = outcomes[key]
        assert len(own) == CALLS[outcome.tier] and outcome.made_from == sorted(row.key for row in own)
        assert outcome.thought_tokens == sum(row.thought_tokens for row in own) <= CAPS[outcome.tier]
        assert outcome.prompt_tokens == sum(row.prompt_tokens for row in own)
        known = {row.key for row in own}
        assert all(known.issuperset(row.made_from) for row in own)
    assert {row.model for row in calls if row.step.startswith("critique") and row.tier == "refined"} == {"critic"}
    counts = done["augment"].counts
    assert counts["thought_tokens"] == sum(row.thought_tokens for row in rows if not row.composed)
    assert counts["generated"] == counts["generations"] == len(rows) - len(calls) and counts["failed"] == 0

    found = {row["tier"]: row for row in done["select"].facts["account"]}
    assert list(found["refined"]["steps"]) == ["draft", "critique", "rewrite", "critique 2", "rewrite 2"]
    for tier, row in found.items():
        assert row["thought_tokens"] == sum(r.thought_tokens for r in rows if r.tier == tier and not r.composed)
        read = sum(r.prompt_tokens for r in rows if r.tier == tier and not r.composed)
        assert row["prompt_tokens"] == read > 0
        if tier in CALLS:
            for what in ("thought_tokens", "prompt_tokens"):
                assert sum(step[what] for step in row["steps"].values()) == row[what]
    read = sum(row["prompt_tokens"] for row in found.values())
    assert done["select"].counts["prompt_tokens"] == read == sum(r.prompt_tokens for r in rows if not r.composed)
    card = (Path(config.output) / "README.md").read_text(encoding="utf-8")
    assert f"{read:,} tokens of prompts" in console_text(summary.render(config.output))
    for tier, row in found.items():
        told = (row["candidates"], row["kept"], row["thought_tokens"], row["kept_thought_tokens"], row["prompt_tokens"])
        assert f"| {tier} | pretend | {row['prompt']} | " + " | ".join(f"{one:,}" for one in told) + " |" in card
    steps = found["refined"]["steps"]
    assert "gain" not in steps["critique"] and steps["draft"]["gain"]["segments"] > 0
    assert "a later step that gains no more" in card
    read_by = steps["critique"]
    assert f"| critique | {read_by['calls']} | {read_by['thought_tokens']:,} | {read_by['prompt_tokens']:,} |" in card

    texts = {
        one.key: one.text
        for url in manifest.file_urls(config.output, done["select"], "kept")
        for one in storage.read_records(url, Candidate)
    }
    assert texts and all(not outcomes[key].text or texts[key] in outcomes[key].text for key in texts if key in outcomes)

    again = from_mapping({**tree, "output": str(tmp_path / "again"), "ledger": {"path": config.ledger_url}})
    repeated = mill(again)
    assert repeated["augment"].counts["generated"] == 0
    assert len(list(read_ledger(config.ledger_url))) == len(rows)
    shards = [[entry.sha256 for entry in one["pack"].files["shards"]] for one in (done, repeated)]
    assert shards[0] == shards[1]


def console_text(what: Any) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_plan_counts_the_prompts_of_all_calls_and_a_pilot_measures_them(tree: dict[str, Any]) -> None:
    """Where each call ends at its cap, as the engine here is made to do, a plan knows how many calls there will be."""
    tree["select"] = {"value": "length"}
    config = from_mapping(tree)
    mill(config, stages=["score"])
    before = {tier["name"]: tier for tier in make_plan(config)["augment"]["tiers"]}
    piloted = {tier["name"]: tier for tier in make_plan(config, pilot=40)["augment"]["tiers"]}
    done = mill(config, stages=["augment", "select"])
    for row in done["select"].facts["account"]:
        each = row["prompt_tokens"] / row["candidates"]
        said = before[row["tier"]]["tokens_in"]["value"] / before[row["tier"]]["generations"]["value"]
        measured = piloted[row["tier"]]["tokens_in"]["value"] / piloted[row["tier"]]["generations"]["value"]
        assert measured == pytest.approx(each, rel=0.15), row["tier"]
        # Every answer is as long as it may be: a plan without a pilot is a ceiling, here too.
        assert 0.95 * each < said < 2.5 * each, row["tier"]


def test_a_recipe_of_two_models_is_priced_as_the_budget_prices_it(tree: dict[str, Any]) -> None:
    """All its tokens count as the dearest's, and a price that is missing is that of the model that lacks it."""
    prices = {"dollars_per_million_tokens": 1.0, "tokens_per_gpu_second": 100.0}
    dear = {"dollars_per_million_tokens": 8.0, "tokens_per_gpu_second": 10.0}
    tree["models"] = {"pretend": MODELS["pretend"] | prices, "critic": MODELS["critic"] | dear}
    budget = {"policy": "fixed", "fixed_tier": "refined", "dollars": 2.0, "tiers": [tree["budget"]["tiers"][2]]}
    config = from_mapping({**tree, "budget": budget})
    plan = make_plan(config)
    (tier,) = plan["augment"]["tiers"]
    tokens = tier["tokens_out"]["value"]
    assert tier["dollars"]["value"] == pytest.approx(tokens * 8e-6) == plan["budget"]["planned"]
    assert tier["gpu_hours"]["value"] == pytest.approx(tokens / 10 / 3600)

    del tree["models"]["critic"]["dollars_per_million_tokens"]
    tokens_alone = {**budget, "thinking_tokens_per_source_token": 50}
    del tokens_alone["dollars"]
    said = console_text(show.render(make_plan(from_mapping({**tree, "budget": tokens_alone}))))
    assert "unknown: set models.critic.dollars_per_million_tokens" in said and "models.pretend.doll" not in said


def test_the_rate_of_a_pilot_is_of_the_model_that_made_the_calls(tree: dict[str, Any]) -> None:
    """The tiers of the config ask one model; the critic alone makes critiques, at a hundredth of its speed."""
    slow = {"engine_args": {"tokens_per_second": 200.0}}
    fast = {"engine_args": {"tokens_per_second": 20_000.0}}
    tree["models"] = {"pretend": MODELS["pretend"] | fast, "critic": MODELS["critic"] | slow}
    tier = {**tree["budget"]["tiers"][2], "samples": 1}
    budget = {"policy": "fixed", "fixed_tier": "refined", "thinking_tokens_per_source_token": 50, "tiers": [tier]}
    config = from_mapping({**tree, "budget": budget, "select": {"value": "length"}})
    mill(config, stages=["score"])
    make_plan(config, pilot=8)
    pilot, _ = read_pilot(config, manifest.read(config.output, "score"))
    assert pilot is not None and set(pilot.tokens_per_second) == {"pretend", "critic"}
    assert all(rate is not None for rate in pilot.tokens_per_second.values())


def test_the_report_bills_each_model_for_the_steps_that_it_made(tree: dict[str, Any]) -> None:
    config = from_mapping({**tree, "select": {"value": "length"}})
    mill(config, stages=["score", "augment", "select"])
    stages = {stage: manifest.read(config.output, stage) for stage in manifest.STAGES}
    facts = Facts(stages=stages, allocation=None, prices={}, sample=None)  # type: ignore[arg-type]
    made: Counter[str] = Counter()
    for row in read_ledger(config.ledger_url):
        if not row.composed:
            made[row.model] += row.thought_tokens
    assert made["critic"] > 0 and tokens_by_model(facts) == pytest.approx(dict(made))


def test_tiers_of_one_call_are_in_manifests_as_before_there_were_recipes(tree: dict[str, Any]) -> None:
    told = {tier["name"]: tier for tier in plain_tiers(from_mapping(tree).budget)}
    assert {"recipe", "rounds", "drafts", "steps"}.isdisjoint(told["plain"]) and told["refined"]["rounds"] == 2


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"rounds": 2}, "rounds, which recipe single knows nothing of"),
        ({"recipe": "refined"}, "'refined' is none of single, refine, branch"),
        (
            {"recipe": "refine", "steps": {"choice": {}}},
            "steps.choice: recipe refine has the steps draft, critique, rewrite",
        ),
        ({"recipe": "refine", "steps": {"draft": {"model": "nobody"}}}, "'nobody' is not one of models"),
    ],
)
def test_a_tier_whose_recipe_can_not_be_is_refused(tree: dict[str, Any], tier: dict[str, Any], said: str) -> None:
    tree["budget"]["tiers"][1] |= tier
    with pytest.raises(RequestError, match=said):
        from_mapping(tree)


def segment_requests(config: Any, tier: str) -> list[bytes]:
    """The request of a segment for one of the config's tiers, as it travels between workers."""
    tokenizer = load_tokenizer(config.tokenizer)
    ids = tokenizer.encode("A passage of a few words about nothing in particular. " * 6)
    nats = np.ones(len(ids), np.float16)
    segment = ScoredSegment(
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
    place = next(i for i, one in enumerate(config.budget.tiers) if one.name == tier)

    class All:
        def tiers(self, segments: Any) -> list[int]:
            return [place] * len(segments)

        def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
            return len(segment.input_ids)

        def focus(self, segment: ScoredSegment, text: str) -> list[str]:
            return ["nothing"]

    found = list(trace_planner(config).requests([segment], All()))
    return [records.encode(one) for one in found if isinstance(one, Request)]


def test_a_recipe_is_known_by_what_is_in_its_file_not_by_where_it_lies(tree: dict[str, Any], tmp_path: Path) -> None:
    """A project that is moved, or checked out elsewhere, buys nothing again."""

    def key() -> str:
        return str(records.decode(Request, segment_requests(from_mapping(tree), "own")[0]).request_key)

    before = key()
    moved = tmp_path / "elsewhere.py"
    moved.write_text((tmp_path / "own.py").read_text(encoding="utf-8"), encoding="utf-8")
    own = next(tier for tier in tree["budget"]["tiers"] if tier["name"] == "own")
    own["recipe"] = f"{moved}:Twins"
    assert key() == before
    moved.write_text(moved.read_text(encoding="utf-8").replace("0.3", "0.2"), encoding="utf-8")
    assert key() != before


def in_a_process(tree: dict[str, Any], requests: list[bytes], folder: Path, falls_at: int | None) -> int | None:
    """The exit code of a process that runs one bundle."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["apache_beam", "pipelines.augment", "tests.recipe_jobs"])
    child = context.Process(target=run_bundle, args=(tree, requests, folder, falls_at))
    child.start()
    child.join(120)
    return child.exitcode


@pytest.mark.parametrize("tier", ["refined", "branched", "own"])
def test_killed_between_any_two_calls_a_run_repeats_none(tree: dict[str, Any], tmp_path: Path, tier: str) -> None:
    """Each process makes one call and is killed outright when the next one begins."""
    tree["budget"]["tiers"][2]["steps"] = {}  # one engine, so that calls are counted in one place
    tree["budget"]["tiers"][2]["samples"] = 1
    requests = segment_requests(from_mapping(tree), tier)
    folder = tmp_path / "killed"
    folder.mkdir()
    ends: list[int | None] = []
    while ends[-1:] != [0] and len(ends) <= CALLS[tier]:
        ends.append(in_a_process(tree, requests, folder, 1))
    assert ends == [-9] * (CALLS[tier] - 1) + [0]
    calls = made(folder)
    assert len(calls) == len(set(calls)) == CALLS[tier], "a call that had ended was made again"
    whole = tmp_path / "whole"
    whole.mkdir()
    assert in_a_process(tree, requests, whole, None) == 0
    outcomes = [
        [(row.key, row.text, row.thought_tokens, row.made_from) for row in read_ledger(f"{at}/ledger") if row.composed]
        for at in (folder, whole)
    ]
    assert outcomes[0] == outcomes[1] and len(outcomes[0]) == 1
    assert sorted(made(folder)) == sorted(made(whole))


def test_a_bundle_that_is_run_again_goes_on_from_what_its_first_attempt_made(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    requests = segment_requests(from_mapping(tree), "branched")
    assert in_a_process(tree, requests, tmp_path, None) == 0
    rows = list(read_ledger(str(tmp_path / "ledger")))
    later = FinishedSince(str(tmp_path / "ledger"), 0)
    later.refresh()
    for row in rows:
        found = later.row(row.key)
        assert (found is None) == row.composed
        assert found is None or (found.text, found.step, found.made_from) == (row.text, row.step, row.made_from)
    assert later.row("nothing") is None


def test_runs_that_want_one_call_have_it_made_once(tree: dict[str, Any], tmp_path: Path) -> None:
    """Such as two documents with one text: whoever comes second waits, pays nothing, and shares a failure too."""
    config = from_mapping(tree)
    order = WorkOrder(run_id="run", began_ms=0, ledger_url=str(tmp_path / "ledger"))
    runs = RecipeRuns(RecipePlanner(trace_planner(config)), Worker(order))
    first = records.decode(Request, segment_requests(config, "refined")[0])
    other = msgspec.structs.replace(first, doc_id="other")

    (asked,) = runs.begin(first, 0)
    assert isinstance(asked, Asked) and list(runs.begin(other, 0)) == []
    call = asked.planned.generation
    generation = asyncio.run(RehearsalEngine(config.models["pretend"]).generate(call))
    outcomes = list(runs.take(Completed(call, asked.pending, generation, 0, 0.1, 1000.0)))
    counted = [one for one in outcomes if isinstance(one, Counted)]
    assert [(one.found, one.tokens) for one in counted] == [(False, counted[0].tokens), (True, counted[0].tokens)]
    (then,) = (one for one in outcomes if isinstance(one, Asked))

    failed = Failure(then.planned.generation, then.pending, "key", "pretend", "not this one", 0)
    ended = [one for one in runs.take(failed) if isinstance(one, Ended)]
    assert [(one.request.doc_id, one.error) for one in ended] == [("d", "not this one"), ("other", "not this one")]


def test_servers_are_asked_step_by_step_with_each_step_s_own_sampling(
    small_tree: dict[str, Any], byte_tokenizer: str
) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    prompts: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompts.append(tokenizer.decode(np.array(body["prompt"], np.uint32)))
        return completion(body, text=f"said {len(body['prompt'])}. ")

    server = ScriptedServer(answer)
    try:
        server.models = {"data": [{"id": SERVED, "owned_by": "scripted", "max_model_len": 4096}]}
        model = {"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": [server.url]}
        tier = {**small_tree["budget"]["tiers"][2], "model": "m", "samples": 1, "rounds": 1}
        tier["steps"] = {"critique": {"temperature": 0.1, "max_tokens": 40}}
        budget = {"policy": "fixed", "fixed_tier": "refined", "thinking_tokens_per_source_token": 50, "tiers": [tier]}
        counts = mill(
            from_mapping({**small_tree, "models": {"m": model}, "budget": budget}), stages=["score", "augment"]
        )
    finally:
        server.stop()
    augmented = counts["augment"].counts
    assert augmented["failed"] == 0 < augmented["generated"]
    assert len(prompts) == 3 * augmented["generated"]
    kinds = Counter((body["temperature"], body["max_tokens"] == 40) for body in server.bodies)
    assert kinds[0.1, True] == augmented["generated"] and kinds[0.6, False] == 2 * augmented["generated"]
    rewrites = [prompt for prompt in prompts if "What is wrong with it" in prompt]
    assert len(rewrites) == augmented["generated"] and all(prompt.count("said ") == 2 for prompt in rewrites)


@pytest.mark.parametrize("tier", ["branched", "own"])
def test_other_recipes_are_walked_by_a_server_s_answers(
    small_tree: dict[str, Any], byte_tokenizer: str, tier: str
) -> None:
    """Of two drafts the second is chosen and refined; a recipe of one's own puts its thought together itself."""
    tokenizer = load_tokenizer(byte_tokenizer)
    prompts: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompts.append(tokenizer.decode(np.array(body["prompt"], np.uint32)))
        if "Which of them explains best" in prompts[-1]:
            return completion(body, text="Weighed. Choice: 2")
        return completion(body, text=f"Said by {body['seed']}.")

    server = ScriptedServer(answer)
    try:
        model = {"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": [server.url]}
        asked = {**next(one for one in small_tree["budget"]["tiers"] if one["name"] == tier), "model": "m"}
        budget = {"policy": "fixed", "fixed_tier": tier, "thinking_tokens_per_source_token": 50, "tiers": [asked]}
        config = from_mapping({**small_tree, "models": {"m": model}, "budget": budget})
        augmented = mill(config, stages=["score", "augment"])["augment"].counts
    finally:
        server.stop()
    assert augmented["failed"] == 0 < augmented["generated"]
    assert len(prompts) == CALLS[tier] * augmented["generated"]
    rows = {row.key: row for row in read_ledger(config.ledger_url)}
    for outcome in (row for row in rows.values() if row.composed):
        own = [rows[key] for key in outcome.made_from]
        if tier == "branched":
            drafts = [row for row in own if row.step == "draft"]
            (critique,) = (row for row in own if row.step == "critique")
            (rewrite,) = (row for row in own if row.step == "rewrite")
            (choice,) = (row for row in own if row.step == "choice")
            assert len({row.text for row in drafts}) == 2 and set(choice.made_from) == {row.key for row in drafts}
            (chosen_draft,) = (row for row in drafts if row.key in critique.made_from)
            assert outcome.text == rewrite.text and chosen_draft.key in rewrite.made_from
            choosing = next(p for p in prompts if all(row.text in p for row in drafts))
            other = next(row for row in drafts if row is not chosen_draft)
            assert choosing.index(other.text) < choosing.index(chosen_draft.text), "it was the second"
        else:
            twins = {row.text for row in own if row.step == "twin"}
            assert len(twins) == 2 and set(re.findall(r"Said by \d+\.", outcome.text)) == twins


def test_a_call_that_fails_fails_its_run_alone(small_tree: dict[str, Any], byte_tokenizer: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)

    def answer(number: int, body: dict[str, Any]) -> Any:
        prompt = tokenizer.decode(np.array(body["prompt"], np.uint32))
        refused = "What is wrong with it" in prompt and "text 3 of" in prompt
        return (400, {}, {"error": "no"}) if refused else completion(body, text="all is well.")

    server = ScriptedServer(answer)
    try:
        model = {"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": [server.url]}
        tier = {**small_tree["budget"]["tiers"][2], "model": "m", "samples": 1, "rounds": 1, "steps": {}}
        budget = {"policy": "fixed", "fixed_tier": "refined", "thinking_tokens_per_source_token": 50, "tiers": [tier]}
        ledger = {"max_failed_fraction": 0.5}
        config = from_mapping({**small_tree, "models": {"m": model}, "budget": budget, "ledger": ledger})
        augmented = mill(config, stages=["score", "augment"])["augment"]
    finally:
        server.stop()
    assert 0 < augmented.counts["failed"] < augmented.counts["generations"]
    assert augmented.counts["generated"] == augmented.counts["generations"] - augmented.counts["failed"]
    steps = Counter(row.step for row in read_ledger(config.ledger_url))
    assert steps["draft"] == steps["critique"] == augmented.counts["generations"] > steps["rewrite"] == steps[""]


def test_a_recipe_that_is_no_more_is_told_before_anything_is_paid(small_tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("nothing = 1\n", encoding="utf-8")
    load_recipe.cache_clear()
    config = from_mapping(small_tree)
    with pytest.raises(MillError, match="can't be loaded"):
        mill(config, stages=["score", "augment"])
    assert not list(read_ledger(config.ledger_url))


# --- with the real model ----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_every_recipe_with_the_real_model(
    small_model: str, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """By the small model on CPU, all in one bundle: each call within its cap, and the steps in the ledger."""
    source = write_jsonl([{"id": "0", "text": "The square of 3 is 9, as one sees at once. " * 4}])
    arguments = {"max_num_seqs": 4, "kv_cache_memory_bytes": 128 << 20, "gpu_memory_utilization": 0.5}
    model = {"engine": "vllm", "name": small_model, "max_model_len": 1024, "engine_args": arguments}
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    recipes = {"refine": {}, "branch": {"drafts": 2}, f"{tmp_path / 'own.py'}:Twins": {}}
    tiers = [
        {"name": name, "model": "m", "prompt": "brief", "max_tokens": 160, "recipe": name, **more}
        for name, more in recipes.items()
    ]
    budget = {"policy": "uniform", "thinking_tokens_per_source_token": 20, "tiers": tiers}
    tree = rehearsal_config(source, models={"m": model}, budget=budget)
    config = from_mapping({**tree, "tokenizer": small_model})
    order = order_in(tmp_path)
    fn = _GenerateFn(trace_planner(config), "m", config.feeding, order)
    try:
        fn.start_bundle()
        for name in recipes:
            (request,) = segment_requests(config, name)
            assert not list(fn.process((records.decode(Request, request), [0])))
        outcomes = [one.value for one in fn.finish_bundle()]
    finally:
        worker.close_all()
    assert sum(one.get("generated", 0) for one in outcomes) == len(recipes)
    rows = list(read_ledger(order.ledger_url))
    steps = {
        "refine": ["draft", "critique", "rewrite"],
        "branch": ["draft", "draft", "choice", "critique", "rewrite"],
        f"{tmp_path / 'own.py'}:Twins": ["twin", "twin", "look"],
    }
    for outcome in (row for row in rows if row.composed):
        own = sorted((row for row in rows if row.key in outcome.made_from), key=lambda row: row.finished_at)
        assert [row.step for row in own] == steps.pop(outcome.tier)
        assert 0 < sum(row.thought_tokens for row in own) == outcome.thought_tokens <= 160
        assert all(row.engine == "vllm" and row.model == small_model for row in own)
        if own[-1].step == "rewrite":
            assert outcome.text == own[-1].text.strip() and len(own[-1].made_from) == 2
    assert not steps


def test_the_example_of_the_documentation_is_a_config(tree: dict[str, Any]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "thinking.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    models = {name: {"engine": "rehearsal", "name": name} for name in ("teacher", "critic")}
    for example in examples:
        config = from_mapping({**tree, "models": {**MODELS, **models}, **example})
        if "budget" in example:
            prompts = set(trace_planner(config).prompt_versions())
            assert prompts and prompts <= {"brief", "expert", "critique", "rewrite", "contract"}
    assert examples
