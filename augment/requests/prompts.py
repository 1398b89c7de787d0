"""Prompts: versioned templates, and their words put together with a segment as the generator's tokens.

The augment stage builds one prompt per segment that thinks. Template and chat markup are trusted and may hold control
tokens; what comes from the corpus is encoded as plain text, so that a document that says "<|im_end|>" says just that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from augment.engines.config import ModelConfig
from augment.requests.dialects import Dialect, load_dialect
from sharding.errors import MillError, RequestError
from sharding.hashing import fingerprint
from sharding.models.tokenizer import TextTokenizer

SLOTS = ("text", "context", "focus")
"""What a prompt may show of a segment. The prompts of a recipe have slots of its own beside them."""

_LEAST_TOKENS = 16
"""A segment needs room for this many tokens; a context with less room is left out."""

_CHARACTERS_PER_TOKEN = 8
"""Of a context only so many characters per token it may take are encoded: documents can be long, and few tokens are."""


@dataclass(frozen=True)
class Template:
    """A prompt in words with slots.

    "{text}" stands for the segment, "{context}" for what precedes it in the document, "{focus}" for its hardest spans,
    a line each. A paragraph with a slot that has nothing to hold is left out. Other braces are just braces.

    Attributes:
        name: a packaged one's name, or the path of the user's own.
        slots: what it may have slots for.
        version: 12 hex digits of the hash of `text`.
    """

    name: str
    text: str
    slots: tuple[str, ...] = SLOTS

    @property
    def version(self) -> str:
        return fingerprint([self.text], 6)

    def fill(self, values: dict[str, str]) -> str:
        """The text with its slots filled; slots without a value take their paragraph with them."""
        paragraphs = [
            paragraph
            for paragraph in self.text.split("\n\n")
            if all(slot in values for slot in self.slots if f"{{{slot}}}" in paragraph)
        ]
        slot = re.compile(r"\{(" + "|".join(self.slots) + r")\}")
        return slot.sub(lambda match: values[match[1]], "\n\n".join(paragraphs))


def template_names() -> list[str]:
    """The names of the packaged templates."""
    return sorted(file.name.removesuffix(".txt") for file in _packaged().iterdir() if file.name.endswith(".txt"))


def step_template_names() -> list[str]:
    """The names of the packaged templates for the steps of recipes."""
    folder = _packaged().joinpath("steps")
    return sorted(file.name.removesuffix(".txt") for file in folder.iterdir() if file.name.endswith(".txt"))


def load_template(name: str, more_slots: Sequence[str] = ()) -> Template:
    """A packaged template by name, or the user's own by path.

    Args:
        more_slots: those that a recipe fills, each of which it may have once.

    Raises:
        RequestError: there is no such template, or it has not exactly one "{text}".
    """
    if name in template_names():
        text = _packaged().joinpath(f"{name}.txt").read_text(encoding="utf-8")
    elif name in step_template_names():
        text = _packaged().joinpath("steps", f"{name}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"prompt {name!r}: no packaged template ({', '.join(template_names())}) and no readable file: {error}"
            ) from error
    slots = (*SLOTS, *sorted(more_slots))
    for slot in slots:
        found, wanted = text.count(f"{{{slot}}}"), (1,) if slot == "text" else (0, 1)
        if found not in wanted:
            raise RequestError(
                f"prompt {name!r} has {{{slot}}} {found} times; allowed: {' or '.join(map(str, wanted))}"
            )
    return Template(name, text.strip(), slots)


def _packaged() -> resources.abc.Traversable:
    return resources.files("augment.requests") / "prompt_templates"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt ready for the generator.

    Attributes:
        token_ids: (prompt_tokens,) uint32 under the generator's tokenizer.
        context_tokens: tokens of context in it.
        segment_tokens_cut: tokens at the front of the segment that had no room; 0 but for segments longer than the
            model's context.
    """

    token_ids: np.ndarray
    context_tokens: int
    segment_tokens_cut: int


class NoRoom(RequestError):
    """A prompt and its generation are longer than the model reads."""


class PromptBuilder:
    """Builds prompts of one template for one generator; `prompt_builder` makes one from config names.

    Args:
        max_model_len: tokens of prompt and generation together.
        max_context_tokens: tokens of context at most; None: as many as there is room for.

    Raises:
        MillError: the chat template loses or repeats the prompt.
    """

    def __init__(
        self, dialect: Dialect, template: Template, *, max_model_len: int, max_context_tokens: int | None = None
    ) -> None:
        self.dialect = dialect
        self.template = template
        self._max_model_len = max_model_len
        self._max_context_tokens = max_context_tokens
        self._frames: dict[tuple[str, ...], list[np.ndarray | str]] = {}
        self._frame(("text",))

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop texts that the generator's thinking mode asks for, for `request_key` and `make_request`."""
        return self.dialect.stop

    def encode(self, text: str) -> np.ndarray:
        """Plain text as the generator's tokens: (num_tokens,) uint32."""
        return self.dialect.tokenizer.encode(text).astype(np.uint32)

    def build(
        self,
        segment_text: str,
        context_text: str = "",
        focus: Sequence[str] = (),
        *,
        max_tokens: int,
        fillings: Mapping[str, str] | None = None,
    ) -> Prompt:
        """The prompt for a segment; where room is short, the context gives way first, then the focus.

        Args:
            segment_text: what is to be thought about.
            context_text: what precedes it in the document; its end is what is kept.
            focus: the segment's hardest spans, the hardest first.
            max_tokens: cap of the generation, which prompt and generation must leave room for.
            fillings: what fills the slots of a recipe's step, whole.

        Raises:
            NoRoom: template, what fills it and generation leave no room for a segment.
            UnencodableText: the generator's tokenizer can't spell the text.
        """
        tokenizer = self.dialect.tokenizer
        given = {
            slot: tokenizer.encode(text) for slot, text in (fillings or {}).items() if self.uses(slot) and text.strip()
        }
        room = self._max_model_len - max_tokens - sum(map(len, given.values()))
        free = room - self._fixed_tokens(("text", *given))
        if free < _LEAST_TOKENS:
            raise NoRoom(
                f"prompt {self.template.name!r} of {room - free} tokens and max_tokens {max_tokens} leave no room for "
                f"a segment in max_model_len {self._max_model_len} of {self.dialect.model}"
            )
        whole = tokenizer.encode(segment_text)
        values = {"text": self._cut_front(whole, free)}

        spans = [" ".join(span.split()) for span in focus if span.strip()] if self.uses("focus") else []
        free = room - self._fixed_tokens(("text", "focus", *given)) - len(values["text"])
        while spans:
            lines = tokenizer.encode("\n".join(f"- {span}" for span in spans))
            if len(lines) <= free:
                values["focus"] = lines
                break
            spans.pop()

        if context_text.strip() and self.uses("context"):
            free = room - self._fixed_tokens((*values, "context", *given)) - sum(map(len, values.values()))
            size = free if self._max_context_tokens is None else min(free, self._max_context_tokens)
            if size >= _LEAST_TOKENS:
                near = tokenizer.encode(context_text[-_CHARACTERS_PER_TOKEN * size :])
                values["context"] = self._cut_front(near, size)

        values |= given
        parts = [values[part] if isinstance(part, str) else part for part in self._frame(tuple(values))]
        return Prompt(
            token_ids=np.concatenate(parts).astype(np.uint32),
            context_tokens=len(values.get("context", ())),
            segment_tokens_cut=len(whole) - len(values["text"]),
        )

    def uses(self, slot: str) -> bool:
        return f"{{{slot}}}" in self.template.text

    def _fixed_tokens(self, slots: tuple[str, ...]) -> int:
        """Tokens of the prompt beside what goes into these slots."""
        return sum(len(part) for part in self._frame(slots) if not isinstance(part, str))

    def _frame(self, slots: tuple[str, ...]) -> list[np.ndarray | str]:
        """The prompt with these slots in use: token ids of what is fixed, and the slots' names between them."""
        slots = tuple(slot for slot in self.template.slots if slot in slots and self.uses(slot))
        if slots not in self._frames:
            marks = {slot: f"thoughtmill{i}slot{self.template.version}" for i, slot in enumerate(slots)}
            prompt = self.dialect.wrap(self.template.fill(marks))
            pieces = re.split("(" + "|".join(marks.values()) + ")", prompt)
            if sorted(pieces[1::2]) != sorted(marks.values()):
                raise MillError(f"the chat template of {self.dialect.model} does not render its message exactly once")
            slot_of = {mark: slot for slot, mark in marks.items()}
            self._frames[slots] = [
                slot_of[piece] if piece in slot_of else self.dialect.tokenizer.encode_trusted(piece) for piece in pieces
            ]
        return self._frames[slots]

    def _cut_front(self, token_ids: np.ndarray, size: int) -> np.ndarray:
        """The last `size` tokens, fewer where that would begin within a character."""
        if len(token_ids) <= size:
            return token_ids
        start = len(token_ids) - size
        while start < len(token_ids) and self.dialect.tokenizer.decode_bytes(token_ids[start : start + 1])[0] >> 6 == 2:
            start += 1
        return token_ids[start:]


def prompt_builder(
    model: ModelConfig,
    prompt: str,
    training_tokenizer: TextTokenizer | None = None,
    *,
    max_context_tokens: int | None = None,
    more_slots: Sequence[str] = (),
) -> PromptBuilder:
    """The builder for a model and a prompt of the config.

    Args:
        prompt: name or path, for `load_template`.
        training_tokenizer: for models of the rehearsal engine.
        more_slots: those that a recipe fills.

    Raises:
        RequestError: there is no such template.
        MillError: the model's tokenizer can't be loaded.
    """
    return PromptBuilder(
        load_dialect(model, training_tokenizer),
        load_template(prompt, more_slots),
        max_model_len=model.max_model_len,
        max_context_tokens=max_context_tokens,
    )
