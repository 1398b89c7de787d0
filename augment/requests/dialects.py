"""Dialects: how one generator is addressed, its chat template, its thinking mode and its tokens.

A prompt is put into words by `requests.prompts`; the dialect wraps it the way the model was trained to be spoken to and
knows what ends the model's thinking. A model without a chat template gets the prompt as it is.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from augment.engines.config import ModelConfig
from augment.marks import DIALECTS, MARK_TOKENS, THINK, Marks
from sharding.errors import MillError
from sharding.models.store import resolve_model
from sharding.models.tokenizer import TextTokenizer, load_tokenizer

PROMPT_DATE = datetime.datetime(2025, 1, 1)
"""What chat templates that ask for the day are told: with the real one, every day would buy all generations anew."""

_SWITCHES = ("enable_thinking", "thinking")
"""The variables by which chat templates turn the thinking mode on and off."""

_SPEAKS_OF_THINKING = re.compile(r"think|thought|reason|analysis|channel|inner_", re.IGNORECASE)
_SHOWN_SIGNS = 4

_START_OF_TURN = "<|im_start|>"
"""A chat model may call it its beginning of text; a role comes after it."""


@dataclass(frozen=True, eq=False)
class Dialect:
    """How one generator is addressed.

    Attributes:
        model: its name, for messages.
        tokenizer: the generator's tokens.
        wrap: what the user says → the whole prompt as text, up to where the model begins to write.
        has_chat_template: False for a base model.
        has_thinking_mode: None where there is no model. A model without one gains little from more tokens.
        thinks: the thinking mode is on.
        stop: stop texts that end its thinking, for `make_request`.
        unknown_marks: what speaks of thinking in a model of which it isn't known how it marks it; see `augment.marks`.
    """

    model: str
    tokenizer: TextTokenizer
    wrap: Callable[[str], str]
    has_chat_template: bool
    has_thinking_mode: bool | None
    thinks: bool
    stop: tuple[str, ...]
    unknown_marks: str = ""


def plain_dialect(model: str, tokenizer: TextTokenizer) -> Dialect:
    """The dialect of what takes a prompt as it is: the rehearsal engine."""
    return Dialect(model, tokenizer, wrap=str, has_chat_template=False, has_thinking_mode=None, thinks=False, stop=())


def load_dialect(model: ModelConfig, training_tokenizer: TextTokenizer | None = None) -> Dialect:
    """The dialect of a generator; loaded once per process.

    Args:
        training_tokenizer: counts tokens for the rehearsal engine, which has no tokenizer of its own.

    Raises:
        MillError: the model's tokenizer or transformers is absent, or its chat template fails.
    """
    if model.engine == "rehearsal":
        if training_tokenizer is None:
            raise MillError("the rehearsal engine needs the training tokenizer to make prompts")
        return plain_dialect(model.name, training_tokenizer)
    arguments = model.engine_args
    name, revision = str(arguments.get("tokenizer", model.name)), model.revision
    if model.engine == "vllm":
        revision = arguments.get("tokenizer_revision", revision)
    return _load(name, revision, model.thinking, bool(arguments.get("trust_remote_code", False)))


def find_marks(chat_template: str) -> list[Marks]:
    """The dialects whose marks a chat template has."""
    return [marks for marks in DIALECTS if marks.tokens[0] in chat_template]


def find_thinking(chat_template: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a chat template is one of a model that thinks, and the variables that switch it."""
    switches = tuple(name for name in _SWITCHES if re.search(rf"(?<![\w.]){name}(?!\w)", chat_template))
    return bool(switches or find_marks(chat_template)), switches


def unknown_marks(chat_template: str, tokenizer: TextTokenizer) -> str:
    """Why it isn't known how a model marks its thinking; empty where it is, or where nothing speaks of thinking."""
    if find_marks(chat_template) or tokenizer.token_id(THINK.tokens[0]) is not None:
        return ""
    control = (tokenizer.decode([token]) for token in sorted(tokenizer.control_ids))
    signs = [token for token in control if _SPEAKS_OF_THINKING.search(token) and token not in MARK_TOKENS]
    return ", ".join((*find_thinking(chat_template)[1], *signs[:_SHOWN_SIGNS]))


@lru_cache(maxsize=16)
def _load(name: str, revision: str | None, thinking: bool | None, trust_remote_code: bool) -> Dialect:
    tokenizer = load_tokenizer(name, revision)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MillError(
            f"model {name} needs transformers for its chat template; install it with: pip install 'thoughtmill[vllm]', "
            "or 'thoughtmill[endpoint]' for a model on servers"
        ) from error
    try:
        loaded = AutoTokenizer.from_pretrained(
            resolve_model(name), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise MillError(f"the tokenizer of model {name} can't be loaded: {error}") from error
    if loaded.chat_template is None:
        begin = tokenizer.decode(loaded("").input_ids) or _beginning_of_text(tokenizer, loaded)
        return Dialect(
            model=name,
            tokenizer=tokenizer,
            wrap=lambda content: begin + content,
            has_chat_template=False,
            has_thinking_mode=bool(thinking),
            thinks=bool(thinking),
            stop=_stops(bool(thinking)),
            unknown_marks=unknown_marks("", tokenizer) if thinking else "",
        )
    template = loaded.get_chat_template()
    has_thinking, switches = find_thinking(template)
    thinks = has_thinking if thinking is None else thinking

    def wrap(content: str) -> str:
        return str(
            loaded.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                strftime_now=PROMPT_DATE.strftime,
                date_string=PROMPT_DATE.strftime("%d %b %Y"),
                **dict.fromkeys(switches, thinks),
            )
        )

    return Dialect(
        model=name,
        tokenizer=tokenizer,
        wrap=wrap,
        has_chat_template=True,
        has_thinking_mode=has_thinking or bool(thinking),
        thinks=thinks,
        stop=_stops(thinks, template),
        unknown_marks=unknown_marks(template, tokenizer) if thinks or not switches else "",
    )


def _beginning_of_text(tokenizer: TextTokenizer, loaded: Any) -> str:
    """The token that begins every text a base model was trained on, where it has one for that alone; "" where not.

    A tokenizer that was made from a GGUF file no longer adds it: Gemma 3 without its <bos> takes twice the nats. One
    that also ends texts, as GPT-2's, separates them, and is left to the tokenizer to add.
    """
    begin: str | None = loaded.bos_token
    alone = begin not in (None, loaded.eos_token, loaded.unk_token, _START_OF_TURN)
    return begin if alone and begin is not None and tokenizer.token_id(begin) is not None else ""


def _stops(thinks: bool, template: str = "") -> tuple[str, ...]:
    if not thinks:
        return ()
    found = find_marks(template) or [THINK]
    return tuple(stop for marks in found for stop in marks.stop)
