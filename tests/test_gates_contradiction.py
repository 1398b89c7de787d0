"""The gate against traces that contradict their segment; labelled traces are in `test_gates_labelled`."""

from __future__ import annotations

import time

import pytest

from augment.selection.gates import GatesConfig
from augment.selection.gates.contradiction import Contradiction
from augment.selection.gates.gate import Subject
from augment.traces import Trace

SEGMENT = (
    "The lighthouse on the northern cape was built by Henry Alden in 1847 and is 42 metres tall. Its lamp turns once "
    "in 15 seconds and can be seen from 28 miles away. The keeper does not live in the tower. The tower of "
    "the southern cape has 96 steps, and the tower of the eastern cape has 120 steps. It is not known who paid for it."
)
GERMAN = (
    "Der Leuchtturm am nördlichen Kap wurde im Jahr 1847 gebaut und ist 42 Meter hoch. Sein Licht ist aus 28 Meilen "
    "Entfernung zu sehen. Der Wärter wohnt heute nicht mehr im Turm, denn die Lampe wird aus der Ferne gesteuert."
)
FRENCH = "Le phare du cap nord fut construit en 1847 et mesure 42 mètres de haut. Sa lampe tourne en 15 secondes. " * 2


def contradicts(text: str, segment: str = SEGMENT, **config: int) -> bool:
    trace = Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=100)
    return Contradiction(**config).objects(Subject(trace=trace, source_text=segment, prompt="brief"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lighthouse on the northern cape was built by Henry Alden in 1874, before steel was cheap.", True),
        ("Its lamp turns once in 51 seconds, which is slow enough for a sailor to count.", True),
        ("The lighthouse on the northern cape was built by George Halpin in 1847.", True),
        ("The keeper does live in the tower, so somebody hears the storms.", True),
        ("The keeper doesn't live in the tower, so nobody hears the storms.", False),
        ("It is known who paid for it.", False),  # too little is shared that tells
        ("The lighthouse on the northern cape was built in 1847, and 27 years later, in 1874, it got its lens.", False),
        ("If its lamp turned once in 51 seconds, no sailor would wait for it.", False),
        ("Is it true that its lamp turns once in 51 seconds?", False),
        ('Some book says "its lamp turns once in 51 seconds", which is hard to believe.', False),
        ("Its lamp turns once in a quarter of a minute, 4 times a minute, 240 times in 60 minutes.", False),
        ("The tower of the western cape has 77 steps.", False),  # a tower that the segment doesn't speak of
        ("The tower of the cape has 77 steps.", False),  # the segment has two numbers for that
        ("Another lighthouse on the northern cape was built by Henry Alden in 1861.", False),
        ("Its lamp turns once in 15.0 seconds.", False),
        ("", False),
    ],
)
def test_what_contradicts(text: str, expected: bool) -> None:
    assert contradicts(text) == expected


def test_german_and_other_languages() -> None:
    assert contradicts("Sein Licht ist aus 82 Meilen Entfernung zu sehen, weiter als jedes andere der Küste.", GERMAN)
    assert contradicts("Der Wärter wohnt heute mehr im Turm, und die Familie auch.", GERMAN)
    assert not contradicts("Sein Licht ist aus 28 Meilen Entfernung zu sehen.", GERMAN)
    assert not contradicts("Le phare du cap nord fut construit en 1874 et mesure 24 mètres de haut.", FRENCH)


def test_its_threshold_is_the_config_s() -> None:
    text = "Its lamp turns once in 51 seconds, which is slow."
    assert contradicts(text, min_shared_words=5) and not contradicts(text, min_shared_words=12)


def test_it_is_off_unless_asked_for() -> None:
    assert "contradiction" not in GatesConfig().enabled()
    assert "contradiction" in GatesConfig(contradiction=Contradiction(enabled=True)).enabled()


@pytest.mark.parametrize(
    "piece", ["its lamp turns once in 51 seconds and ", "Alden 7, ", "It does not live. ", "9 ", "9"]
)
def test_it_ends_soon_whatever_it_is_given(piece: str) -> None:
    started = time.monotonic()
    contradicts(piece * 5_000, SEGMENT + piece * 5_000)
    assert time.monotonic() - started < 10
