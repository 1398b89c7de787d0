"""Model servers that mean harm, or are broken in ways that come to the same: one answer costs one request.

Through the feeder as in a run; the servers are scripted. What honest servers do is in tests/test_endpoint_engine.py.
"""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import gzip
import itertools
import shutil
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from augment.engines.config import ModelConfig
from augment.engines.protocol import Closing, GenerationRequest
from augment.feeding.feeder import Feeder
from augment.feeding.tickets import Completed, Failure
from augment.marks import DIALECTS
from augment.requests.closing import closed_of
from augment.selection.gates import GatesConfig
from augment.selection.gates.gate import Subject
from augment.selection.gates.unprintable import Unprintable
from augment.traces import ends_sentence, goes_on, parse_trace
from sharding.errors import RequestError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from tests.endpoint_server import Raw, ScriptedServer, completion
from tests.test_endpoint_engine import (  # noqa: F401 - some are fixtures
    KEY,
    KEY_VARIABLE,
    config,
    feed,
    many,
    request,
    run_all,
    run_one,
    serve,
    short_pauses,
)
from tests.test_thoughts import generation, ledger_row

Serve = Callable[..., ScriptedServer]
Config = Callable[..., ModelConfig]
Feed = Callable[..., Feeder]
BAD_SEED = 7


def fails_alone(serve: Serve, config: Config, feed: Feed, act: Any, **fields: Any) -> Failure:
    """How a request fails that is answered by `act`, while the others are answered well."""
    server = serve(lambda number, body: act if body["seed"] == BAD_SEED else completion(body))
    feeder = feed(config(server, **fields))
    results = run_all(feeder, [*many(6), request("bad", seed=BAD_SEED), *(request(f"after {i}") for i in range(6))])
    failed = results.pop("bad")
    assert isinstance(failed, Failure), failed
    assert all(isinstance(result, Completed) for result in results.values()), results
    assert feeder.error is None
    return failed


# --- bodies -----------------------------------------------------------------------------------------------------------


def nested(opens: str, closes: str, depth: int = 50_000) -> bytes:
    return (opens * depth + closes * depth).encode()


def said(body: bytes, headers: str = "", status: str = "200 OK") -> Raw:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return Raw(head.encode("latin-1") + body)


def packed_spaces(num_bytes: int, wbits: int) -> bytes:
    packer = zlib.compressobj(9, wbits=wbits)
    block = b" " * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(num_bytes >> 20)) + packer.flush()


GOOD = b'{"choices": [{"text": "all is well.", "finish_reason": "stop"}]}'

BODIES = {
    "deep arrays": (said(nested("[", "]")), "makes no sense"),
    "deep objects in a field nobody reads": (
        said(b'{"choices": [{"text": "a", "finish_reason": "stop"}], "x": ' + nested('{"a":[', "]}") + b"}"),
        "makes no sense",
    ),
    "deep error": (said(nested("[", "]"), status="500 Oops"), "answered 500"),
    "deep error message": (said(b'{"error": ' + nested('{"a":', "}") + b"}", status="400 Bad"), "answered 400"),
    "an error in no charset": (said(b"oh", "Content-Type: text/plain; charset=zlib\r\n", "500 Oops"), "500: oh"),
    "an error in another": (said(b"oh", "Content-Type: text/plain; charset=bz2\r\n", "422 Oops"), "422: oh"),
    "a long answer": (said(GOOD + b" " * (8 << 20)), "more than"),
    "a long error": (said(b"oh no " * (4 << 20), status="500 Oops"), "answered 500: oh no"),
    "broken gzip": (said(GOOD, "Content-Encoding: gzip\r\n"), "gzip"),
    "an encoding nobody asked for": (said(GOOD, "Content-Encoding: zstd\r\n"), "zstd"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_fails_one_request(serve: Serve, config: Config, feed: Feed, name: str) -> None:
    act, message = BODIES[name]
    assert message in fails_alone(serve, config, feed, act).error


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
def test_a_bomb_takes_little_memory(serve: Serve, config: Config, feed: Feed, encoding: str, status: str) -> None:
    """600 kB of gzip were 1.5 GB."""
    packed = packed_spaces(600 << 20, zlib.MAX_WBITS + 16 * (encoding == "gzip"))
    tracemalloc.start()
    try:
        failed = fails_alone(serve, config, feed, said(packed, f"Content-Encoding: {encoding}\r\n", status))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ("more than" if status.startswith("2") else "answered 500") in failed.error
    assert peak_bytes < 64 << 20


def test_a_packed_answer_is_read(serve: Serve, config: Config, feed: Feed) -> None:
    """It wasn't asked for, but some proxies pack all the same."""
    server = serve(lambda number, body: said(gzip.compress(GOOD), "Content-Encoding: gzip\r\n"))
    made = run_one(feed(config(server)), request("a")).generation
    assert made.text == "all is well."


def escaped(text: str) -> str:
    """As JSON may have it; some servers write "+" so."""
    return "".join(f"\\u{ord(char):04x}" for char in text)


LEAKS = {
    "text, by escapes": said(f'{{"choices": [{{"text": "{escaped(KEY)}", "finish_reason": "stop"}}]}}'.encode()),
    "error, by escapes": said(f'{{"error": {{"text": "{escaped(KEY)}"}}}}'.encode(), status="500 Oops"),
    "reason phrase": said(b"", status=f"500 {KEY} failed"),
    "reason phrase of a refusal": said(b"", status=f"400 {KEY}"),
    "error": said(f'{{"error": {{"message": "no {KEY}"}}}}'.encode(), status="500 Oops"),
    "status line": Raw(f"HTTP/9.9 {KEY} what\r\n\r\n".encode()),
    "header": Raw(f"HTTP/1.1 200 OK\r\n{KEY} : x\r\n\r\n".encode()),
    "encoding": said(GOOD, f"Content-Encoding: {KEY}\r\n"),
    "finish reason": completion({"model": "small"}, finish_reason=f"error {KEY}"),
    "text": completion({"model": "small"}, text=f"The key is {KEY}."),
    "type": said(f'{{"choices": [{{"text": "a", "{KEY}": 1, "finish_reason": {{"{KEY}": 1}}}}]}}'.encode()),
}


@pytest.mark.parametrize("name", LEAKS)
def test_no_answer_carries_the_key_into_a_message(
    serve: Serve,
    config: Config,
    feed: Feed,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    failed = fails_alone(serve, config, feed, LEAKS[name], api_key_env=KEY_VARIABLE)
    assert KEY not in failed.error and escaped(KEY) not in failed.error and failed.error


@pytest.mark.parametrize(
    "act", [said(b"\x1b]52;c;aGk=\x07 \xe2\x80\xaeno", status="500 Oops"), said(b"", status="500 \x1b[2Jno")]
)
def test_no_message_steers_a_terminal(serve: Serve, config: Config, feed: Feed, act: Any) -> None:
    assert fails_alone(serve, config, feed, act).error.isprintable()


# --- one odd value ----------------------------------------------------------------------------------------------------

WORDS = "all is well."


def told(*token_ids: Any, **fields: Any) -> dict[str, Any]:
    return completion({"model": "small"}, token_ids=list(token_ids), **fields)


def with_usage(**usage: Any) -> dict[str, Any]:
    return {**completion({"model": "small"}), "usage": usage}


ODD = {
    "a token id beyond the vocabulary": (told(1 << 31), "token id 2147483648"),
    "the first id beyond it": (told(40, 2002), "token id 2002"),
    "a negative id": (told(-1), "token id -1"),
    "a huge id": (told(10**18), "token id 1000000000000000000"),
    "an id that is none": (told(1.5), "makes no sense"),
    "an id that is a text": (told("a"), "makes no sense"),
    "no choices": ({"choices": []}, "makes no sense"),
    "choices that are none": ({"choices": "all"}, "makes no sense"),
    "a list": ([], "makes no sense"),
    "a number": (b"1e999", "makes no sense"),
    "a text that is none": (completion({"model": "small"}, text=["a"]), "makes no sense"),
    "neither text nor ids": (completion({"model": "small"}, text=None), "neither a text nor token ids"),
    "a part of a stream": ({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}, "neither a text nor"),
    "no text": (completion({"model": "small"}, text=None, token_ids=[40]), "isn't what its token ids say"),
    "an aborted one": (completion({"model": "small"}, finish_reason="Aborted by server"), "Aborted"),
    "no resources left": (
        completion({"model": "small"}, finish_reason="insufficient_system_resource"),
        "insufficient_system",
    ),
    "a preempted one": (completion({"model": "small"}, finish_reason="Preempted"), "Preempted"),
    "a refusal": (completion({"model": "small"}, finish_reason="refusal"), "refusal"),
    "an error beside a good answer": ({**completion({"model": "small"}), "error": {"message": "it died"}}, "it died"),
    "an error beside a good text": (completion({"model": "small"}, error={"message": "cut upstream"}), "cut upstream"),
    "another shape": ({"detail": "no workers"}, "no workers"),
    "a redirection to a scheme": (said(b"", "Location: javascript:alert(1)\r\n", "302 Found"), "InvalidURL"),
    "a redirection to no host": (said(b"", "Location: https://xn--/\r\n", "302 Found"), "IDNAError"),
    "a filtered one": (completion({"model": "small"}, finish_reason="content_filter"), "content_filter"),
    "a sensitive one": (completion({"model": "small"}, finish_reason="sensitive"), "sensitive"),
    "a guarded one": (completion({"model": "small"}, finish_reason="guardrail_intervened"), "guardrail_intervened"),
    "an end that is a number": (completion({"model": "small"}, finish_reason=7), "7"),
    "an end that is a list": (completion({"model": "small"}, finish_reason=[["x"] * 9999]), "['x'"),
    "more tokens than the cap": (told(*[40] * 9), "9 tokens came"),
    "many more": (completion({"model": "small"}, text="so " * 20_000), "came where 8"),
    "a text without end": (completion({"model": "small"}, text="so " * (5 << 20)), "more than"),
    "more counted than the cap": (with_usage(prompt_tokens=4, completion_tokens=3_000_141), "3,000,141 tokens"),
    "more counted, as a fraction": (with_usage(prompt_tokens=4.0, completion_tokens=3_000_141.0), "3,000,141 tokens"),
    "more counted in the total": (with_usage(prompt_tokens=4, completion_tokens=5, total_tokens=5000), "4,996 tokens"),
    "a count beyond measure": (with_usage(completion_tokens=10**19), "tokens came"),
    "another prompt": (with_usage(prompt_tokens=5, completion_tokens=5), "read 5"),
    "a cut prompt": (with_usage(prompt_tokens=3), "read 3"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_fails_one_request(serve: Serve, config: Config, feed: Feed, name: str) -> None:
    act, message = ODD[name]
    assert message in fails_alone(serve, config, feed, act).error


HARMLESS: dict[str, dict[str, Any]] = {
    "an end by another name": {"finish_reason": "eos_token"},
    "an end by a new name": {"finish_reason": "natural_stop_v2"},
    "an end in capitals": {"finish_reason": "STOP"},
    "an end as an object": {"finish_reason": {"type": "stop", "matched": 2}},
    "log probabilities that are none": {"logprobs": {"token_logprobs": ["a", {}]}},
    "log probabilities without bounds": {"logprobs": {"token_logprobs": [-1e308, -1e308]}},
    "log probabilities above 0": {"logprobs": [3]},
    "a usage that is none": {"usage": [1, 2]},
    "a usage of nothing": {"usage": {"prompt_tokens": 0, "completion_tokens": None}},
    "a usage of truths": {"usage": {"prompt_tokens": True, "completion_tokens": True, "total_tokens": "9"}},
    "no error": {"error": None, "warnings": ["error"]},
    "a usage below 0": {"usage": {"prompt_tokens": -4, "completion_tokens": -5}},
    "a model that is none": {"model": {"name": "other"}},
    "a fingerprint that is none": {"system_fingerprint": 7},
    "fields nobody knows": {"x": {"y": [None]}, "stop_reason": 2, "matched_stop": "x"},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_and_harmless_is_taken(serve: Serve, config: Config, feed: Feed, name: str) -> None:
    fields = HARMLESS[name]
    choice = {key: value for key, value in fields.items() if key in ("finish_reason", "logprobs", "stop_reason")}
    answer = {**completion({"model": "small"}, **choice), **{k: v for k, v in fields.items() if k not in choice}}
    server = serve(lambda number, body: answer)
    made = run_one(feed(config(server)), request("a", temperature=1.0, top_p=1.0)).generation
    assert (made.text, made.finish_reason, made.sum_logprobs, made.model) == (WORDS, "stop", None, None)
    assert made.paid_tokens == len(made.token_ids) == 5


@pytest.mark.parametrize(
    ("reason", "cap"),
    [
        *(("max_tokens", 5), ("model_length", 5), ("odd", 5), ("model_context_window_exceeded", 8)),
        *(("MAX_TOKENS", 8), ("token_limit", 8), ("max_new_tokens", 8)),
    ],
)
def test_a_cap_by_another_name(serve: Serve, config: Config, feed: Feed, reason: str, cap: int) -> None:
    """The room of the model or of the server may end before the cap; a trace that is cut there is no whole one."""
    server = serve(lambda number, body: completion(body, finish_reason=reason))
    assert run_one(feed(config(server)), request("a", max_tokens=cap)).generation.finish_reason == "length"


# --- what is paid, and who wrote it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("counted", "paid"), [(5, 5), (8, 8), (4, 5), (0, 5)])
def test_hidden_reasoning_is_counted(serve: Serve, config: Config, feed: Feed, counted: int, paid: int) -> None:
    server = serve(lambda number, body: with_usage(prompt_tokens=4, completion_tokens=counted))
    made = run_one(feed(config(server)), request("a")).generation
    assert (len(made.token_ids), made.paid_tokens) == (5, paid)


def test_also_where_the_total_alone_has_it(serve: Serve, config: Config, feed: Feed) -> None:
    server = serve(lambda number, body: with_usage(prompt_tokens=4, completion_tokens=5, total_tokens=12.0))
    made = run_one(feed(config(server)), request("a")).generation
    assert (len(made.token_ids), made.paid_tokens) == (5, 8)


def test_a_model_that_answers_in_place_of_another_is_named(
    serve: Serve, config: Config, feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda number, body: {**completion(body), "model": f"fallback-{number % 2}\x1b"})
    results = run_all(feed(config(server)), many(6)).values()
    assert {result.generation.model for result in results if isinstance(result, Completed)} == {
        *("fallback-0\\x1b", "fallback-1\\x1b"),
    }
    warned = [record.getMessage() for record in caplog.records if "answered" in record.getMessage()]
    assert len(warned) == 2 and "asked for 'small'" in warned[0] and "fallback-" in warned[0]


def test_names_without_number_are_warned_of_a_few_times(
    serve: Serve, config: Config, feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda number, body: {**completion(body), "model": f"{number}" * 999})
    results = run_all(feed(config(server)), many(30)).values()
    assert all(len(result.generation.model or "") <= 200 for result in results if isinstance(result, Completed))
    assert 0 < sum("answered" in record.getMessage() for record in caplog.records) < 10


def test_another_model_is_an_error_where_the_config_says_so(serve: Serve, config: Config, feed: Feed) -> None:
    server = serve(lambda number, body: {**completion(body), "model": "fallback"})
    with pytest.raises(RequestError, match="asked for 'small', 'fallback' answered; set served_name, or other_model"):
        run_all(feed(config(server, other_model="error")), many(2))


# --- a trace is what its token ids say --------------------------------------------------------------------------------

PROMPT = "You are a helpful assistant. Passage: the sky is blue."


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: str) -> TextTokenizer:
    return load_tokenizer(byte_tokenizer)


def asked(tokenizer: TextTokenizer, key: str = "bad", **fields: Any) -> GenerationRequest:
    values = {"max_tokens": 64, "seed": BAD_SEED, **fields}
    return GenerationRequest(key=key, prompt_token_ids=tokenizer.encode(PROMPT).astype(np.uint32), **values)


SAYS_ELSE = {
    "the prompt before it": ("The sky is blue.", PROMPT + " The sky is blue."),
    "other words": ("The sky is blue.", "The sea is blue."),
    "less": ("The sky is blue.", "The sky"),
    "nothing": ("The sky is blue.", ""),
    "nothing said": ("", "The sky is blue."),
    "a replaced character": ("so 大", "so \ufffd"),
    "a replaced character within": ("so 大 is", "so \ufffd is"),
    "a character that isn't there": ("The sky.", "The \ufffd sky."),
}


@pytest.mark.parametrize("name", SAYS_ELSE)
def test_a_text_that_its_ids_do_not_say(
    serve: Serve, config: Config, feed: Feed, tokenizer: TextTokenizer, name: str
) -> None:
    says, came = SAYS_ELSE[name]
    server = serve(lambda n, body: completion(body, text=came, token_ids=tokenizer.encode(says).tolist()))
    failed = run_all(feed(config(server)), [asked(tokenizer)])["bad"]
    assert isinstance(failed, Failure) and "isn't what its token ids say" in failed.error
    assert repr(came)[:20] in failed.error and repr(says)[:20] in failed.error


@pytest.mark.parametrize(
    "fields",
    [
        {"text": PROMPT + " The sky."},
        {"text": "So: " + PROMPT},
        {"text": "user " + PROMPT.replace(" ", "  ") + "<|im_end|> assistant"},
        {"text": PROMPT + " So.", "ids": PROMPT + " So."},
    ],
)
def test_a_prompt_that_comes_back(
    serve: Serve, config: Config, feed: Feed, tokenizer: TextTokenizer, fields: dict[str, str]
) -> None:
    ids = {"token_ids": tokenizer.encode(fields["ids"]).tolist()} if "ids" in fields else {}
    server = serve(lambda number, body: completion(body, text=fields["text"], **ids))
    failed = run_all(feed(config(server)), [asked(tokenizer)])["bad"]
    assert isinstance(failed, Failure) and "the prompt came back" in failed.error


@pytest.mark.parametrize(
    ("ids", "came", "text"),
    [
        ("The sky is blue. ", "The sky is blue.", "The sky is blue. "),
        (" The sky", "The sky", " The sky"),
        ("The sky<|im_end|>", "The sky", "The sky"),
        ("The <|im_start|>sky<|im_end|>", "The sky", "The sky"),
        ("<think>It is.</think>So.", "It is.So.", "<think>It is.</think>So."),
    ],
)
def test_what_servers_leave_out_of_a_text(
    serve: Serve, config: Config, feed: Feed, tokenizer: TextTokenizer, ids: str, came: str, text: str
) -> None:
    token_ids = tokenizer.encode_trusted(ids).tolist()
    server = serve(lambda number, body: completion(body, text=came, token_ids=token_ids))
    made = run_one(feed(config(server)), asked(tokenizer)).generation
    assert (made.text, made.token_ids.tolist()) == (text, token_ids)


CUT_CHARACTERS = ["It is fine 🙂", "それは大きい", "มันใหญ่มาก"]


@pytest.mark.parametrize("said_text", CUT_CHARACTERS)
@pytest.mark.parametrize("with_ids", [True, False])
def test_a_closing_begins_at_a_whole_character(
    serve: Serve, config: Config, feed: Feed, tokenizer: TextTokenizer, said_text: str, with_ids: bool
) -> None:
    """Whatever cap the first call has; what the server makes of half a character is its own business."""
    ids = tokenizer.encode(said_text + " and so it ends. ").tolist()
    whole = len(tokenizer.encode(PROMPT))
    cut_within = 0

    def script(number: int, body: dict[str, Any]) -> Any:
        begun = body["prompt"][whole:]
        assert begun == ids[: len(begun)]
        assert "\ufffd" not in tokenizer.decode(begun), "a prompt that ends within a character"
        own = ids[len(begun) : len(begun) + body["max_tokens"]]
        text = tokenizer.decode(own)
        finish = "stop" if len(begun) + len(own) == len(ids) else "length"
        return completion(body, text=text, finish_reason=finish, **({"token_ids": own} if with_ids else {}))

    server = serve(script)
    feeder = feed(config(server))
    for cap in range(1, len(tokenizer.encode(said_text))):
        closing = Closing(reserve_tokens=60, phrase="", phrase_token_ids=np.empty(0, np.uint32))
        made = run_one(feeder, asked(tokenizer, f"cap {cap}", max_tokens=60 + cap, closing=closing)).generation
        assert made.forced and made.text == tokenizer.decode(made.token_ids) == said_text + " and so it ends. "
        first = ids[:cap]
        cut_within += "\ufffd" in tokenizer.decode(first)
        assert made.paid_tokens >= len(made.token_ids)
    assert cut_within


# --- dialects ---------------------------------------------------------------------------------------------------------

HARMONY = "<|channel|>analysis<|message|>We need to.<|end|><|start|>assistant<|channel|>final<|message|>So.<|return|>"
COHERE = "<|START_THINKING|>We need to.<|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>"
SEED = "<seed:think>We need to.</seed:think>So."
MISTRAL = "[THINK]We need to.[/THINK]So."
DIALECT_TEXTS = (HARMONY, COHERE, SEED, MISTRAL)


@pytest.fixture(scope="module")
def marked(byte_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By text, a tokenizer that has its marks as special tokens."""
    made = {}
    for number, text in enumerate(DIALECT_TEXTS):
        folder = Path(shutil.copytree(byte_tokenizer, tmp_path_factory.mktemp("marked") / str(number)))
        loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
        (marks,) = (marks for marks in DIALECTS if text.startswith(marks.tokens[0]))
        loaded.add_special_tokens([AddedToken(token, special=True) for token in marks.tokens])
        loaded.save(str(folder / "tokenizer.json"))
        made[text] = str(folder)
    return made


@pytest.mark.parametrize("text", DIALECT_TEXTS)
@pytest.mark.parametrize("told_by", ["ids", "specials", "ids and reasoning", "reasoning"])
def test_thinking_is_told_from_the_answer(
    serve: Serve, config: Config, feed: Feed, marked: dict[str, str], text: str, told_by: str
) -> None:
    """Special tokens are left out of the text: "analysisWe need to.assistantfinalSo." was kept."""
    tokenizer = load_tokenizer(marked[text])
    ids = tokenizer.encode_trusted(text)
    shown = tokenizer.decode(ids[~np.isin(ids, sorted(tokenizer.special_ids))])
    fields: dict[str, Any] = {"text": text if told_by == "specials" else shown}
    if "reasoning" in told_by:
        fields = {"text": "So.", "reasoning": "We need to."}
    if "ids" in told_by:
        fields["token_ids"] = ids.tolist()
    server = serve(lambda number, body: completion(body, **fields))
    made = run_one(feed(config(server, name=marked[text])), asked(tokenizer)).generation
    assert parse_trace(ledger_row(made.text)).text == "We need to."
    assert server.bodies[0]["skip_special_tokens"] is False
    if told_by != "reasoning":
        assert made.token_ids.tolist() == ids.tolist()


def test_thinking_that_can_not_be_told_is_refused(
    serve: Serve, config: Config, feed: Feed, marked: dict[str, str]
) -> None:
    server = serve(lambda number, body: completion(body, text="analysisWe need to.assistantfinalSo."))
    failed = run_all(feed(config(server, name=marked[HARMONY])), [asked(load_tokenizer(marked[HARMONY]))])["bad"]
    assert isinstance(failed, Failure) and "thinking can't be told from the answer" in failed.error


# --- traces -----------------------------------------------------------------------------------------------------------

SIZE = 250_000
CRAFTED = {
    "ends of thinking": "</think>",
    "beginnings": "<think>",
    "empty blocks": "<think>\n</think>",
    "beginnings and ends that don't match": "<think>[/THINK]</seed:think>",
    "newlines": "\n",
    "lines": "a\n",
    "marks that never close": "<|channel|>analysis",
    "roles that never open": "<|start|>assistant",
    "ends of sentences": '."',
    "numbers": "1. ",
    "abbreviations": "e. g",
    "fences": "```\n",
    "formulas": "$$\\[",
}


@pytest.mark.parametrize("name", CRAFTED)
@pytest.mark.parametrize("last", ["", "x", " \n\nx"])
def test_a_crafted_trace_takes_linear_time(name: str, last: str) -> None:
    """A quarter of a megabyte. Before, 1,000 times "</think>" were a RecursionError and 32 kB of newlines took 5 s."""
    text = CRAFTED[name] * (SIZE // len(CRAFTED[name])) + last
    began = time.process_time()
    for forced in (False, True):
        for reason in ("stop", "length"):
            assert closed_of(generation(text, reason, forced=forced)) in ("natural", "forced", "cut")
    parse_trace(ledger_row(text))
    ends_sentence(text), goes_on(text)
    assert time.process_time() - began < 2


def test_marks_in_any_order_are_read() -> None:
    """Three beginnings of two dialects were a SystemError of the `re` module."""
    begins = [marks.tokens[0] for marks in DIALECTS if marks.prompted]
    for three in itertools.product(begins, repeat=3):
        (last,) = (marks for marks in DIALECTS if marks.tokens[0] == three[-1])
        assert parse_trace(ledger_row("\n".join((*three, f"So.{last.tokens[1]}No.")))).text == "So."
        assert parse_trace(ledger_row("".join(three))).text == ""


def test_a_thousand_ends_are_an_empty_trace() -> None:
    assert parse_trace(ledger_row("</think>" * 1000)).text == ""
    assert parse_trace(ledger_row("</think>\n" * 5000 + "So.")).text == "So."


@pytest.mark.parametrize(
    ("char", "objects"),
    [
        *(("\x1b", True), ("\x00", True), ("\x07", True), ("\x9b", True), ("\x7f", True), ("\u202e", True)),
        *(("\u2066", True), ("\u2069", True), ("\U000e0041", True), ("\ufffd", True), ("\x0c", True)),
        *(("\t", False), ("\n", False), ("\r", False), ("\u200f", False), ("\u200d", False), ("\ufeff", False)),
        *(("🙂", False), ("大", False), ("\xa0", False), ("\u0301", False)),
    ],
)
def test_characters_that_nobody_writes_are_an_objection(char: str, objects: bool) -> None:
    trace = parse_trace(ledger_row(f"The sky is{char} blue.", closed="natural"))
    for source, expected in [("The sky.", objects), (f"A terminal understands {char}[0m.", False)]:
        assert Unprintable().objects(Subject(trace=trace, source_text=source, prompt="brief")) == expected
    assert isinstance(GatesConfig().enabled()["unprintable"], Unprintable)
