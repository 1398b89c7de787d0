"""The gate against traces in another language than the segment's, and against those that switch to one on the way.

Only prose is looked at: code, formulae, tables, links and identifiers are left out first. What remains is cut into
pieces, and a piece counts when the identifier is sure of it. Where the segment's language is not clear, or the trace
has too little prose, nothing is rejected.

py3langid (BSD-3, pure Python, model in the wheel) tells some 150 languages. Measured on 2,181 passages of 150
characters in 19 languages, manual pages mostly: 98.8% right, lingua 98.5% at a 25th of the speed and 96 MB; on 792 of
300 characters, 99.6%. Of 6,026 pieces of source code in several programming languages, shown without fences, none was
taken for prose in another language than the English of a trace about it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from augment.selection.gates.common_words import COMMON_OF
from augment.selection.gates.gate import Gate, Subject
from augment.selection.words import words_of
from sharding.config import STRICT

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

PIECE_BYTES = 240
MIN_PIECE_BYTES = 120
"""Bytes of UTF-8, which treats a script of few, rich characters like one of many."""

MAX_PIECES = 8
"""Pieces of a text that are looked at, spread evenly over it: the identifier does about 2 MB/s."""

_ENOUGH = MAX_PIECES // 2
"""So many pieces, evenly spread, speak for the rest where all of them surely agree: identifying takes the longest of
all that gates do."""

_CONFIDENCE = 0.95
"""Above it 0.4% of the pieces measured were wrong, most of them quotations."""

_MIN_COMMON = {"en": 0.25, "de": 0.4}
"""A piece so many of whose words are common ones of a language is in it, and the identifier is not asked: it takes 20
times as long. German shares its articles with its neighbours. Of 31,629 pieces of translated messages in 113 languages
none was taken for English so, and for German 4 of Low German, which had German in them."""

_MAX_OTHERS = 0.1
_MAX_BYTES_PER_CHARACTER = 1.05

_RANKED = 5
_NO_LANGUAGE = "zxx"

_MIN_SHARE = 0.25
"""A language of the segment is one of at least this share of it: it may quote another, or have several."""

_KIN = [
    {"en", "pcm"},
    {"da", "nb", "nn", "no", "sv"},
    {"bs", "hr", "sr", "sl", "mk", "bg"},
    {"cs", "sk"},
    {"id", "ms", "jv"},
    {"gl", "pt", "es", "an", "ca", "oc"},
    {"zh", "yue", "wuu"},
    {"be", "uk", "ru"},
    {"af", "nl"},
    {"de", "lb"},
    {"hi", "mr", "ne"},
    {"az", "tr"},
    {"xh", "zu"},
]
"""Languages that are mistaken for each other in short texts: not told apart."""

_NO_PROSE = re.compile(
    r"(?P<opener>```|~~~|\$\$|\\\[|\\\(|\\begin\{(?P<name>\w+\*?)\})|``[^`]+``|`[^`\n]+`|\$[^$\n]{1,200}\$|https?://\S+"
    r"|</?[a-zA-Z][^<>\n]{0,200}>"
)
_CLOSER = {"```": "```", "~~~": "~~~", "$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_FENCES = ("```", "~~~")
_ENVIRONMENT_END = re.compile(r"\\end\{(\w+\*?)\}")
_MARKUP_SIGN = re.compile(r"[`~$\\<]")
"""What all of these have in them but links, which have "://"."""

_IDENTIFIER = re.compile(
    r"[\d_\\/@#=<>{}|^~+*\[\].(A-Z]"
    r"(?:(?<=[^.(A-Z])|(?<=\w\.)(?=\w)|(?<=\w\()|(?<=[a-z][A-Z])|(?<=[A-Z])(?=[A-Z]{2}))"
)
"""A sign of one; a full stop or bracket after letters; a hump; three capitals. Each begins with what may be one."""

_PROSE_SIGN = re.compile(
    r"[^\W\d_]|[\s.,;:'\"!?()\u2010-\u201f\u3001-\u303f\uff01-\uff1f-]|[\u0300-\u036f\u0900-\u0eff]"
)
_MIN_PROSE_SHARE = 0.85

_MAX_KNOWN = 1 << 14


class _WithoutSigns(dict[int, int | None]):
    """For `str.translate`: leaves out the signs of prose; what a character is, is found out once."""

    def __missing__(self, code: int) -> int | None:
        kept = None if _PROSE_SIGN.match(chr(code)) else code
        if len(self) < _MAX_KNOWN:
            self[code] = kept
        return kept


_without_signs = _WithoutSigns()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Language(Gate):
    """Traces too much of which is in a language that neither the segment is in nor the config allows."""

    allowed: tuple[str, ...] = Field(
        default=(),
        description="Languages that may be thought in whatever the segment's is, as ISO 639-1 codes: [en] for a "
        "generator that thinks in English about everything.",
    )
    max_foreign_share: float = Field(
        default=0.3, ge=0, lt=1, description="Largest share of the trace's prose that is surely in another language."
    )

    @field_validator("allowed")
    @classmethod
    def _can_be_identified(cls, allowed: tuple[str, ...]) -> tuple[str, ...]:
        if allowed and (unknown := sorted(set(allowed) - set(_identifier().labels))):
            known = ", ".join(sorted(_identifier().labels))
            raise ValueError(f"{', '.join(map(repr, unknown))} can't be identified; known: {known}")
        return allowed

    def objects(self, subject: Subject) -> bool:
        expected = main_languages(subject.source_text)
        if not expected:
            return False
        expected |= {_kin(language) for language in self.allowed}
        pieces = _looked_at(subject.trace.text)
        most = self.max_foreign_share * len(pieces)
        every_second = pieces[::2]
        known = foreign = 0
        # The others only where these leave it open.
        for number, piece in enumerate((*every_second, *pieces[1::2])):
            if foreign + len(pieces) - number <= most or known == number == len(every_second) >= _ENOUGH:
                return False
            language = _sure_language(piece)
            known += language in expected
            foreign += language is not None and language not in expected
        return foreign > most


@lru_cache(maxsize=4)
def main_languages(text: str) -> frozenset[str]:
    """The languages that a text is surely in; none where most of it is too short, mixed or no prose to tell."""
    pieces = _looked_at(text)
    every_second = pieces[::2]
    if len(every_second) >= _ENOUGH and len(found := set(map(_sure_language, every_second))) == 1 and None not in found:
        return frozenset(filter(None, found))
    share_of = _sure_shares(pieces)
    if sum(share_of.values()) < 0.5:
        return frozenset()
    return frozenset(language for language, share in share_of.items() if share >= _MIN_SHARE)


def sure_shares(text: str) -> dict[str, float]:
    """The share of a text's pieces that is surely in each language, kin taken as one; empty without prose."""
    return _sure_shares(_looked_at(text))


def _sure_shares(pieces: Sequence[str]) -> dict[str, float]:
    counts = Counter(filter(None, map(_sure_language, pieces)))
    return {language: count / len(pieces) for language, count in counts.items()}


def spoken_language(text: str) -> str | None:
    """The language that most of a text is surely in, as an ISO 639-1 code; None where it can't be told."""
    counts = Counter(_identifier().classify(piece)[0] for piece in _looked_at(text) if _sure_language(piece))
    return max(counts, key=lambda language: (counts[language], language)) if counts else None


def _looked_at(text: str) -> list[str]:
    """The pieces of a text's prose that are looked at."""
    pieces = list(_pieces(prose(text)))
    if len(pieces) > MAX_PIECES:
        pieces = [pieces[i * len(pieces) // MAX_PIECES] for i in range(MAX_PIECES)]
    return pieces


def _sure_language(piece: str) -> str | None:
    """The language of a piece, or its kin, that its words or the identifier are sure of; None for no language, too."""
    if (language := _told_by_words(piece)) is not None:
        return language
    best, probability = _identifier().classify(piece)
    if probability >= _CONFIDENCE:  # its kin can only add to it
        return _kin(best) if _kin(best) != _NO_LANGUAGE else None
    ranked = _identifier().rank(piece)
    language = _kin(ranked[0][0])
    confidence = sum(probability for other, probability in ranked[:_RANKED] if _kin(other) == language)
    return language if confidence >= _CONFIDENCE and language != _NO_LANGUAGE else None


def _told_by_words(piece: str) -> str | None:
    """The language of a piece whose common words say enough; None of those with many other letters or languages."""
    if len(piece.encode()) > _MAX_BYTES_PER_CHARACTER * len(piece):
        return None
    words = words_of(piece)
    counts = {language: sum(map(common.__contains__, words)) for language, common in COMMON_OF.items()}
    language = max(counts, key=counts.__getitem__)
    others = sum(counts.values()) - counts[language]
    said = counts[language] >= _MIN_COMMON[language] * len(words) and others <= _MAX_OTHERS * len(words)
    return language if words and said else None


def prose(text: str) -> str:
    """What of a text is sentences, as far as signs tell: no code, formulae, tables, links or identifiers."""
    words: list[str] = []
    for line in _without_markup(text).splitlines():
        signs = len(line) - len(line.translate(_without_signs))
        if signs < _MIN_PROSE_SHARE * len(line):
            continue
        if _IDENTIFIER.search(line):
            words += (word for word in line.split() if not _IDENTIFIER.search(word))
        else:
            words += line.split()
    return " ".join(words)


def _without_markup(text: str) -> str:
    """The text without code, formulae, links and tags; an opener that nothing closes is looked for only once."""
    if not _MARKUP_SIGN.search(text) and "://" not in text:
        return text
    last = {closer: text.rfind(closer) for closer in _CLOSER.values()}
    last |= {match[0]: match.start() for match in _ENVIRONMENT_END.finditer(text)}
    kept, at = [], 0
    while match := _NO_PROSE.search(text, at):
        begin, end = match.span()
        if opener := match["opener"]:
            closer = f"\\end{{{match['name']}}}" if match["name"] else _CLOSER[opener]
            if last.get(closer, -1) >= end:
                end = text.index(closer, end) + len(closer)
            elif opener in _FENCES:
                end = len(text)
            else:
                kept.append(text[at : begin + 1])
                at = begin + 1
                continue
        kept += text[at:begin], " "
        at = end
    return "".join([*kept, text[at:]])


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of the same size, characters whole; none where it is too short to tell its language."""
    data = text.encode(errors="ignore")
    if len(data) < MIN_PIECE_BYTES:
        return
    count = max(1, len(data) // PIECE_BYTES)
    bounds = [len(data) * i // count for i in range(count + 1)]
    for begin, end in itertools.pairwise(bounds):
        yield data[begin:end].decode(errors="ignore")


@cache
def _kin(language: str) -> str:
    return next((min(kin) for kin in _KIN if language in kin), language)


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    read = LanguageIdentifier.from_model_file(MODEL_FILE)
    # Stored in half precision, which numpy would turn into single precision for every piece: most of its time.
    return LanguageIdentifier(
        read.nb_ptc.astype(np.float32),
        *(read.nb_pc, read.nb_classes, read.tk_nextmove, read.tk_output),
        norm_probs=True,
        tk_row=read.tk_row,
    )
