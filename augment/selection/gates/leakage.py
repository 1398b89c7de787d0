"""The gate against traces that speak of the prompt: whoever reads the corpus has never seen it.

Three signs: sentences about what the user wants of the writer, about instructions, or about the writer being a model
(`augment.selection.gates.leaked_sentences`); chat markup; and eight words in a row that are the template's own. What
the segment says too is no sign: documents are about users and markup, and some are about prompts. Nor is what the trace
quotes or shows as code, nor are single words like "the user" or "the passage".

Measured on labelled traces by `python -m benchmarks.gates`.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.requests.prompts import SLOTS, load_template
from augment.selection.gates.gate import Gate, Subject
from augment.selection.gates.leaked_sentences import leaked_sentences
from augment.selection.word_runs import HALVES, among, runs_of
from sharding.config import STRICT

_TAG = re.compile(
    r"[<\[◁](?:(?<=<)(?:\|[\w ./-]{1,40}\|>|｜[^｜\n]{1,40}｜>|</?SYS>>|(?:start|end)_of_turn>"
    r"|(?i:/? ?(?:\w{1,12}[:_])?(?:think|thinking|thought|reasoning) ?>)|\|channel>|channel\|>)"
    r"|(?<=\[)/?(?:THINK|INST)\]|(?<=◁)/?think▷)"
)
_TURN = re.compile(
    r"\n(?:#{2,3} ?(?:Instructions?|Response|Human|Assistant|System):|(?:Human|Assistant|USER|ASSISTANT): )"
)
"""Markup in a line, and at the beginning of one: each begins with a character that `re` looks for."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Leakage(Gate):
    """Traces that speak of the user, the prompt or the writer, or that repeat the template's words."""

    template_words: int = Field(
        default=8,
        gt=1,
        description="So many words in a row of the template are a leak; in scripts without spaces twice as many "
        "characters.",
    )

    def objects(self, subject: Subject) -> bool:
        return _says_so(subject) or _has_markup(subject) or self._repeats_template(subject)

    def _repeats_template(self, subject: Subject) -> bool:
        size_halves = HALVES * self.template_words
        said = subject.words.numbers(size_halves)
        leaked = said[among(said, _template_numbers(subject.prompt, size_halves))]
        return bool(len(leaked)) and not among(leaked, subject.source_words.known(size_halves)).all()


def _says_so(subject: Subject) -> bool:
    said = leaked_sentences(subject.own_words.line)
    return bool(said) and not said <= leaked_sentences(subject.source_words.line)


def _has_markup(subject: Subject) -> bool:
    """A segment with any chat markup is about chats, and its thoughts may name more of it."""
    return _is_markup_in(subject.without_code) and not _is_markup_in(subject.source_text)


def _is_markup_in(text: str) -> bool:
    return bool(_TAG.search(text) or _TURN.search(f"\n{text}"))


@lru_cache(maxsize=64)
def _template_numbers(prompt: str, size_halves: int) -> np.ndarray:
    """The numbers of the runs of a template's fixed words, none across a slot, in ascending order."""
    slots = "|".join(rf"\{{{slot}\}}" for slot in SLOTS)
    fixed = re.split(slots, load_template(prompt).text)
    return np.unique(np.concatenate([runs_of(part).numbers(size_halves) for part in fixed]))
