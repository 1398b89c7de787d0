"""The gate against traces that speak of the prompt: whoever reads the corpus has never seen it.

Three signs: sentences about what the user wants of the writer, about instructions, or about the writer being a model;
chat markup; and eight words in a row that are the template's own. What the segment says too is no sign: documents are
about users and markup, and some are about prompts. So are single words like "the user" or "the passage".

Measured: of 38,454 texts of 4,000 characters from Python's documentation, installed packages and manual pages, against
an empty segment, 47 have a sign: chat markup in the code of tokenizers and parsers. Of 32 traces of a 135M model 16 do,
which repeats the template.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.requests.prompts import SLOTS, load_template
from augment.selection.gates.gate import Gate, Subject
from augment.selection.word_runs import HALVES, runs_of
from augment.selection.words import words_of
from sharding.config import STRICT

_WANTS = r"(?:wants|wanted|asks|asked|is asking|has asked|would like|expects|instructs|requested|told|tells) (?:me|us) "
_MAKES = (
    r"(?:write|rewrite|rephrase|explain|simulate|think|summari[sz]e|produce|provide|respond|answer|imagine|pretend)"
)
_PRODUCES = r"(?:write|rewrite|rephrase|simulate|produce|respond with)"
_GIVEN = r"(?:gave|has given|provided|has provided|shared|sent|presented|pasted)"
_TOLD = r"(?:being )?(?:asked|told|instructed|supposed|prompted) to (?:\w+ )?"
_THING = r"(?:expert|passage|response|student|short paragraph|new version|thought process)"
_MODEL = r"(?:ai|artificial intelligence|language model|large language model)"

_SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("the user",), rf" {_WANTS}| {_GIVEN} (?:me|us|a passage|a text|the passage) "),
    (("the user s", "the user"), r" (?:request|query|prompt|instructions?) (?:is|was|says|asks|wants) "),
    (
        ("the prompt", "this prompt", "the instructions", "the instruction", "the request", "my instructions"),
        rf" (?:{_WANTS}|(?:wants?|asks?|says?|tells?) (?:me|us|that i|to) )",
    ),
    (
        (
            "you are asking me",
            "you re asking me",
            "you asked me",
            "you ve asked me",
            "you have asked me",
            "you want me",
        ),
        r" to ",
    ),
    (("i am", "i m", "i was", "i ve been", "i have been"), rf" {_TOLD}{_MAKES} "),
    (
        ("i need to", "i have to", "i want to", "i should", "i must", "i ll", "we need to", "we have to", "we should"),
        rf" (?:now )?{_PRODUCES}(?: down| aloud)? (?:\w+ ){{0,4}}?{_THING} ",
    ),
    (("as an ai", "as a language model", "as a large language model"), r" (?:\w+ ){0,3}?i "),
    (("i am", "i m"), rf" (?:just |only )?an? {_MODEL} "),
    (("my system prompt", "my knowledge cutoff", "my training data"), r" "),
    (("sure", "certainly"), r" (?:here (?:s|is|are)|i (?:d|would) be (?:happy|glad)) "),
    (("here s", "here is"), r" (?:the|a|my) (?:rewritten|rephrased|revised|new) (?:version|passage|text) "),
    (("i hope this helps", "feel free to ask", "is there anything else i", "let me know if you have any"), r" "),
    (("用户",), r"(?:要求|希望|想让|想要|让)我"),
    (("用戶",), r"(?:要求|希望|想讓|想要|讓)我"),
    (("作为一个ai", "作为ai", "作为一名ai", "作为一个人工智能", "作为人工智能", "作为语言模型"), r""),
    (("ユーザーは私に", "aiとして", "言語モデルとして"), r""),
)
"""Beginnings, and what follows them; as words with single spaces, apostrophes being spaces too."""


def _spaced(pattern: str) -> str:
    """A pattern for `Words.line`, where characters of scripts without spaces are words."""
    return re.sub(r"([^\x00-\x7f])", r"\1 ", pattern)


_FOLLOWED_BY = tuple(
    (f" {' '.join(words_of(beginning))}", re.compile(_spaced(rest) if rest.isascii() else rf" {_spaced(rest)}"))
    for beginnings, rest in _SIGNS
    for beginning in beginnings
)

_MARKUP = re.compile(
    r"<\|[\w ./-]{1,40}\|>|<｜[^｜\n]{1,40}｜>|</?think>|\[/?THINK\]|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|^#{2,3} ?(?:Instructions?|Response|Human|Assistant|System):|^(?:Human|Assistant|USER|ASSISTANT): ",
    re.MULTILINE,
)


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
        said = subject.words.runs.numbers(HALVES * self.template_words)
        leaked = said[np.isin(said, _template_numbers(subject.prompt, HALVES * self.template_words))]
        if not len(leaked):
            return False
        return not np.isin(leaked, subject.source_words.runs.numbers(HALVES * self.template_words)).all()


def _says_so(subject: Subject) -> bool:
    said = _signs(subject.words.line)
    return bool(said) and not said <= _signs(subject.source_words.line)


def _signs(line: str) -> set[str]:
    """The sentences' beginnings in a line of words that are signs."""
    found = set()
    for beginning, rest in _FOLLOWED_BY:
        at = line.find(beginning)
        while at >= 0:
            if match := rest.match(line, at + len(beginning)):
                found.add(line[at : match.end()])
            at = line.find(beginning, at + 1)
    return found


def _has_markup(subject: Subject) -> bool:
    """A segment with any chat markup is about chats, and its thoughts may name more of it."""
    return bool(_MARKUP.search(subject.trace.text)) and not _MARKUP.search(subject.source_text)


@lru_cache(maxsize=64)
def _template_numbers(prompt: str, size_halves: int) -> np.ndarray:
    """The numbers of the runs of a template's fixed words, none across a slot."""
    slots = "|".join(rf"\{{{slot}\}}" for slot in SLOTS)
    fixed = re.split(slots, load_template(prompt).text)
    return np.unique(np.concatenate([runs_of(part).numbers(size_halves) for part in fixed]))
