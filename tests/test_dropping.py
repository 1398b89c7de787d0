"""Answers without text are an error, and what is bad in a ledger can be taken out, so that it is asked for again."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import registry
from augment.feeding.worker import TooManyFailures, Worker, WorkOrder
from augment.ledger import dropping
from augment.ledger.compaction import compact
from augment.ledger.dropping import drop, dropped_rows, drops, parse
from augment.ledger.parts import ledger_parts, write_part
from augment.ledger.reading import read_ledger
from pipelines import cli
from pipelines.plan import make_plan
from pipelines.run import mill
from pipelines.watch import status
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.records.types import LedgerRow
from sharding.storage import manifest
from tests.endpoint_server import SERVED, ScriptedServer, completion
from tests.test_ledger import row

DAY_S = 86400.0
GOOD = "All of this is well and good, as one can see from the words that it says."


def finished(url: str) -> dict[str, LedgerRow]:
    return {one.key: one for one in read_ledger(url)}


def keys(url: str) -> list[int]:
    return sorted(int(one.key) for one in read_ledger(url))


def number(n: int, **fields: Any) -> LedgerRow:
    return row(n, key=str(n), **fields)


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """Ten rows in three parts: of two models and three tiers, four of them empty, a day apart from 2026-11-20 on."""
    url = str(tmp_path / "ledger")
    began = 1795132800.0  # 2026-11-20T00:00 UTC
    rows = [
        number(
            n,
            model="big" if n >= 6 else "small",
            tier=("brief", "deep", "odd, really")[n % 3],
            text=("", "fine", " \n", "fine", "fine")[n % 5],
            finish_reason=("stop", "length")[n % 2],
            closed=("natural", "cut")[n % 2],
            finished_at=began + n * DAY_S,
        )
        for n in range(10)
    ]
    for part in (rows[:4], rows[4:5], rows[5:]):
        write_part(url, part)
    return url


# --- which rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "gone"),
    [
        (["model=big"], [6, 7, 8, 9]),
        (["model = small , big", "tier=deep"], [1, 4, 7]),
        (["model!=big", "tier!=deep"], [0, 2, 3, 5]),
        (["reason=empty"], [0, 2, 5, 7]),
        (["reason=empty,cut"], [0, 1, 2, 3, 5, 7, 9]),
        (["reason!=empty"], [1, 3, 4, 6, 8, 9]),
        (["reason=length", "reason=empty"], [5, 7]),
        (["time>=2026-11-28"], [8, 9]),
        (["time<2026-11-21T12:00"], [0, 1]),
        (["time>2026-11-21T00:00:00Z", "time<=2026-11-23T01:00+01:00"], [2, 3]),
        (["model=big", "reason=empty", "time<2026-11-28"], [7]),
        (["tier=odd"], []),
        (["tier=odd, really"], [2, 5, 8]),
        (["tier!=odd, really", "model=big"], [6, 7, 9]),
    ],
)
def test_what_is_taken_out(ledger: str, where: list[str], gone: list[int]) -> None:
    """And nothing else; what is taken out is counted, and kept."""
    before = finished(ledger)
    conditions = [parse(text) for text in where]
    would = drop(ledger, conditions, dry_run=True)
    assert finished(ledger).keys() == before.keys() and not drops(ledger)
    done = drop(ledger, conditions)
    assert would == done and (done.rows_before, done.rows, done.thought_tokens) == (10, len(gone), 5 * len(gone))
    after = finished(ledger)
    assert sorted(map(int, before.keys() - after.keys())) == gone and keys(ledger) == sorted(map(int, after))
    for key, one in after.items():
        assert (one.text, one.token_ids.tolist()) == (before[key].text, before[key].token_ids.tolist())
    assert sorted(map(int, dropped_rows(ledger, drops(ledger), "key"))) == gone
    assert done.by.get("model", {}) == {
        name: count for name in ("small", "big") if (count := sum((n >= 6) == (name == "big") for n in gone))
    }
    assert done.present["model"] == {"small": 6, "big": 4} and done.present["reason"]["empty"] == 4
    again = drop(ledger, conditions)
    assert again.rows == 0 and keys(ledger) == sorted(map(int, after))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write it as model=NAME"),
        ("model", "write it as model=NAME"),
        ("colour=red", "write it as model=NAME"),
        ("model=", "write it as model=NAME"),
        ("model=a,,b", "nothing between two commas"),
        ("model>a", "model goes with = and !="),
        ("time=2026-11-25", "time goes with < <= > >="),
        ("time>=yesterday", "write the time as 2026-11-25T10:00"),
        ("time<2026-13-01", "write the time as"),
    ],
)
def test_what_is_no_condition(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=f"^--where {text!r}: .*{words}"):
        parse(text)


def test_without_a_condition_or_a_ledger_nothing_goes(ledger: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least one --where"):
        drop(ledger, [])
    with pytest.raises(RequestError, match=r"nothing has no parts .*OUTPUT/ledger"):
        drop(str(tmp_path / "nothing"), [parse("reason=empty")])
    assert len(keys(ledger)) == 10


def test_a_part_that_can_not_be_read_is_left_and_said(ledger: str) -> None:
    bad = Path(ledger_parts(ledger)[0])
    bad.write_bytes(bad.read_bytes()[:-40])
    done = drop(ledger, [parse("reason=empty")])
    assert (done.parts_unread, done.rows_before) == (1, 6) and bad.exists()


# --- killed in the middle ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_drop_that_is_killed_loses_nothing_and_is_finished_by_the_same_again(
    ledger: str, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """At every write and every removal: what stays is always there, what goes is in the parts or beside them."""
    left = calls

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return act(*arguments, **more)

        return call

    stay, gone = {"1", "3", "4", "6", "8", "9"}, {"0", "2", "5", "7"}
    with monkeypatch.context() as patched:
        patched.setattr(dropping, "write_table", dying(dropping.write_table))
        patched.setattr(dropping, "remove_part", dying(dropping.remove_part))
        try:
            drop(ledger, [parse("reason=empty")])
        except Killed:
            assert left == 0
        else:
            assert calls > 6  # two parts, of which each is written twice and removed once
    there = {one.key for one in read_ledger(ledger)}
    assert there >= stay and there | set(dropped_rows(ledger, drops(ledger), "key")) >= stay | gone
    drop(ledger, [parse("reason=empty")])
    assert {one.key for one in read_ledger(ledger)} == stay
    assert sorted(dropped_rows(ledger, drops(ledger), "key")) == sorted(gone), "each is counted once"
    compact(ledger)
    assert keys(ledger) == sorted(map(int, stay)) and len(drops(ledger)) == 2


def test_any_rows_in_any_order(tmp_path: Path) -> None:
    rng = random.Random(3)
    for n in range(20):
        url = str(tmp_path / str(n))
        rows = [number(i, text=rng.choice(["", "x"]), tier=rng.choice("ab")) for i in range(rng.randrange(1, 30))]
        wanted = {one.key for one in rows if not (one.text == "" and one.tier == "a")}
        while rows:
            size = rng.randrange(1, 6)
            write_part(url, rows[:size])
            rows = rows[size:]
        drop(url, [parse("tier=a"), parse("reason=empty")])
        assert {one.key for one in read_ledger(url)} == wanted


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(ledger: str) -> None:
    run = typer.testing.CliRunner().invoke
    command = ["ledger", "drop", ledger, "--where", "reason=empty", "--where", "model=small"]
    would = run(cli.app, [*command, "--dry-run"])
    assert would.exit_code == 0 and "3 of 10 rows would be taken out, 15 tokens" in would.stdout.replace("\n", " ")
    assert len(keys(ledger)) == 10
    told = json.loads(run(cli.app, [*command, "--json"]).stdout)
    assert (told["rows"], told["thought_tokens"], told["by"]["model"]) == (3, 15, {"small": 3})
    nothing = run(cli.app, command).stdout
    assert "0 of 7 rows were taken out" in nothing and "model of what is there: big 4, small 3" in nothing
    said = run(cli.app, ["ledger", "drop", ledger, "--where", "reason=empty"]).stdout
    assert "1 of 7 rows were taken out, 5 tokens that were paid for" in said and "tier: deep 1" in said


# --- answers without text ---------------------------------------------------------------------------------------------


class Answers:
    """What the generator says to the nth request; counts them."""

    def __init__(self) -> None:
        self.made = 0
        self.text: Callable[[int], str] = lambda number: GOOD

    def engine(self, model: ModelConfig) -> RehearsalEngine:
        answers = self

        class Engine(RehearsalEngine):
            async def generate(self, request: GenerationRequest) -> Generation:
                answers.made += 1
                text = answers.text(answers.made)  # before others count on while this one waits
                return dataclasses.replace(await super().generate(request), text=text)

        return Engine(model)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(registry, "create_engine", made.engine)
    return made


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return rehearsal_config(write_jsonl({"id": str(i), "text": f"Text number {i} says so. " * 40} for i in range(4)))


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_all_answers_empty_is_an_error_until_they_are_dropped(
    answers: Answers, tree: dict[str, Any], text: str
) -> None:
    """Also of the run that finds them in the ledger; then the model, mended, is asked for every one of them."""
    answers.text = lambda number: text
    config = from_mapping(tree)
    stages = ["score", "augment"]
    told = rf"have no text, more than ledger\.max_empty_fraction=0\.5 .*drop {config.ledger_url} --where reason=empty"
    with pytest.raises(MillError, match=told):
        mill(config, stages=stages)
    answers.text = lambda number: GOOD
    with pytest.raises(MillError, match=told):  # found in the ledger, and so for good
        mill(config, stages=stages)
    assert manifest.read(config.output, "augment") is None
    done = drop(config.ledger_url, [parse("reason=empty")])
    counts = mill(config, stages=stages)["augment"].counts
    assert counts["empty"] == 0 and counts["generated"] == done.rows > 2
    told_of = {"generations": done.rows, "thought_tokens": done.thought_tokens}
    assert status.read(config.output)["dropped"] == told_of


@pytest.mark.slow
def test_what_is_dropped_from_a_finished_run_is_asked_for_again(answers: Answers, tree: dict[str, Any]) -> None:
    """A few bad rows are below the share: the run is done; without them it isn't, and only they are made again."""
    answers.text = lambda number: "" if number in (1, 3) else GOOD
    config = from_mapping(tree)
    counts = mill(config)["augment"].counts
    assert counts["empty"] == 2 < counts["generations"]
    asked = answers.made
    mill(config)
    assert answers.made == asked, "it is done"
    assert drop(config.ledger_url, [parse("reason=empty")]).rows == 2
    again = mill(config)["augment"]
    assert (again.counts["generated"], again.counts["empty"], answers.made) == (2, 0, asked + 2)
    assert again.facts["drops"] == drops(config.ledger_url) and manifest.read(config.output, "pack") is not None
    mill(config)
    assert answers.made == asked + 2, "it is done again"
    write_part(config.ledger_url, [number(1, text="")])
    drop(config.ledger_url, [parse("reason=empty")])
    mill(config)
    assert answers.made == asked + 2, "what nobody asked for makes nothing again"


@pytest.mark.parametrize(
    ("limit", "planned", "empty", "good", "stops"),
    [
        (0.5, None, 99, 0, False),
        (0.5, None, 100, 0, True),
        (0.5, None, 100, 100, False),
        (0.5, None, 101, 100, True),
        (0.5, 8, 5, 0, True),
        (0.5, 8, 4, 4, False),
        (1.0, 8, 8, 0, False),
        (0.0, 8, 1, 7, True),
    ],
)
def test_when_empty_answers_stop_a_run(
    tmp_path: Path, limit: float, planned: int | None, empty: int, good: int, stops: bool
) -> None:
    order = WorkOrder(
        run_id="run",
        began_ms=0,
        ledger_url=str(tmp_path / "ledger"),
        planned_generations=planned,
        max_empty_fraction=limit,
    )
    one = Worker(order)
    for n in range(good + empty):
        one.keep(number(n, text=" " if n >= good else "x"))
    if stops:
        with pytest.raises(TooManyFailures, match=f"{empty} of {empty + good} generations have no text"):
            one.check_failures()
    else:
        one.check_failures()
    one.close()


def test_a_pilot_of_empty_answers_is_an_error(answers: Answers, tree: dict[str, Any]) -> None:
    answers.text = lambda number: ""
    config = from_mapping(tree)
    mill(config, stages=["score"])
    with pytest.raises(MillError, match=r"have no text.*ledger drop"):
        make_plan(config, pilot=4)


@pytest.mark.slow
def test_servers_that_answer_nothing(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    server = ScriptedServer(lambda number, body: completion(body, text="", reasoning="" if number % 2 else None))
    model = {"engine": "endpoint", "name": byte_tokenizer, "urls": [server.url], "served_name": SERVED}
    source = write_jsonl({"id": str(i), "text": f"Text number {i} says so. " * 40} for i in range(4))
    config = from_mapping(rehearsal_config(source, models={"pretend": model}))
    try:
        with pytest.raises(MillError, match="have no text"):
            mill(config)
        server.script = lambda number, body: completion(body, text=GOOD)
        drop(config.ledger_url, [parse("reason=empty")])
        assert mill(config)["augment"].counts["empty"] == 0
    finally:
        server.stop()
