"""Closing: how a generation that reached its cap is brought to an end. Between requests and the engine."""

from __future__ import annotations

import dataclasses

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.engines.protocol import Closing, Generation, GenerationRequest
from augment.marks import DIALECTS, split_thinking
from augment.traces import Closed, ends_sentence, goes_on
from sharding.config import STRICT
from sharding.hashing import seed_of

SENTENCE_STOPS = (
    *(mark + after for mark in ".!?" for after in (" ", "\n")),
    *('."', ".)", "。", "！", "？", "\n\n"),
    *(stop for marks in DIALECTS for stop in marks.stop),
)
"""Stop texts of the closing call. A mark counts as the end of a sentence with what follows it: "3.14" is none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClosingConfig:
    """How generations that reach their cap are closed."""

    enabled: bool = Field(default=True, description="Close with a short second call; off: leave them cut.")
    reserve_tokens: int = Field(default=48, ge=8, description="Kept back from the cap for the closing call.")
    phrase: str = Field(default="", description='Put before the closing call\'s words, such as "\\n\\nIn short,".')


def closed_of(generation: Generation) -> Closed:
    """How a generation ended: the `closed` column of its ledger row."""
    thought, over = split_thinking(generation.text)
    if generation.forced:
        # Whether the model ended or a stop text was found, the answer doesn't say; "1. " and "e.g. " hold stop texts.
        ended = not goes_on(thought) if generation.finish_reason == "stop" else ends_sentence(thought)
        return "forced" if over or ended else "cut"
    return "natural" if over or generation.finish_reason == "stop" else "cut"


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
    return request.closing is not None and first.finish_reason == "length" and not split_thinking(first.text)[1]


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
        unseen_tokens=first.unseen_tokens + second.unseen_tokens,
        model=second.model or first.model,
        continued=first.continued,
    )
