"""Marks: how models tell their thinking from their answer. One row a dialect; under everything else in augment.

Many marks are special tokens, which servers leave out of the text: engines write them out again from the token ids, so
that a trace is parted where the model parted it (`augment.engines.answers`). `augment.traces` reads the marks in a
text, `augment.requests.dialects` finds the dialect of a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Marks:
    """One way to mark thinking.

    Attributes:
        name: of the dialect, and models that have it.
        begin: pattern of what begins the thinking, or the answer behind it.
        end: pattern of what ends either.
        tokens: what the marks consist of in the vocabulary; the first is in the chat template of every such model.
        stop: the texts that end the thinking, for a generation that is to stop there.
        prompted: chat templates may begin the thinking, so that its end comes without a beginning.
    """

    name: str
    begin: str
    end: str
    tokens: tuple[str, ...]
    stop: tuple[str, ...]
    prompted: bool = True


def _pair(name: str, begin: str, end: str, *, prompted: bool = True) -> Marks:
    return Marks(name, re.escape(begin), re.escape(end), (begin, end), (end,), prompted)


DIALECTS = (
    _pair("think tags: Qwen, DeepSeek, GLM, Nemotron, Olmo and many more", "<think>", "</think>"),
    _pair("Mistral's", "[THINK]", "[/THINK]"),
    _pair("Seed's", "<seed:think>", "</seed:think>"),
    _pair("MiniMax M3's", "<mm:think>", "</mm:think>"),
    _pair("Kimi VL's", "◁think▷", "◁/think▷"),
    _pair("EXAONE Deep's", "<thought>", "</thought>"),
    Marks(
        "harmony channels: gpt-oss",
        begin=r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary|final)[^<]{0,80}<\|message\|>",
        end=r"<\|(?:end|return|call)\|>",
        tokens=("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>"),
        stop=("<|end|>",),
        prompted=False,
    ),
    Marks(
        "Cohere's",
        begin=r"<\|START_(?:THINKING|RESPONSE|TEXT)\|>",
        end=r"<\|END_(?:THINKING|RESPONSE|TEXT)\|>",
        tokens=(
            *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            *("<|START_TEXT|>", "<|END_TEXT|>"),
        ),
        stop=("<|END_THINKING|>",),
    ),
    Marks(
        "Gemma 4's",
        begin=r"<\|channel>(?:thought\b)?",
        end=r"<channel\|>",
        tokens=("<|channel>", "<channel|>"),
        stop=("<channel|>",),
    ),
    Marks(
        "Granite's",
        begin=r"Here(?:'s| is) my (?:thought process|response):",
        end=r"Here(?:'s| is) my response:",
        tokens=("Here is my thought process:", "Here is my response:"),
        stop=("Here is my response:",),
        prompted=False,
    ),
)
"""The known dialects. To add one, add its row; its marks have no character in common with white space."""

THINK = DIALECTS[0]
"""What a model is taken to mark its thinking by where nothing tells."""

MARK_TOKENS = frozenset(token for marks in DIALECTS for token in marks.tokens)


def split_thinking(text: str) -> tuple[str, bool]:
    """What is inside the first block that isn't empty, and whether the block's end is in the text too.

    A block is thinking, or an answer that is marked as one. A text without marks is one block that goes on. Only the
    dialect that began a block ends it; where the prompt began it, any may. In time linear in the text.
    """
    inside, end = first_block(text)
    return inside, end is not None


def first_block(text: str, at: int = 0) -> tuple[str, int | None]:
    """What is inside the first block from a place on that isn't empty, and the place after its end; None: no end."""
    opened = _PROMPTED
    while True:
        while (begun := _BEGIN.match(text, at)) is not None:
            opened, at = _ENDS[str(begun.lastgroup)], begun.end()
        end = opened.search(text, at)
        if end is None:
            return text[at:].strip(), None
        if inside := text[at : end.start()].strip():
            return inside, end.end()
        at, opened = end.end(), _PROMPTED


# One begin at a time: groups in what is repeated possessively are a SystemError in Python 3.11.7.
_BEGIN = re.compile(rf"\s*+(?:{'|'.join(f'(?P<d{number}>{marks.begin})' for number, marks in enumerate(DIALECTS))})")
_ENDS = {f"d{number}": re.compile(marks.end) for number, marks in enumerate(DIALECTS)}
_PROMPTED = re.compile("|".join(marks.end for marks in DIALECTS if marks.prompted))
