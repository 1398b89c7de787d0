"""What is interrupted is not lost: written as partial rows, gone on with by prefill, never taken for finished."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from augment.engines.answers import Answer, AnswerReader
from augment.engines.config import ModelConfig
from augment.engines.protocol import Closing, Generation, GenerationRequest, Interrupted
from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.registry import Registry
from augment.feeding.tickets import Completed, Partial, Result, Ticket
from augment.ledger.compaction import compact
from augment.ledger.dropping import drop, parse
from augment.ledger.forgetting import forget
from augment.ledger.partial import as_partial, furthest
from augment.ledger.parts import PARTIAL_PART, ledger_parts, read_part, write_part
from augment.ledger.reading import read_ledger
from augment.ledger.transforms import missing_samples
from augment.requests.continuing import generation_of, join_rest, rest_of, whole
from augment.traces import PARTIAL
from pipelines.run import mill
from pipelines.watch import status
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import LedgerRow, Request
from sharding.storage import manifest
from tests.engine_sources import Engines
from tests.test_ledger import row
from tests.test_stopping import started, wait_for

PROMPT = np.arange(4, dtype=np.uint32)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(begin: int, count: int) -> str:
    return "".join(LETTERS[place % 26] for place in range(begin, begin + count))


class TypingEngine:
    """Writes the alphabet, a letter a token, going on where its prompt ends; counts the tokens that it made."""

    family = version = "typing"
    memory_share = 0.0

    def __init__(self, *, waits_at: int | None = None, capacity: int = 4) -> None:
        self.capacity = capacity
        self.made = 0
        self.requests: list[GenerationRequest] = []
        self._waits_at = waits_at  # with so many letters there are no more until it is interrupted, or told to go on
        self._interrupted, self.going_on = asyncio.Event(), asyncio.Event()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def interrupt(self) -> None:
        self._interrupted.set()

    async def generate(self, request: GenerationRequest) -> Generation:
        self.requests.append(request)
        begin, waits = len(request.prompt_token_ids) - len(PROMPT), [self._interrupted, self.going_on]
        count = request.max_tokens
        if self._waits_at is not None and begin + count > self._waits_at:
            while not any(one.is_set() for one in waits):
                await asyncio.sleep(0.002)
            if self._interrupted.is_set():
                count = max(0, self._waits_at - begin)
        self.made += count
        made = Generation(
            text=letters(begin, count),
            token_ids=np.arange(begin, begin + count, dtype=np.uint32),
            sum_logprobs=-1.0,
            finish_reason="length" if count == request.max_tokens else PARTIAL,
            engine_version="1",
        )
        if count < request.max_tokens:
            raise Interrupted("told to end", made if count else None)
        return made


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.partial: list[Partial] = []

    def keep(self, result: Result | Partial) -> None:
        if isinstance(result, Partial):
            self.partial.append(result)
        else:
            self.results.append(result)


def ask(key: str, max_tokens: int = 20, **fields: Any) -> GenerationRequest:
    return GenerationRequest(key=key, prompt_token_ids=PROMPT, max_tokens=max_tokens, **fields)


def feed(engine: TypingEngine) -> Feeder:
    return Feeder(Engines(lambda: engine), name="model", config=FeedingConfig(backoff_s=0.001))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


def interrupted(engine: TypingEngine, *requests: GenerationRequest, calls: int = 0) -> tuple[Ticket, Kept]:
    """A feeder that was told to end while these were in flight, and what came to its bundle."""
    feeder, sink = feed(engine), Kept()
    ticket = feeder.ticket(sink)
    for request in requests:
        ticket.submit(request, request.key)
    until(lambda: len(engine.requests) == (calls or len(requests)))
    feeder.close()
    return ticket, sink


# --- the feeder -------------------------------------------------------------------------------------------------------


def test_an_interrupted_request_is_gone_on_with_and_no_token_is_made_twice() -> None:
    first = TypingEngine(waits_at=7)
    ticket, sink = interrupted(first, ask("a", expected_tokens=20), ask("b", max_tokens=5), ask("c", min_tokens=9))
    with pytest.raises(MillError, match="closed"):
        list(ticket.drain())
    assert [result.request.key for result in sink.results] == ["b"], "what had finished is whole"
    there = {partial.context: partial.generation for partial in sink.partial}
    assert sorted(there) == ["a", "c"] and all(one.text == letters(0, 7) for one in there.values())

    second = TypingEngine()
    feeder = feed(second)
    ticket = feeder.ticket()
    ticket.submit(ask("c", min_tokens=9), begun=there["c"])
    (result,) = list(ticket.drain())
    feeder.close()
    assert isinstance(result, Completed) and result.found_tokens == 7
    made = result.generation
    assert made.text == letters(0, 20) == there["c"].text + letters(7, 13)
    assert made.token_ids.tolist() == list(range(20)) and (made.continued, made.paid_tokens) == (1, 20)
    assert made.sum_logprobs == -2.0 and made.finish_reason == "length"
    (asked,) = second.requests
    assert asked.prompt_token_ids.tolist() == [*PROMPT.tolist(), *range(7)]
    assert (asked.max_tokens, asked.min_tokens) == (13, 2) and asked.seed != ask("c").seed
    assert feeder.stats().generated_tokens == second.made == 13, "the other seven were counted when they were made"


def test_what_finishes_within_the_time_is_whole() -> None:
    engine = TypingEngine(waits_at=7)
    feeder, sink = feed(engine), Kept()
    ticket = feeder.ticket(sink)
    ticket.submit(ask("a"))
    until(lambda: bool(engine.requests))
    feeder.end(drain_s=60.0)
    with pytest.raises(MillError, match="closed"):
        feeder.submit(type("Never", (), {})())  # no more requests are taken
    feeder._loop.call_soon_threadsafe(engine.going_on.set)
    feeder.close()
    assert not sink.partial and [result.request.key for result in sink.results] == ["a"]


def test_one_that_is_interrupted_again_and_again_counts_its_tokens_once() -> None:
    there: Generation | None = None
    for waits_at, total in ((7, 7), (7, 7), (12, 12)):
        engine, sink = TypingEngine(waits_at=waits_at), Kept()
        feeder = feed(engine)
        feeder.ticket(sink).submit(ask("a"), begun=there)
        until(lambda engine=engine: bool(engine.requests))  # type: ignore[misc]
        feeder.end()
        feeder.close()
        if there is not None and there.paid_tokens == total:
            assert not sink.partial, "nothing new: what is in the ledger says it already"
            continue
        (partial,) = sink.partial
        there = partial.generation
        assert there.text == letters(0, total) and there.paid_tokens == total
    assert there is not None and (there.continued, there.finish_reason) == (1, PARTIAL)


def test_an_interrupted_closing_call_leaves_the_whole_first_call() -> None:
    closing = Closing(reserve_tokens=6, phrase="", phrase_token_ids=np.empty(0, np.uint32))
    _, sink = interrupted(TypingEngine(waits_at=14), ask("a", closing=closing), calls=2)
    (partial,) = sink.partial
    assert (partial.generation.text, partial.generation.finish_reason) == (letters(0, 14), "length")
    engine = TypingEngine()
    feeder = feed(engine)
    ticket = feeder.ticket()
    ticket.submit(ask("a", closing=closing), begun=partial.generation)
    (result,) = list(ticket.drain())
    feeder.close()
    assert isinstance(result, Completed) and result.generation.text == letters(0, 20) and result.generation.forced
    assert [one.max_tokens for one in engine.requests] == [6], "the closing call alone"


def test_an_engine_that_does_not_say_what_there_is_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Silent(TypingEngine):
        interrupt = None  # type: ignore[assignment]

    _, sink = interrupted(Silent(waits_at=3), ask("a"), ask("b"))
    assert not sink.partial
    assert "2 requests of model don't finish in time" in caplog.text and "made again from the start" in caplog.text


def test_what_the_owner_of_an_engine_has_of_another_process_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two registries stand for two processes: the lock is per open file."""
    engine = TypingEngine(waits_at=5)
    engine.memory_share = 1.0
    monkeypatch.setattr(registry, "create_engine", lambda model: engine)
    model, job = ModelConfig(engine="vllm", name="shared"), str(tmp_path)
    owner, other = Registry(), Registry()
    owner.host(job).try_own()
    feeder, sink = other.acquire(model, FeedingConfig(backoff_s=30.0), job=job), Kept()
    feeder.ticket(sink).submit(ask("a"))
    until(lambda: bool(engine.requests))
    owner.close_all()
    until(lambda: feeder.stats().retries == 1)  # it has come back, and waits for its next try
    other.close_all()
    (partial,) = sink.partial
    assert partial.generation.text == letters(0, 5)


# --- what there is ----------------------------------------------------------------------------------------------------


def test_the_rest_asks_for_what_is_left() -> None:
    there = Generation(
        text="abc",
        token_ids=np.arange(3, dtype=np.uint32),
        sum_logprobs=None,
        finish_reason=PARTIAL,
        engine_version="1",
        unseen_tokens=2,
    )
    rest = rest_of(ask("a", max_tokens=9), there)
    assert rest is not None and rest.max_tokens == 4 and rest.prompt_token_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert rest_of(ask("a", max_tokens=5), there) is None and whole(there).finish_reason == "length"
    again = rest_of(ask("a", max_tokens=9), there)
    assert again is not None and again.seed == rest.seed, "the same wherever it is made"
    assert join_rest(there, there).paid_tokens == 10 and join_rest(there, there).sum_logprobs is None


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("One. Two", (), "One. Two"),
        ("Straße 5 – ", (), "Straße 5 – "),
        ("It ends\n", ("\n\n",), "It ends"),
        ("It ends <", ("</answer>", "<end>"), "It ends "),
        ("##", ("###",), ""),
    ],
)
def test_a_partial_ends_where_another_call_can_carry_on(
    byte_tokenizer: str, text: str, stop: tuple[str, ...], left: str
) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    ids = tokenizer.encode_for_scoring(text).tolist()
    reader = AnswerReader(tokenizer)
    made = reader.read_partial(
        ask("a", 99, stop=stop), Answer(text=text, token_ids=ids, finish_reason="abort", engine_version="1")
    )
    assert left.startswith(made.text) and text.startswith(made.text)
    assert not any(made.text.endswith(one[:n]) for one in stop for n in range(1, len(one)))
    assert made.paid_tokens == len(ids) and made.finish_reason == PARTIAL
    if not stop:
        assert made.text == text and made.unseen_tokens == 0


def test_a_partial_ends_with_a_whole_character(byte_tokenizer: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    ids = tokenizer.encode_for_scoring("zwölf 𝔊").tolist()
    assert len(tokenizer.encode_for_scoring("𝔊")) > 1
    answer = Answer(text="", token_ids=ids[:-1], finish_reason="abort", engine_version="1")
    made = AnswerReader(tokenizer).read_partial(ask("a", 99), answer)
    assert made.text == "zwölf " and made.paid_tokens == len(ids) - 1


# --- the ledger -------------------------------------------------------------------------------------------------------


def partial_row(number: int, tokens: int, **fields: Any) -> LedgerRow:
    return as_partial(row(number, thought_tokens=tokens, token_ids=np.arange(tokens, dtype=np.uint32), **fields))


def test_a_partial_row_is_never_read_as_a_finished_one(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_part(url, [row(1)])
    write_part(url, [partial_row(2, 5), partial_row(3, 6)], kind=PARTIAL_PART)
    assert [one.key for one in read_ledger(url)] == [row(1).key] and len(ledger_parts(url)) == 1
    (there,) = ledger_parts(url, kind=PARTIAL_PART)
    rows = read_part(there)
    assert rows is not None and [one.closed for one in rows] == ["partial", "partial"]
    made = generation_of(rows[0])
    assert (made.text, made.paid_tokens, made.token_ids.tolist()) == (rows[0].text, 5, list(range(5)))


@pytest.mark.parametrize("seed", range(3))
def test_the_furthest_counts_in_any_order(seed: int) -> None:
    rows = [partial_row(1, 5), partial_row(1, 9), partial_row(1, 9, finished_at=1.0), partial_row(2, 3)]
    random.Random(seed).shuffle(rows)
    found = furthest(rows)
    assert {key: one.thought_tokens for key, one in found.items()} == {row(1).key: 9, row(2).key: 3}
    assert found[row(1).key].finished_at == 1.0


def test_compacting_and_dropping_leave_no_partial_row_that_was_gone_on_with(tmp_path: Path) -> None:
    def partials(url: str) -> dict[str, int]:
        found = [one for part in ledger_parts(url, kind=PARTIAL_PART) for one in read_part(part) or ()]
        assert len({one.key for one in found}) == len(found)
        return {one.key: one.thought_tokens for one in found}

    for act in ("compact", "drop"):
        url = str(tmp_path / act)
        write_part(url, [row(1), row(4, tier="bad")])
        write_part(url, [partial_row(1, 5), partial_row(2, 5)], kind=PARTIAL_PART)
        write_part(url, [partial_row(2, 8), partial_row(3, 4, tier="bad"), partial_row(4, 2)], kind=PARTIAL_PART)
        if act == "compact":
            compact(url)
            assert partials(url) == {row(2).key: 8, row(3).key: 4}
        else:
            done = drop(url, [parse("tier=bad")])
            assert partials(url) == {row(2).key: 8}, "no run goes on from what is bad"
            assert done.rows == 2 and done.thought_tokens == row(4).thought_tokens + 4


def test_what_was_interrupted_is_forgotten_with_its_document(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_part(
        url, [partial_row(1, 5, segment_id="gone#0"), partial_row(2, 5, segment_id="stays#0")], kind=PARTIAL_PART
    )
    done = forget(url, frozenset(), lambda doc_id: doc_id == "gone", {})
    assert done.strangers == 1
    (part,) = ledger_parts(url, kind=PARTIAL_PART)
    assert [one.segment_id for one in read_part(part) or ()] == ["stays#0"]


def test_a_request_carries_what_there_is_of_its_missing_samples() -> None:
    request = Request(
        doc_id="d",
        segment_index=0,
        tier="deep",
        model="m",
        prompt="p",
        request_key=row(0).request_key,
        samples=3,
        max_tokens=20,
        expected_tokens=20.0,
        prompt_tokens=4,
        prompt_token_ids=PROMPT,
        shown_tokens=9,
    )
    key = request.request_key
    rows = [row(0, key=f"{key}-0", request_key=key, sample=0)]
    begun = [
        partial_row(0, tokens, key=f"{key}-{n}", request_key=key, sample=n) for n, tokens in ((0, 3), (1, 4), (7, 2))
    ]
    (found, missing), _ = missing_samples((key, {"requests": [request], "rows": rows, "begun": begun}))
    assert missing == [1, 2] and [(one.sample, one.thought_tokens) for one in found.begun] == [(1, 4)]


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(
    tmp_path: Path, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> Callable[..., dict[str, Any]]:
    """A config whose generations take seconds each, at this many tokens per second."""

    def made(rate: int) -> dict[str, Any]:
        source = write_jsonl([{"id": str(i), "text": f"Document {i} says {i * i}. " * 40} for i in range(40)])
        engine = {"capacity": 4, "tokens_per_second": rate}
        return rehearsal_config(
            source,
            models={"pretend": {"engine": "rehearsal", "name": "pretend", "engine_args": engine}},
            ledger={"flush_rows": 2, "flush_seconds": 0.2},
        )

    return made


TWO = ("--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drain_s", "options"), [("0", TWO), ("60", ())], ids=["no time, two processes", "time enough, one process"]
)
def test_a_run_that_gets_notice_buys_nothing_twice(
    tmp_path: Path,
    slow: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    drain_s: str,
    options: tuple[str, ...],
) -> None:
    tree = slow(20 if drain_s == "0" else 50)
    path, ledger = tmp_path / "mill.yaml", tmp_path / "out" / "ledger"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = ("run", str(path), "--drain-seconds", drain_s)
    run = started(sys.executable, "-m", "pipelines.cli", *command, *options)
    wait_for(lambda: len(list(ledger.glob("part-*.arrow"))) > 1, run)
    run.send_signal(signal.SIGTERM)
    _, complained = run.communicate(timeout=90)
    assert run.returncode == 128 + signal.SIGTERM and "Traceback" not in complained, complained

    url = str(ledger)
    before = {one.key: one for one in read_ledger(url)}
    begun = furthest(one for part in ledger_parts(url, kind=PARTIAL_PART) for one in read_part(part) or ())
    assert not set(begun) & set(before) and bool(begun) == (drain_s == "0")
    config = from_mapping(slow(1_000_000))
    found = status.read(config.output)
    spent = sum(one.thought_tokens for one in (*before.values(), *begun.values()))
    assert found["generation"]["generations"] == len(before) and found["generation"]["thought_tokens"] == spent
    if begun:
        assert found["begun"] == {
            "generations": len(begun),
            "thought_tokens": sum(one.thought_tokens for one in begun.values()),
        }
        assert "interrupted" in rendered(found)

    generated: dict[str, int] = {}
    generate = RehearsalEngine.generate

    async def counted(self: RehearsalEngine, request: GenerationRequest) -> Generation:
        generation = await generate(self, request)
        generated[request.key] = generated.get(request.key, 0) + len(generation.token_ids)
        return generation

    monkeypatch.setattr(RehearsalEngine, "generate", counted)
    mill(config)
    after = {one.key: one for one in read_ledger(url)}
    counts = manifest.require(config.output, "augment").counts
    assert counts["thought_tokens_found"] == spent and counts["thought_tokens_now"] == sum(generated.values())
    assert counts["thought_tokens"] == sum(one.thought_tokens for one in after.values())
    assert counts.get("continued", 0) == len(begun) and not set(before) & set(generated)
    for key, there in begun.items():
        whole_row = after[key]
        assert whole_row.text.startswith(there.text) and whole_row.continued == 1
        assert whole_row.token_ids[: len(there.token_ids)].tolist() == there.token_ids.tolist()
        assert whole_row.thought_tokens == there.thought_tokens + generated[key], "what was there wasn't made again"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (f"{len(begun)} generations were interrupted and gone on with" in card) == bool(begun)
    assert "begun" not in status.read(config.output), "what was gone on with counts with what came of it"


def rendered(found: dict[str, Any]) -> str:
    from rich.console import Console

    console = Console(record=True, width=200)
    console.print(status.render(found))
    return console.export_text()
