"""An answer of an OpenAI-compatible server: its fields, and what is read of them with care. Pure."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from augment.engines.protocol import RequestRejected
from augment.marks import THINK

_LEAST_LOGPROB = -1e4


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    message: _Message | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    token_ids: list[int] | None = None
    finish_reason: Any = None
    logprobs: Any = None


class Completion(msgspec.Struct):
    """An answer. What a trace can do without is read with care further on, and may be odd."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    model: Any = None
    usage: Any = None
    system_fingerprint: Any = None


def text_of(choice: _Choice) -> tuple[str | None, str]:
    """What was generated, and the thinking in it where servers part it: as `reasoning` or `reasoning_content`."""
    parts = choice.message or choice
    thinking = parts.reasoning or parts.reasoning_content or ""
    answer = choice.text if isinstance(parts, _Choice) else parts.content
    if not thinking or not answer or not answer.strip():
        return thinking or answer, thinking
    begin, end = THINK.tokens
    return f"{begin}{thinking}{end}{answer}", thinking


def paid_tokens_of(usage: object, prompt_tokens: int) -> int:
    """The generated tokens that the usage counts, hidden ones included; 0 where it doesn't say.

    Some servers count hidden ones in the total alone.

    Raises:
        RequestRejected: it counts another prompt than was sent, so the answer is to something else.
    """
    counted = usage if isinstance(usage, dict) else {}
    read, made, total = (_whole(counted.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if read and read != prompt_tokens:
        raise RequestRejected(
            f"a prompt of {prompt_tokens:,} tokens was sent, and the server read {read:,}: it cuts prompts, or adds "
            "tokens to them, such as a second BOS"
        )
    return max(made, total - read) if read else made


def _whole(count: object) -> int:
    """A count of an answer, which may be written as 12.0; 0 where it is none."""
    if isinstance(count, bool) or not isinstance(count, int | float):
        return 0
    return int(count) if 0 < count < math.inf else 0


def sum_of(logprobs: object) -> float | None:
    """The sum of an answer's log probabilities, or None where they are none."""
    listed = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    known = [nats for nats in listed if nats is not None] if isinstance(listed, list) else []
    if not known or not all(isinstance(nats, int | float) and _LEAST_LOGPROB < nats <= 0 for nats in known):
        return None
    return float(sum(known))
