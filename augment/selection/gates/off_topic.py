"""The gate against traces that are not about their segment: chat, praise, empty summaries, text about something else.

A thought about a text uses words of that text: its subject's, not those of any text. So the telling words of trace and
segment are compared, by their beginnings, which grammar leaves alone; in Chinese and Japanese single characters. Two
texts that have nothing to do with each other share some as well, in proportion to the words of the one times those of
the other, and that is the measure: a trace that has no more in common with its segment than an unrelated one is off
topic. How many that are was measured on traces held against segments that they are not about, and traces about their
segment share some twenty times as many (`python -m benchmarks.gates`).

What is in another language than its segment is not judged: there are no words to share. Nor is what is code for the
most part.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.common_words import COMMON
from augment.selection.gates.gate import Gate, Subject, Words, source_words
from augment.selection.gates.language import main_languages, sure_shares
from augment.selection.word_runs import HALVES
from augment.selection.words import UNSPACED_CHARACTER, words_of
from sharding.config import STRICT

_BEGINNING = 5
"""Letters of a word that are compared: "instruct" is in "instructions" and in "instructed"."""

_MIN_LETTERS = 3

_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_HIRAGANA = re.compile("[\u3040-\u309f]")
_HUMP = re.compile(r"[A-Z](?<=[a-z][A-Z])")
"""Within `NodeVisitor`, which is about nodes and visitors."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OffTopic(Gate):
    """Traces that have no more telling words in common with the segment than a trace about something else has."""

    min_words: int = Field(
        default=16,
        gt=0,
        description="Nothing is judged where trace and segment have fewer different telling words, as the root of the "
        "one number times the other, code left out.",
    )
    shared_by_chance: float = Field(
        default=0.001,
        ge=0,
        lt=1,
        description="Telling words that unrelated texts have in common, as a share of the pairs of one of the trace "
        "and one of the segment; a trace that shares no more is off topic. In scripts without spaces twice as many.",
    )

    def objects(self, subject: Subject) -> bool:
        text, prose = subject.trace.text, subject.without_code
        if 2 * len(prose) < len(text):
            return False
        said, source = TellingWords(text, subject.words), _telling_of(subject.source_text)
        # Code may show that a text is about another; that it has words of its own shows nothing.
        of_prose = said if prose == text else TellingWords(prose)
        pairs = len(of_prose.words) * len(source.words)
        if pairs < self.min_words**2:
            return False
        shared = len(said.words & source.words) + len(said.numbers & source.numbers)
        halves = HALVES if subject.source_words.is_unspaced else 1
        if shared > halves * self.shared_by_chance * pairs:
            return False
        return not _differ_in_language(subject)


class TellingWords:
    """What of a text says what it is about.

    Attributes:
        words: beginnings of words that are not common ones; ideographs; pairs of characters of other scripts without
            spaces.
        numbers: as they stand; they may show that a text is about another, and are too few to show that it isn't.

    Args:
        text: the text.
        known: its words, where they are there already.
    """

    def __init__(self, text: str, known: Words | None = None) -> None:
        self.words: set[str] = set()
        self.numbers: set[str] = set()
        split = _HUMP.sub(r" \g<0>", text)
        words = words_of(split) if known is None or split != text else known.list
        # Of words between spaces neither order nor neighbours matter.
        before = ""
        for word in set(words) if text.isascii() else words:
            unspaced = len(word) == 1 and bool(UNSPACED_CHARACTER.match(word))
            if word.isdigit():
                self.numbers.add(word)
            elif unspaced and _IDEOGRAPH.match(word):
                if word not in COMMON:
                    self.words.add(word)
            elif not unspaced:
                if len(word) >= _MIN_LETTERS and word not in COMMON:
                    self.words.add(word[:_BEGINNING])
            elif before and not _HIRAGANA.match(before) and not _HIRAGANA.match(word):
                self.words.add(before + word)
            before = word if unspaced and not _IDEOGRAPH.match(word) else ""


@lru_cache(maxsize=4)
def _telling_of(source_text: str) -> TellingWords:
    """The candidates of a segment come one after the other."""
    return TellingWords(source_text, source_words(source_text))


def _differ_in_language(subject: Subject) -> bool:
    """Whether trace and segment have no language in common, by what they are surely in or by their scripts."""
    expected, said = main_languages(subject.source_text), set(sure_shares(subject.trace.text))
    if expected and said and not expected & said:
        return True
    return subject.words.is_unspaced != subject.source_words.is_unspaced
