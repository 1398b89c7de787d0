"""What a text claims: its sentences as words, numbers and names, and its clauses with whether they are negated.

The gate `contradiction` compares them. English and German, whose words are listed here.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from augment.selection.gates.common_words import COMMON

_WINDOW = 7
"""Words on either side of a number or name that are compared."""

_MAX_SENTENCES = 200
_MAX_WORDS = 60
"""Of a sentence: what is longer is a table or a list."""

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n\s*\n|\n(?=\s*(?:[-*•>|#]|\d+[.)]|[ \t]{2,}))|;")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*%?|[^\W\d_]+(?:['’][^\W\d_]+)?|\w+|[,:()–—]")
_MARKS = frozenset(",:()–—")
"""What ends a clause."""

_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:[.,](\d+))?(%?)")
_MAX_DIGITS = 15
"""Of a number: what is longer is an identifier, and no float tells it from its neighbours."""

_ENDING = re.compile(r"(?:ing|ed|es|en|s|e)$")

_SPELLED = """
two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten 10 eleven 11 twelve 12 sixteen 16 twenty 20 thirty 30
forty 40 fifty 50 sixty 60 zwei 2 drei 3 vier 4 fünf 5 sechs 6 sieben 7 acht 8 neun 9 zehn 10 elf 11 zwölf 12
hundert 100
"""
_WORD_NUMBERS = dict(zip(_SPELLED.split()[::2], map(float, _SPELLED.split()[1::2]), strict=True))

_NEGATIONS = """
not no never none nor neither without nicht kein keine keinen keiner keinem nie niemals ohne
"""
_AUXILIARY = frozenset(("do", "does", "did"))
_SUPPOSING = """
if unless suppose supposing imagine assume assuming say would could might should instead rather unlike whereas why
whether compared comparison another other earlier later previous next older newer example instance wrong false mistake
myth misread think believe thinks believes nobody nor twin then first second third falls wenn hätte hätten wäre wären
würde würden angenommen statt anstatt warum weshalb ob obwohl anders andere anderer früher später beispiel falsch irrtum
sonst oder
"""
_NOT, _SUPPOSES = frozenset(_NEGATIONS.split()), frozenset(_SUPPOSING.split())
"""Words of the second kind make a sentence say something else than that it is so, or speak of another thing."""


@dataclass(frozen=True)
class Token:
    """A word, number, name or mark.

    Attributes:
        words: in lower case; several of a name.
        key: what it is compared by, without its ending.
        tells: whether it says what the text is about.
        number: its value and whether it is a percentage.
        name: its words in lower case, where it is a name.
    """

    words: tuple[str, ...]
    key: str
    tells: bool
    number: tuple[float, bool] | None = None
    name: frozenset[str] = frozenset()


class Sentence:
    """A sentence as tokens, among them the marks that end its clauses."""

    def __init__(self, text: str, names: frozenset[str]) -> None:
        self.is_question = text.rstrip().endswith("?")
        words = _TOKEN.findall(text)[: _MAX_WORDS + 1]
        self.tokens = [] if len(words) > _MAX_WORDS else list(_tokens(words, names))
        self.keys = frozenset(token.key for token in self.tokens)
        self.numbers = [place for place, token in enumerate(self.tokens) if token.number is not None]
        self.names = [place for place, token in enumerate(self.tokens) if token.name]
        self.values = {token.number for token in self.tokens}
        self._marks = [place for place, token in enumerate(self.tokens) if token.key in _MARKS]

    def before(self, place: int) -> list[Token]:
        """The words of the clause before a place."""
        start = max((mark + 1 for mark in self._marks if mark < place), default=0)
        return self.tokens[max(start, place - _WINDOW) : place]

    def after(self, place: int) -> list[Token]:
        """The words of the clause behind a place."""
        end = self._end(place)
        return self.tokens[place + 1 : min(end, place + 1 + _WINDOW)]

    def supposes(self, place: int) -> bool:
        """Whether the sentence, up to the end of the clause of a place, says something else than that it is so."""
        return any(word in _SUPPOSES for token in self.tokens[: self._end(place)] for word in token.words)

    def clauses(self) -> Iterator[tuple[Counter[str], bool]]:
        """Each clause that claims something: its words without its negations, and whether it is negated."""
        for start, end in itertools.pairwise([-1, *self._marks, len(self.tokens)]):
            if end > start + 1 and not self.supposes(end - 1):
                yield _clause(word for token in self.tokens[start + 1 : end] for word in token.words)

    def _end(self, place: int) -> int:
        return min((mark for mark in self._marks if mark > place), default=len(self.tokens))


class Text:
    """The sentences of a text, and all numbers and words that it has."""

    def __init__(self, text: str) -> None:
        parts = [part for part in _SENTENCE.split(text) if part.strip()][:_MAX_SENTENCES]
        capitals = frozenset(
            word for part in parts for word in _TOKEN.findall(part)[1:] if word[:1].isupper() and tells(word.lower())
        )
        self.sentences = [Sentence(part, capitals) for part in parts]
        tokens = [token for sentence in self.sentences for token in sentence.tokens]
        self.numbers = frozenset(token.number for token in tokens if token.number is not None)
        self.words = frozenset(word.lower() for word in _TOKEN.findall(text))
        self.num_numbers = sum(len(sentence.numbers) for sentence in self.sentences)
        self.num_names = sum(len(sentence.names) for sentence in self.sentences)
        self.clauses = [
            clause for sentence in self.sentences if not sentence.is_question for clause in sentence.clauses()
        ]


def _tokens(words: Sequence[str], names: frozenset[str]) -> Iterator[Token]:
    for is_name, group in itertools.groupby(words, names.__contains__):
        run = list(group)
        if is_name:
            lower_case = tuple(word.lower() for word in run)
            yield Token(words=lower_case, key=" ".join(lower_case), tells=True, name=frozenset(lower_case))
            continue
        for word in run:
            lower = word.lower()
            yield Token(words=(lower,), key=_key(lower), tells=tells(lower), number=_number(lower))


def _key(word: str) -> str:
    return _ENDING.sub("", word) if len(word) > 3 else word


def tells(word: str) -> bool:
    """Whether a word, in lower case, says what a text is about."""
    return len(word) > 2 and word not in COMMON and not word[0].isdigit()


def _number(word: str) -> tuple[float, bool] | None:
    """The value of a number, and whether it is a percentage; None of versions, identifiers and words."""
    if word in _WORD_NUMBERS:
        return _WORD_NUMBERS[word], False
    match = _NUMBER.fullmatch(word)
    if match is None or len(word) > _MAX_DIGITS:
        return None
    return float(f"{match[1].replace(',', '')}.{match[2] or 0}"), bool(match[3])


def _clause(found: Iterable[str]) -> tuple[Counter[str], bool]:
    """The words of a clause without its negations, and whether it is negated."""
    words = [word for one in found for word in _spelled_out(one)]
    plain = Counter(_key(word) for word in words if word not in _NOT and word not in _AUXILIARY)
    return plain, sum(word in _NOT for word in words) % 2 == 1


def _spelled_out(word: str) -> tuple[str, ...]:
    word = word.replace("’", "'")
    if word == "cannot":
        return "can", "not"
    return (word[:-3] if word != "can't" else "can", "not") if word.endswith("n't") else (word,)
