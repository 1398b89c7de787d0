"""Thoughts: what a generation says, how it ended, and how it is closed within its cap."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.engines.protocol import Closing, EngineDead, Generation, GenerationRequest
from augment.feeding.tickets import Job
from augment.requests.closing import (
    SENTENCE_STOPS,
    ClosingConfig,
    close_request,
    closed_of,
    make_closing,
    needs_closing,
    opening_request,
)
from augment.traces import ends_sentence, parse_trace
from sharding.records.types import LedgerRow
from tests.test_ledger import row

NO_IDS = np.empty(0, np.uint32)


def generation(text: str, finish_reason: str = "stop", **fields: Any) -> Generation:
    values = {"token_ids": np.arange(3, dtype=np.uint32), "sum_logprobs": -1.0, "engine_version": "0", **fields}
    return Generation(text=text, finish_reason=finish_reason, **values)


def ledger_row(text: str, **fields: Any) -> LedgerRow:
    return row(1, text=text, **fields)


@pytest.mark.parametrize(
    ("text", "finish_reason", "trace", "closed"),
    [
        # no thinking block: the answer
        ("It ends.", "stop", "It ends.", "natural"),
        ("  \n It ends. \n", "stop", "It ends.", "natural"),
        ("It goes on and", "length", "It goes on and", "cut"),
        ("It ends right at the cap.", "length", "It ends right at the cap.", "cut"),
        ("again again again", "repetition", "again again again", "cut"),
        ("", "stop", "", "natural"),
        # opened by the model
        ("<think>\nBecause.\n</think>\n\nAnswer.", "stop", "Because.", "natural"),
        ("<think>Because.</think>Answer that goes on", "length", "Because.", "natural"),
        ("<think>Because", "length", "Because", "cut"),
        ("<think>\nBecause.\n", "stop", "Because.", "natural"),
        ("<think><think>Because.</think>", "stop", "Because.", "natural"),
        # opened by the prompt
        ("Because.\n</think>\n\nAnswer.", "stop", "Because.", "natural"),
        ("Because.</think>", "length", "Because.", "natural"),
        # an empty block: the answer
        ("<think>\n\n</think>\n\nAnswer.", "stop", "Answer.", "natural"),
        ("</think>\n\nAnswer and", "length", "Answer and", "cut"),
        ("<think></think>", "stop", "", "natural"),
        # other marks, and marks that are only spoken of
        ("[THINK]Because.[/THINK]Answer.", "stop", "Because.", "natural"),
        ("<seed:think>\nBecause.</seed:think>Answer.", "length", "Because.", "natural"),
        ("<|channel|>analysis<|message|>Because.", "stop", "Because.", "natural"),
        (
            "<|channel|>analysis<|message|>Because.<|end|><|start|>assistant<|channel|>final<|message|>So.<|return|>",
            *("stop", "Because.", "natural"),
        ),
        ("<|channel|>final<|message|>So.<|return|>", "stop", "So.", "natural"),
        ("<|channel|>analysis<|message|>It goes on </think>", "length", "It goes on </think>", "cut"),
        ("<|START_THINKING|>Because.<|END_THINKING|><|START_RESPONSE|>So.", "length", "Because.", "natural"),
        ("Because.<|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>", "stop", "Because.", "natural"),
        ("<|START_THINKING|><|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>", "stop", "So.", "natural"),
        ("<|channel>thought\nBecause.<channel|>So.", "length", "Because.", "natural"),
        ("Here is my thought process:\n\nBecause.\n\nHere is my response:\nSo.", "stop", "Because.", "natural"),
        ("◁think▷Because.◁/think▷So.", "stop", "Because.", "natural"),
        (
            "<think>It says [/THINK] and <|end|> here.</think>So.",
            "stop",
            "It says [/THINK] and <|end|> here.",
            "natural",
        ),
        ("The tag <think> begins it.", "stop", "The tag <think> begins it.", "natural"),
    ],
)
def test_parse(text: str, finish_reason: str, trace: str, closed: str) -> None:
    assert closed_of(generation(text, finish_reason)) == closed
    parsed = parse_trace(ledger_row(text, finish_reason=finish_reason, closed=closed, thought_tokens=9))
    assert (parsed.text, parsed.closed, parsed.finish_reason, parsed.thought_tokens) == (
        *(trace, closed, finish_reason, 9),
    )


@pytest.mark.parametrize(
    ("text", "finish_reason", "closed"),
    [
        ("It goes on and ends. ", "stop", "forced"),
        ("It goes on and ends.", "length", "forced"),
        ("It goes on and on and", "length", "cut"),
        ("<think>It ends.</think>", "stop", "forced"),
        ("It goes on. 2", "stop", "forced"),
        ("The tasks are these.\n\n1. ", "stop", "cut"),
        ("They are as follows: 1. ", "stop", "cut"),
        ("One is even. 2. ", "stop", "cut"),
        ("- first\n- a) ", "stop", "cut"),
        ("Some of them, e.g. ", "stop", "cut"),
        ("It holds, i. e.\n", "stop", "cut"),
        ("As shown in Fig. ", "stop", "cut"),
        ("So we find that\n\nf(x) =\n\n", "stop", "cut"),
        ("f(x) =", "stop", "cut"),
        ("These are the cases:\n\n", "stop", "cut"),
        ("```python\nif x > 1. ", "stop", "cut"),
        ("Like so:\n```", "stop", "cut"),
        ("```\ndone.\n```\nIt ends. ", "stop", "forced"),
        ("In short $$x = 1. ", "stop", "cut"),
        ("\\[ x = 1. ", "stop", "cut"),
        ("1. ", "length", "cut"),
        ("The answer is: 42. ", "stop", "forced"),
        ("They are x, y, and z. ", "stop", "forced"),
        ("It is so in step 3. ", "stop", "forced"),
        ("It was so in 1999. ", "stop", "forced"),
        ("Is it so? No. ", "stop", "forced"),
        ("It is written in C++\n\n", "stop", "forced"),
        ("<think>1. ", "stop", "cut"),
    ],
)
def test_forced(text: str, finish_reason: str, closed: str) -> None:
    assert closed_of(generation(text, finish_reason, forced=True)) == closed


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("It ends.", True),
        ("It ends. ", True),
        ('He said: "It ends."', True),
        ("Does it end?", True),
        ("(It ends.)", True),
        ("ここで終わる。", True),
        ("a paragraph\n\n", True),
        ("```\ncode\n```", True),
        ("It goes on", False),
        ("It is 3.1", False),
        ("", False),
        ("first. Then", False),
        ("1. ", False),
        ("e.g. ", False),
        ("f(x) =\n\n", False),
        ("```\ncode.", False),
        ("It ends." + "\n" * 9, True),
    ],
)
def test_ends_sentence(text: str, ends: bool) -> None:
    assert ends_sentence(text) == ends


@given(st.text(max_size=60), st.sampled_from(["stop", "length", "repetition"]), st.booleans())
def test_any_text_parses(text: str, finish_reason: str, forced: bool) -> None:
    closed = closed_of(generation(text, finish_reason, forced=forced))
    trace = parse_trace(ledger_row(text, closed=closed)).text
    assert trace == trace.strip()
    assert trace in text
    assert not trace.startswith("<think>") and "</think>" not in trace
    if finish_reason == "stop" and not forced:
        assert closed == "natural"
    assert closed in (("forced", "cut") if forced else ("natural", "cut"))


# --- closing ----------------------------------------------------------------------------------------------------------


class Script:
    """An engine that answers each call in turn and keeps what it was asked."""

    def __init__(self, *answers: Generation | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[GenerationRequest] = []

    async def generate(self, request: GenerationRequest) -> Generation:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def request(closing: Closing | None, **fields: Any) -> GenerationRequest:
    values = {"max_tokens": 100, "seed": 7, "stop": ("</think>",), **fields}
    return GenerationRequest(key="k", prompt_token_ids=np.array([1, 2], np.uint32), closing=closing, **values)


def make(reserve: int = 20, phrase: str = "", phrase_ids: np.ndarray = NO_IDS) -> Closing:
    return Closing(reserve_tokens=reserve, phrase=phrase, phrase_token_ids=phrase_ids)


def one_try(engine: Script, asked: GenerationRequest) -> Generation:
    return asyncio.run(Job(asked, None, None).generate(engine))  # type: ignore[arg-type]


def test_what_ends_by_itself_takes_one_call() -> None:
    engine = Script(generation("It ends."))
    done = one_try(engine, request(make()))
    assert (done.text, done.forced, closed_of(done)) == ("It ends.", False, "natural")
    (asked,) = engine.asked
    assert (asked.max_tokens, asked.closing, asked.seed) == (80, None, 7)


def test_without_closing_the_cap_is_the_cap() -> None:
    engine = Script(generation("It goes on and", "length"))
    done = one_try(engine, request(None))
    assert closed_of(done) == "cut"
    assert [asked.max_tokens for asked in engine.asked] == [100]


def test_what_reaches_its_cap_is_closed_by_a_second_call() -> None:
    first = generation("It goes on and", "length", token_ids=np.array([3, 4], np.uint32), sum_logprobs=-2.0)
    second = generation(" on, but ends. ", token_ids=np.array([5, 6, 7], np.uint32), sum_logprobs=-1.5)
    engine = Script(first, second)
    phrase = np.array([8, 9], np.uint32)
    done = one_try(engine, request(make(phrase=" -", phrase_ids=phrase)))
    assert done.text == "It goes on and - on, but ends. "
    assert done.token_ids.tolist() == [3, 4, 8, 9, 5, 6, 7]
    assert done.sum_logprobs == -3.5
    assert closed_of(done) == "forced"
    opening, closing = engine.asked
    assert closing.prompt_token_ids.tolist() == [1, 2, 3, 4, 8, 9]
    assert closing.prompt_token_ids.dtype == np.uint32
    assert opening.max_tokens + 2 + closing.max_tokens == 100
    assert closing.include_stop and set(closing.stop) == {"</think>", *SENTENCE_STOPS}
    assert closing.seed != opening.seed
    assert (closing.min_tokens, closing.closing) == (0, None)


@pytest.mark.parametrize(
    ("first", "needed"),
    [
        (generation("It goes on", "length"), True),
        (generation("Because.</think> The answer goes on", "length"), False),
        (generation("loop loop loop", "repetition"), False),
        (generation("It ends.", "stop"), False),
    ],
)
def test_which_generations_are_closed(first: Generation, needed: bool) -> None:
    assert needs_closing(request(make()), first) == needed
    assert not needs_closing(request(None), first)


def test_a_death_during_the_closing_call_is_one_of_the_request() -> None:
    engine = Script(generation("It goes on", "length"), EngineDead("gone"))
    with pytest.raises(EngineDead):
        one_try(engine, request(make()))


def test_unknown_logprobs_stay_unknown() -> None:
    engine = Script(generation("on and", "length", sum_logprobs=None), generation(" off. "))
    assert one_try(engine, request(make())).sum_logprobs is None


def test_there_is_no_closing_call_without_a_closing() -> None:
    with pytest.raises(ValueError, match="no closing"):
        close_request(request(None), generation("on", "length"))


@pytest.mark.parametrize(
    ("config", "max_tokens", "phrase_tokens", "reserve"),
    [
        (ClosingConfig(), 1000, 0, 48),
        (ClosingConfig(reserve_tokens=64), 4096, 5, 64),
        (ClosingConfig(), 100, 0, 25),
        (ClosingConfig(), 16, 0, 4),
        (ClosingConfig(), 3, 0, None),
        (ClosingConfig(), 16, 4, None),
        (ClosingConfig(enabled=False), 1000, 0, None),
    ],
)
def test_the_reserve(config: ClosingConfig, max_tokens: int, phrase_tokens: int, reserve: int | None) -> None:
    closing = make_closing(config, max_tokens, np.arange(phrase_tokens))
    assert (None if closing is None else closing.reserve_tokens) == reserve


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(8, 200), st.integers(0, 20))
def test_both_calls_stay_within_the_cap(max_tokens: int, min_tokens: int, reserve: int, phrase_tokens: int) -> None:
    phrase = np.arange(phrase_tokens, dtype=np.uint32)
    closing = make_closing(ClosingConfig(reserve_tokens=reserve), max_tokens, phrase)
    asked = request(closing, max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens))
    opening = opening_request(asked)
    assert 0 < opening.max_tokens <= max_tokens and opening.min_tokens <= opening.max_tokens
    if closing is not None:
        first = generation("on", "length", token_ids=np.zeros(opening.max_tokens, np.uint32))
        call = close_request(asked, first)
        assert call.max_tokens > 0
        assert opening.max_tokens + phrase_tokens + call.max_tokens == max_tokens
    assert dataclasses.replace(asked, closing=None).max_tokens == max_tokens
