"""What a generation says: markers stripped, how it ended, and how one that reached its cap is closed.

Pure functions between the engine and the ledger. A generation that runs into its cap is cut mid-sentence, and a corpus
of cut traces teaches to stop mid-sentence. So a share of the cap is kept back: the first call stops short of the cap,
and if it was still going, a second one carries on from there and ends with the sentence (budget forcing, after s1,
arXiv 2501.19393; there it ends the thinking at once, here the sentence is finished first).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass as plain_dataclass
from typing import Literal, cast

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.engines import Closing, Generation, GenerationRequest
from augment.requests import seed_of
from sharding.config import STRICT
from sharding.records import LedgerRow

Closed = Literal["natural", "forced", "cut"]

THINK_MARKERS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Begin and end of thinking in the texts of known models."""

SENTENCE_STOPS = (
    *(mark + after for mark in ".!?" for after in (" ", "\n")),
    *('."', ".)", "。", "！", "？", "\n\n"),
    *(end for _, end in THINK_MARKERS),
)
"""Stop texts of the closing call. A mark counts as the end of a sentence with what follows it: "3.14" is none."""

_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)\]*`_]*|\n\n|```)\s*\Z")
_BEGIN = re.compile("|".join(re.escape(begin) for begin, _ in THINK_MARKERS))
_END = re.compile("|".join(re.escape(end) for _, end in THINK_MARKERS))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClosingConfig:
    """How generations that reach their cap are closed."""

    enabled: bool = Field(default=True, description="Close with a short second call; off: leave them cut.")
    reserve_tokens: int = Field(default=48, ge=8, description="Kept back from the cap for the closing call.")
    phrase: str = Field(default="", description='Put before the closing call\'s words, such as "\\n\\nIn short,".')


@plain_dataclass(frozen=True, kw_only=True)
class Trace:
    """A generation as it may enter training: what gates and values judge.

    Attributes:
        text: without thinking markers and surrounding white space; may be empty.
        closed: "natural" (the model ended it), "forced" (a closing call did) or "cut" (neither).
        finish_reason: as the engine said.
        thought_tokens: tokens that were generated, in the generator's tokenizer.
    """

    text: str
    closed: Closed
    finish_reason: str
    thought_tokens: int


def parse_trace(row: LedgerRow) -> Trace:
    """The trace of a ledger row.

    With a thinking block, closed or not, opened by the model or by the prompt already, the trace is what is inside it;
    where that is empty, or there is no block, it is what the model wrote as its answer.
    """
    return Trace(
        text=_thinking(row.text)[0],
        closed=cast(Closed, row.closed),
        finish_reason=row.finish_reason,
        thought_tokens=row.thought_tokens,
    )


def closed_of(generation: Generation) -> Closed:
    """How a generation ended: the `closed` column of its ledger row."""
    thought, over = _thinking(generation.text)
    if not (over or generation.finish_reason == "stop" or (generation.forced and ends_sentence(thought))):
        return "cut"
    return "forced" if generation.forced else "natural"


def _thinking(text: str) -> tuple[str, bool]:
    """The trace in a text, and whether it is a thinking block whose end is in the text too."""
    rest = text.strip()
    while begin := _BEGIN.match(rest):
        rest = rest[begin.end() :].lstrip()
    end = _END.search(rest)
    if end is None:
        return rest, False
    inside = rest[: end.start()].rstrip()
    return (inside, True) if inside else _thinking(rest[end.end() :])


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence, a paragraph or a code block does."""
    return _SENTENCE_END.search(text) is not None


def make_closing(config: ClosingConfig, max_tokens: int, phrase_token_ids: np.ndarray) -> Closing | None:
    """The closing of generations with this cap, or None when it is off.

    Args:
        max_tokens: the cap, closing included; the reserve takes at most a quarter of it.
        phrase_token_ids: (phrase_tokens,) uint32, `config.phrase` under the generator's tokenizer.
    """
    reserve = min(config.reserve_tokens, max_tokens // 4)
    if not config.enabled or reserve <= len(phrase_token_ids):
        return None
    return Closing(reserve_tokens=reserve, phrase=config.phrase, phrase_token_ids=phrase_token_ids.astype(np.uint32))


def opening_request(request: GenerationRequest) -> GenerationRequest:
    """The first call of a request: its cap less what the closing may need."""
    if request.closing is None:
        return request
    cap = request.max_tokens - request.closing.reserve_tokens
    return dataclasses.replace(request, max_tokens=cap, min_tokens=min(request.min_tokens, cap), closing=None)


def needs_closing(request: GenerationRequest, first: Generation) -> bool:
    """Whether the request wants a closing and the first call was cut by its cap before the thinking was over."""
    return request.closing is not None and first.finish_reason == "length" and not _thinking(first.text)[1]


def close_request(request: GenerationRequest, first: Generation) -> GenerationRequest:
    """The second call: carry on from the first and stop with the sentence.

    Its tokens and those of the first, with the phrase, stay within the request's cap.
    """
    closing = request.closing
    if closing is None:
        raise ValueError(f"request {request.key} asks for no closing")
    parts = [request.prompt_token_ids, first.token_ids, closing.phrase_token_ids]
    return dataclasses.replace(
        request,
        prompt_token_ids=np.concatenate(parts).astype(np.uint32),
        max_tokens=closing.reserve_tokens - len(closing.phrase_token_ids),
        min_tokens=0,
        seed=seed_of(f"{request.key}/closing"),
        stop=tuple(dict.fromkeys((*request.stop, *SENTENCE_STOPS))),
        include_stop=True,
        closing=None,
    )


def join_closing(request: GenerationRequest, first: Generation, second: Generation) -> Generation:
    """The two calls as one generation, `forced`, with the finish reason of the second."""
    phrase = request.closing.phrase if request.closing else ""
    phrase_ids = request.closing.phrase_token_ids if request.closing else np.empty(0, np.uint32)
    logprobs = (first.sum_logprobs, second.sum_logprobs)
    return Generation(
        text=first.text + phrase + second.text,
        token_ids=np.concatenate([first.token_ids, phrase_ids, second.token_ids]).astype(np.uint32),
        sum_logprobs=None if logprobs[0] is None or logprobs[1] is None else logprobs[0] + logprobs[1],
        finish_reason=second.finish_reason,
        engine_version=second.engine_version,
        forced=True,
    )
