"""A judge that thinks: what is read of its verdicts, whom they choose, and that nonsense changes nothing but counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augment.ledger.reading import read_ledger
from augment.recipes.judging import JUDGE_STEP, better_of, grade_of, grading, knock_out
from augment.recipes.protocol import Call, Made, RecipeRequest, SegmentView
from augment.recipes.walk import End, Walk
from augment.selection.account_parts import concordance
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate
from sharding.storage import manifest
from tests.endpoint_server import SERVED, ScriptedServer, completion


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Grade: 4", 4.0),
        ("the grade 3 is low.\n**Grade:** 7.5", 7.5),
        ("Grade: 10/10", 10.0),
        ("Grade: 11", None),
        ("Grade: 100", None),
        ("degrade 3", None),
        ("good", None),
    ],
)
def test_the_last_grade_counts(text: str, grade: float | None) -> None:
    assert grade_of(text) == grade


@pytest.mark.parametrize(
    ("text", "better"), [("Better: first", 0), ("better first. Better: **second**", 1), ("no", None)]
)
def test_which_one_is_better(text: str, better: int | None) -> None:
    assert better_of(text) == better


def thought(name: str) -> Made:
    return Made(key=name, step="", text=name, tokens=1, closed="natural")


def judged(recipe: Any, say: Callable[[Call], str]) -> tuple[str, list[Call]]:
    """The outcome of a judge's walk whose calls are answered by `say`, and the calls."""
    request = RecipeRequest(name="judge", prompt="judge", model="m", max_tokens=10_000)
    walk = Walk(request, SegmentView(text="p", context="", focus=()), recipe)
    wanted, asked = walk.begin(), []
    while not isinstance(wanted, End):
        (call,) = wanted
        asked.append(call)
        key = f"{call.step}/{call.number}"
        wanted = walk.answer(call, Made(key=key, step=call.step, text=say(call), tokens=9, closed="natural"))
    return wanted.text, asked


def test_a_verdict_that_can_not_be_read_is_asked_for_once_more() -> None:
    recipe = grading(thought("t"), "judge", 64, 0.0)
    said = iter(["well", "Grade: 6"])
    outcome, asked = judged(recipe, lambda call: next(said))
    assert outcome == '{"grades": [6.0], "unreadable": 1}'
    assert [call.step for call in asked] == [JUDGE_STEP, f"{JUDGE_STEP} 2"]
    assert asked[0].temperature == 0.0 < (asked[1].temperature or 0) and asked[0].made_from == ("t",)
    assert asked[0].wants == "answer" and asked[0].max_tokens == 64
    outcome, asked = judged(grading(thought("t"), "judge", 64, 0.0), lambda call: "nonsense")
    assert outcome == '{"grades": [null], "unreadable": 2}' and len(asked) == 2


def test_in_a_knock_out_the_best_is_left_whatever_the_order() -> None:
    names = ["3", "1", "4", "2", "5"]

    def say(call: Call) -> str:
        return f"Better: {'first' if call.slots['first'] > call.slots['second'] else 'second'}"

    outcome, asked = judged(knock_out([thought(name) for name in names], "match", 64, 0.0), say)
    # 3-1 and 4-2, then 3-4, then 4-5; who has no partner goes on without having won.
    assert outcome == '{"grades": [1.0, 0.0, 2.0, 0.0, 1.0], "unreadable": 0, "compared": 4, "agreed": 4}'
    assert len(asked) == 8


def test_a_judge_that_goes_by_the_place_agrees_with_itself_never() -> None:
    outcome, _ = judged(knock_out([thought("a"), thought("b")], "match", 64, 0.0), lambda call: "Better: first")
    assert outcome == '{"grades": [1.0, 0.0], "unreadable": 0, "compared": 1, "agreed": 0}'
    outcome, asked = judged(knock_out([thought("a"), thought("b")], "match", 64, 0.0), lambda call: "hm")
    assert '"grades": [null, null], "unreadable": 4' in outcome and len(asked) == 4


def test_concordance_and_its_null() -> None:
    assert concordance([(1, 0.1), (2, 0.2), (3, 0.3)]) == 1
    assert concordance([(3, 0.1), (1, 0.3)]) == -1
    assert concordance([(1, 0.1), (1, 0.3)]) is None and concordance([]) is None
    random = np.random.default_rng(0)
    found = [
        concordance(list(zip(random.integers(0, 11, 4).astype(float), random.normal(size=4), strict=True)))
        for _ in range(2000)
    ]
    known = [one for one in found if one is not None]
    assert abs(np.mean(known)) < 3 * np.std(known) / len(known) ** 0.5


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    texts = [f"text {i} of many words and {i * i} numbers, and of some more. " * 9 for i in range(8)]
    source = write_jsonl([{"id": str(i), "text": text} for i, text in enumerate(texts)])
    tier = {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 96, "samples": 3}
    budget = {"policy": "fixed", "fixed_tier": "deep", "thinking_tokens_per_source_token": 50, "tiers": [tier]}
    return rehearsal_config(source, budget=budget)


def candidates(output: str) -> list[Candidate]:
    made = manifest.require(output, "select")
    urls = [url for family in ("kept", "rejected") for url in manifest.file_urls(output, made, family)]
    return [one for url in urls for one in storage.read_records(url, Candidate)]


def test_a_judge_of_nonsense_changes_nothing_but_the_counts(tree: dict[str, Any]) -> None:
    """The rehearsal engine names no grade."""
    without = from_mapping({**tree, "select": {"value": "continuation_gain"}})
    mill(without, stages=["score", "augment", "select"])
    before = candidates(without.output)
    judge = {"value": "gain_and_judge", "judge": {"model": "pretend", "max_tokens": 32}}
    asked = from_mapping({**tree, "select": judge})
    counts = mill(asked, stages=["select"], replace=True)["select"].counts
    assert candidates(asked.output) == before
    assert counts["judged"] == counts["judge_none"] > 0 == counts["judge_failed"]
    assert counts["judge_unreadable"] == counts["judge_calls"] == 2 * counts["judged"]
    rows = [row for row in read_ledger(asked.ledger_url) if row.step]
    assert len(rows) == counts["judge_calls"]
    assert sum(row.thought_tokens for row in rows) == counts["judge_tokens_now"] > 0 == counts["judge_tokens_found"]
    assert sum(row.prompt_tokens for row in rows) == counts["judge_prompt_tokens_now"] > 0
    again = mill(asked, stages=["select"], force=True)["select"].counts
    assert again["judge_tokens_now"] == 0 and again["judge_tokens_found"] == counts["judge_tokens_now"]
    assert len([row for row in read_ledger(asked.ledger_url) if row.step]) == len(rows)


def test_the_best_grade_is_kept_and_checked_against_gain(tree: dict[str, Any], byte_tokenizer: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)

    def grade(text: str) -> int:
        return len(text) % 11

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.decode(np.array(body["prompt"], np.uint32))
        said = prompt.partition("about the passage:\n\n")[2].partition("\n\nEnd of the thought.")[0]
        return completion(body, text=f"weighed. Grade: {grade(said)}")

    server = ScriptedServer(answer)
    try:
        critic = {"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": [server.url]}
        tree["models"] = {**tree["models"], "critic": critic}
        config = from_mapping({**tree, "select": {"value": "judge", "judge": {"model": "critic", "max_tokens": 64}}})
        made = mill(config, stages=["score", "augment", "select"])["select"]
    finally:
        server.stop()
    by_segment: dict[str, list[Candidate]] = {}
    for one in candidates(config.output):
        by_segment.setdefault(one.segment_id, []).append(one)
    chosen = 0
    for own in by_segment.values():
        valued = [one for one in own if one.value is not None]
        assert all(one.value == grade(one.text) for one in valued)
        for kept in (one for one in own if one.kept):
            chosen += 1
            assert kept.value == max(one.value or 0.0 for one in valued)
    assert chosen and made.counts["judge_calls"] == len(server.bodies) == made.counts["judged"]
    assert all(body["temperature"] == 0.0 and body["max_tokens"] == 64 for body in server.bodies)
    (row,) = made.facts["account"]
    assert -1 <= row["judge_rank"]["mean"] <= 1 and row["judge_rank"]["segments"] > 0
    assert row["gains"]["heldout_choice"]["segments"] > 0


def test_pairs_in_a_run_are_read_in_both_orders_and_the_account_says_how_often_these_agree(
    tree: dict[str, Any], byte_tokenizer: str
) -> None:
    """A judge that calls the longer thought better, whichever comes first; but of some it says the first."""
    tokenizer = load_tokenizer(byte_tokenizer)

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.decode(np.array(body["prompt"], np.uint32))
        first, _, second = prompt.partition("thought about the passage:\n\n")[2].partition("The second:\n\n")
        first, second = first.partition("\n\nEnd of")[0], second.partition("\n\nEnd of")[0]
        by_place = "text 3 of" in prompt
        return completion(body, text="Better: first" if by_place or len(first) > len(second) else "Better: second")

    server = ScriptedServer(answer)
    try:
        critic = {"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": [server.url]}
        tree["models"] = {**tree["models"], "critic": critic}
        judge = {"model": "critic", "max_tokens": 64, "pairwise": True}
        config = from_mapping({**tree, "select": {"value": "judge", "judge": judge}})
        done = mill(config)
    finally:
        server.stop()
    counts, (row,) = done["select"].counts, done["select"].facts["account"]
    orders = row["judge_orders"]
    assert len(server.bodies) == counts["judge_calls"] == 2 * orders["compared"] > 0
    assert (orders["compared"], orders["agreed"]) == (counts["judge_compared"], counts["judge_agreed"])
    assert orders["compared"] / 2 < orders["agreed"] < orders["compared"]
    card = (Path(config.output) / "README.md").read_text(encoding="utf-8")
    assert f"| {orders['agreed']} of {orders['compared']} |" in card


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ({"value": "judge"}, "judge: goes with value"),
        ({"judge": {"model": "pretend"}}, "judge: goes with value"),
        ({"value": "judge", "judge": {"model": "nobody"}}, "select.judge.model: 'nobody' is not one of models"),
        ({"value": "gain_and_judge", "judge": {"model": "pretend", "pairwise": True}}, "gives no grade to reject by"),
    ],
)
def test_a_judge_that_can_not_be_is_refused(tree: dict[str, Any], select: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        from_mapping({**tree, "select": select})
