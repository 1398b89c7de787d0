"""The gate against traces that contradict their segment: another number, name or negation in words that it says too.

A trace may mention any number: a sum, a share, another year of another thing. What it must not do is repeat what the
segment says with something else in the one place that matters. So the two are compared where they say the same in
nearly the same words: the words around a number of the trace are found around a number of the segment, in order and
next to it, with nothing new among them, and the numbers differ. Names likewise, and clauses that differ by a negation
alone.

It is made to be right rather than to find all. Left out are suppositions, comparisons and quotations, numbers that
the segment has elsewhere or that follow from its own, and places for which the segment has two numbers itself. What
is put in other words altogether passes. Only English and German are judged, German not by its names: it writes every
noun like one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.claims import Sentence, Text, Token, tells
from augment.selection.gates.gate import Gate, Subject
from augment.selection.gates.language import main_languages
from augment.selection.gates.quotations import without_code
from sharding.config import STRICT

_MIN_TELLING = 2
"""Shared words that say what a text is about, at least."""

_MAX_PLACES = 100
"""Numbers of a segment, and names: one that has more is a table or a list as a whole."""

_UNITS = (2.0, 7.0, 12.0, 24.0, 60.0, 100.0, 365.0, 1000.0, 1024.0, 3600.0)
"""What a number may be taken times without saying anything new."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Contradiction(Gate):
    """Traces that say of the same thing another number, another name or the opposite of what the segment says."""

    # Of 516 real traces it objected to one, too few to trust it unseen: docs/selection.md.
    enabled: bool = Field(default=False, description="Whether the gate is applied.")
    min_shared_words: int = Field(
        default=4,
        gt=2,
        description="Words that trace and segment have in common around what differs, at least; more misses more.",
    )

    def objects(self, subject: Subject) -> bool:
        languages = main_languages(subject.source_text) & {"en", "de"}
        if not languages:
            return False
        source = _source_of(subject.source_text)
        said = Text(subject.without_quotations)
        for sentence in said.sentences:
            if sentence.is_question:
                continue
            if self._other_number(sentence, source) or self._negated(sentence, source):
                return True
            if "en" in languages and self._other_name(sentence, source):
                return True
        return False

    def _other_number(self, sentence: Sentence, source: Text) -> bool:
        for place in sentence.numbers if source.num_numbers <= _MAX_PLACES else ():
            token = sentence.tokens[place]
            if token.number is None or sentence.supposes(place) or _follows(token.number, source.numbers):
                continue
            said_of_it = {
                other.tokens[at].number
                for other in source.sentences
                for at in other.numbers
                if self._same_frame(sentence, place, other, at)
            }
            if len(said_of_it) == 1 and not said_of_it & sentence.values:
                return True
        return False

    def _other_name(self, sentence: Sentence, source: Text) -> bool:
        for place in sentence.names if source.num_names <= _MAX_PLACES else ():
            token = sentence.tokens[place]
            if sentence.supposes(place) or token.name & source.words:
                continue
            said_of_it = {
                other.tokens[at].name
                for other in source.sentences
                for at in other.names
                if self._same_frame(sentence, place, other, at)
            }
            if len(said_of_it) == 1 and not any(_akin(token.name, name) for name in said_of_it):
                return True
        return False

    def _same_frame(self, said: Sentence, place: int, source: Sentence, at: int) -> bool:
        """Whether the words around a place of either say the same of what stands there."""
        before, after = (said.before(place), source.before(at)), (said.after(place), source.after(at))
        if not _touching(before, -1) or not _touching(after, 0):
            return False
        shared = [*_in_common(*before), *_in_common(*after)]
        telling = sum(token.tells for token in shared)
        if len(shared) < self.min_shared_words or telling < _MIN_TELLING:
            return False
        new = sum(token.tells and token.key not in source.keys for token in (*before[0], *after[0]))
        return new <= (telling - _MIN_TELLING) // 2

    def _negated(self, sentence: Sentence, source: Text) -> bool:
        for plain, is_negated in sentence.clauses():
            if plain.total() < self.min_shared_words or sum(tells(key) for key in plain) < _MIN_TELLING:
                continue
            found = {negated for other, negated in source.clauses if _alike(plain, other)}
            if found == {not is_negated}:
                return True
        return False


@lru_cache(maxsize=4)
def _source_of(source_text: str) -> Text:
    """The candidates of a segment come one after the other."""
    return Text(without_code(source_text))


def _follows(number: tuple[float, bool], known: frozenset[tuple[float, bool]]) -> bool:
    """Whether a number is one of those known, rounded or not, or comes of one or two of them by arithmetic."""
    value = number[0]
    values = [of for of, _ in known]

    def near(other: float) -> bool:
        return abs(value - other) <= 0.005 * max(abs(value), abs(other))

    if any(value == of or (near(of) and value == round(value)) for of in values):
        return True
    if any(near(of * unit) or near(of / unit) for of in values for unit in _UNITS):
        return True
    pairs = itertools.permutations(values, 2)
    return any(
        value in (one + other, one - other) or near(one * other) or (other and near(one / other))
        for one, other in pairs
    )


def _touching(sides: tuple[Sequence[Token], Sequence[Token]], place: int) -> bool:
    """Whether what stands next to the place is the same; where it tells nothing, it may differ."""
    said, source = (side[place] if side else None for side in sides)
    if said is None or source is None:
        return not ((said and said.tells) or (source and source.tells))
    return said.key == source.key or not (said.tells or source.tells)


def _in_common(said: Sequence[Token], source: Sequence[Token]) -> list[Token]:
    blocks = SequenceMatcher(None, [t.key for t in said], [t.key for t in source], autojunk=False).get_matching_blocks()
    return [token for block in blocks for token in said[block.a : block.a + block.size]]


def _alike(one: Counter[str], other: Counter[str]) -> bool:
    """Whether two clauses are the same but for a word that tells nothing."""
    differing = (one - other) + (other - one)
    return differing.total() <= 1 and not any(tells(key) for key in differing)


def _akin(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two names may be one: a word of the one begins like one of the other, or is short for it."""
    begins = any(a.startswith(b[:4]) or b.startswith(a[:4]) for a in one for b in other)
    initials = {"".join(sorted(word[0] for word in name)) for name in (one, other)}
    return begins or bool(initials & {"".join(sorted(word)) for word in one | other})
