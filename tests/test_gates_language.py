"""The language gate: traces in another language, and everything that must not be taken for one."""

from __future__ import annotations

import inspect
import string
import textwrap
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import pytest

from augment.selection.gates import GatesConfig, language
from augment.selection.gates.gate import Subject
from augment.selection.gates.language import PIECE_BYTES, Language, _told_by_words, main_languages, prose
from augment.traces import Trace
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError
from tests.test_gates import JAPANESE, REAL, number_table
from tests.test_gates_content import SEGMENT, THOUGHT

PROSE = {
    "en": THOUGHT,
    "ja": JAPANESE,
    "de": "Wer zum ersten Mal eine Rekursion liest, sucht den Anfang an der falschen Stelle. Man möchte wissen, "
    "womit die "
    "Berechnung beginnt, doch entscheidend ist, womit sie aufhört: Ohne den einfachen Fall, der sich ohne weiteren "
    "Aufruf beantworten lässt, käme sie nie zu einem Ende. Deshalb lohnt es sich, zuerst diesen Fall zu prüfen und "
    "erst danach zu fragen, ob jeder Aufruf ihm wirklich ein Stück näher kommt.",
    "fr": "On croit souvent qu'une moyenne décrit le cas habituel, mais il suffit d'une seule valeur très grande pour "
    "qu'elle s'éloigne de toutes les autres. La médiane résiste mieux, puisqu'elle ne regarde que l'ordre. Si l'on "
    "double le plus haut salaire d'un village, la moyenne monte, alors que personne d'autre n'est devenu plus riche "
    "et que la médiane reste exactement où elle était.",
    "es": "La tabla de dispersión parece magia hasta que se piensa en las colisiones. Dos claves distintas pueden "
    "caer en "
    "la misma casilla, y entonces hay que decidir qué hacer: buscar la siguiente libre o guardar una lista en cada "
    "una. Mientras la tabla esté medio vacía, ambas maneras son rápidas; cuando se llena, las búsquedas se alargan y "
    "conviene hacerla crecer.",
    "ru": "Когда две гири разной массы падают с одной высоты, кажется очевидным, что тяжёлая упадёт первой. Но "
    "представим, "
    "что мы связали их верёвкой: лёгкая должна замедлять тяжёлую, а вместе они тяжелее каждой. Выходит, связка "
    "падает и медленнее, и быстрее одной гири, а это противоречие. Значит, без сопротивления воздуха время падения "
    "от массы не зависит.",
    "zh": "很多人以为水总是在一百度沸腾，其实这只是在海平面上才成立。山越高，气压越低，"
    "水在更低的温度就会开始冒泡。高原上煮面条总"
    "觉得煮不熟，"
    "原因不是火不够大，而是水的温度上不去。高压锅正好相反，它把蒸汽关在里面，压力升高，沸点也随之升高，所以食物熟得"
    "更快。理解这一点以后，就不会再把沸腾和某一个固定的温度画上等号了。",
}

FORMULAE = r"""
Let $f(x) = \sum_{n=0}^{\infty} a_n x^n$ with $|x| < R$. Then
\begin{align}
f'(x) &= \sum_{n=1}^{\infty} n a_n x^{n-1} \\
\int_0^x f(t)\,dt &= \sum_{n=0}^{\infty} \frac{a_n}{n+1} x^{n+1}
\end{align}
$$\lim_{n \to \infty} \left| \frac{a_{n+1}}{a_n} \right| = \frac{1}{R}$$
\[ e^{i\pi} + 1 = 0, \quad \nabla \times \mathbf{E} = -\frac{\partial \mathbf{B}}{\partial t} \]
"""

CODE_IN_C = """
static int hash_insert(struct table *t, const char *key, void *val)
{
    size_t i = fnv1a(key) & (t->cap - 1);
    while (t->slot[i].key) {
        if (!strcmp(t->slot[i].key, key)) { t->slot[i].val = val; return 0; }
        i = (i + 1) & (t->cap - 1);
    }
    t->slot[i].key = xstrdup(key); t->slot[i].val = val; t->used++;
    return t->used * 2 > t->cap ? grow(t) : 1;
}
"""

NO_PROSE = {
    "formulae": FORMULAE,
    "C": CODE_IN_C,
    "code": inspect.getsource(textwrap) + inspect.getsource(string),
    "a table of numbers": number_table(),
    "a ruled table": REAL["a ruled table"],
    "a grammar": topics["calls"][:900],
    "nothing": "",
}


def objects(text: str, source: str, **config: object) -> bool:
    trace = Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=100)
    gate = Language(**config)  # type: ignore[arg-type]
    return gate.objects(Subject(trace=trace, source_text=source, prompt="expert"))


@pytest.mark.parametrize("trace", PROSE)
@pytest.mark.parametrize("segment", PROSE)
def test_a_trace_is_in_the_segments_language(segment: str, trace: str) -> None:
    assert objects(PROSE[trace], PROSE[segment]) == (trace != segment)


@pytest.mark.parametrize("trace", [name for name in PROSE if name != "ja"])
def test_allowed_languages(trace: str) -> None:
    assert not objects(PROSE[trace], JAPANESE, allowed=(trace,))
    assert not objects(JAPANESE, JAPANESE, allowed=(trace,))
    assert objects(PROSE["ru" if trace != "ru" else "en"], JAPANESE, allowed=(trace,))


def test_a_language_that_cannot_be_identified(rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    select = {"gates": {"language": {"allowed": ["english"]}}}
    with pytest.raises(
        RequestError, match=r"select.gates.language.allowed: .*'english' can't be identified; known: .*en"
    ):
        from_mapping(rehearsal_config("x.jsonl", select=select))


@pytest.mark.parametrize("language", PROSE)
@pytest.mark.parametrize("name", NO_PROSE)
def test_code_formulae_and_tables_have_no_language(name: str, language: str) -> None:
    if name not in ("code", "a grammar"):
        assert not objects(PROSE[language], NO_PROSE[name])
    assert not objects(f"{PROSE[language]}\n\n```\n{NO_PROSE[name]}\n```", PROSE[language])
    assert not objects(NO_PROSE[name], PROSE["en"])


def test_english_about_code_passes_and_german_about_commented_code_does_not() -> None:
    assert not objects(THOUGHT, NO_PROSE["code"])
    assert objects(PROSE["de"], inspect.getsource(textwrap))


def test_every_page_of_the_documentation_passes_about_another() -> None:
    assert [name for name, text in topics.items() if objects(text, SEGMENT)] == []


def test_a_switch_on_the_way_is_found_and_a_quotation_passes() -> None:
    assert objects(THOUGHT + "\n\n" + PROSE["zh"], SEGMENT)
    assert objects(THOUGHT + "\n\n" + PROSE["de"] + PROSE["fr"], SEGMENT)
    assert not objects(THOUGHT * 3 + "\n\n" + PROSE["de"][:200] + "\n\n" + THOUGHT * 3, SEGMENT)


def test_a_segment_in_two_languages_may_be_thought_about_in_either() -> None:
    both = PROSE["de"] + "\n\n" + PROSE["en"]
    assert not objects(PROSE["de"], both)
    assert not objects(PROSE["en"], both)
    assert objects(PROSE["ru"], both)


@pytest.mark.parametrize("short", ["Ja.", "これは短い。", "Voilà, c'est tout.", "Nur ein kurzer Satz über Listen."])
def test_short_texts_are_not_judged(short: str) -> None:
    assert not objects(short, SEGMENT)
    assert not objects(THOUGHT, short)


def test_prose_is_what_remains() -> None:
    text = (
        "Call `os.path.join` with $x_1$, see https://example.org/a?b=c, or set max_len.\n\n```\nx = 1\n```\n| 1 | 2 |"
    )
    assert prose(text) == "Call with , see or set"


def test_it_can_be_switched_off() -> None:
    assert "language" not in GatesConfig(language=Language(enabled=False)).enabled()
    assert list(GatesConfig().enabled())[-2:] == ["language", "off_topic"]


@pytest.mark.parametrize(
    ("language", "told"), [("en", "en"), ("de", "de"), *((other, None) for other in ("fr", "es", "ru", "ja", "zh"))]
)
def test_common_words_tell_english_and_german_alone(language: str, told: str | None) -> None:
    assert _told_by_words(PROSE[language][:240]) == told


def test_a_piece_of_two_languages_is_told_by_neither_ones_words() -> None:
    assert _told_by_words(f"{PROSE['en'][:120]} {PROSE['de'][:120]}") is None
    assert _told_by_words("") is None


def test_where_words_tell_the_identifier_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(language, "_identifier", never)
    subject = subject_of(PROSE["de"] * 8, PROSE["en"] * 8)
    assert Language().objects(subject)
    assert not Language().objects(subject_of(PROSE["en"] * 8, PROSE["en"] * 8))


ENGLISH = (
    "A thought about a text uses the words of that text, and so it can be told from one that is about another. "
    "Where a trace has no more in common with its segment than a stranger has, it is left out, and the reader of the "
    "corpus will never see it again, whatever it was worth to those who had paid for it."
)


@pytest.mark.parametrize("places", [(0, 1, 2), (2, 3, 4), (3, 4, 5), (5, 6, 7)])
def test_three_of_eight_pieces_in_a_row_are_too_much_wherever_they_are(places: tuple[int, ...]) -> None:
    english, french = piece_of("en"), piece_of("fr")
    text = " ".join(french if place in places else english for place in range(8))
    assert Language().objects(subject_of(text, PROSE["en"] * 8))
    assert not Language().objects(subject_of(" ".join([english] * 6 + [french]), PROSE["en"] * 8))


def test_a_segment_of_two_languages_in_turns_of_a_quarter_may_be_thought_about_in_both() -> None:
    english, french = piece_of("en"), piece_of("fr")
    text = " ".join([english] * 3 + [french] * 2 + [english] * 3)
    assert main_languages(text) == {"en", "fr"}


def piece_of(language: str) -> str:
    """As much of a language as is looked at in one piece, without a word that would be left out."""
    text = {"en": ENGLISH, "fr": PROSE["fr"]}[language]
    words, size_bytes = [], 0
    for word in text.split():
        if size_bytes + len(word.encode()) > PIECE_BYTES:
            break
        words.append(word)
        size_bytes += len(word.encode()) + 1
    return " ".join(words).ljust(PIECE_BYTES + 4, "x")


def subject_of(trace: str, source_text: str) -> Subject:
    told = Trace(text=trace, closed="natural", finish_reason="stop", thought_tokens=1)
    return Subject(trace=told, source_text=source_text, prompt="expert")
