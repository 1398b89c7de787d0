"""The gate against traces that are not about their segment; labelled traces are in `test_gates_labelled`."""

from __future__ import annotations

import pytest

from augment.engines.rehearsal import _WORDS
from augment.selection.gates.common_words import COMMON
from augment.selection.gates.gate import Subject
from augment.selection.gates.off_topic import OffTopic, TellingWords
from augment.traces import Trace

SEGMENT = (
    "A glacier flows because ice under pressure deforms slowly, like a very stiff liquid, and because it slides on "
    "the water at its base. Near the margins friction with the valley walls holds it back, so a straight row of stakes "
    "driven across it becomes a curve within a year. Crevasses open where the bed steepens and the surface is "
    "stretched."
)
ABOUT = (
    "Friction at the valley walls decides: the stakes in the middle travel farthest, so the row bends downhill. A "
    "stiff liquid in a channel would show the same curve, and warm ice, which deforms faster, an even deeper one."
)
CHAT = (
    "Good morning, sunshine! I hope your weekend was relaxing and full of laughter. I'm your friendly helper, ready "
    "to brighten your day with jokes, recipes, travel tips or motivational quotes. Would you prefer coffee or a "
    "bedtime story about pirates, dragons and princesses, with recommendations for dessert?"
)
GERMAN = (
    "Ein Gletscher fließt, weil Eis sich unter Druck langsam verformt, und weil er auf dem Wasser an seinem Grund "
    "gleitet. An den Rändern hält ihn die Reibung an den Felswänden zurück, sodass eine gerade Reihe von Pfählen nach "
    "einem Jahr eine Kurve bildet."
)
JAPANESE = (
    "氷河は圧力の下で氷がゆっくり変形し、底の水の上を滑ることによって流れる。縁では谷の壁との摩擦が流れを妨げる。" * 2
)


def is_off_topic(text: str, segment: str = SEGMENT, **config: float) -> bool:
    trace = Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=100)
    return OffTopic(**config).objects(Subject(trace=trace, source_text=segment, prompt="brief"))


@pytest.mark.parametrize(
    ("text", "segment", "expected"),
    [
        (ABOUT, SEGMENT, False),
        (CHAT, SEGMENT, True),
        (GERMAN, SEGMENT, False),  # nothing can be shared with a text in another language
        (CHAT, GERMAN, False),
        (CHAT, JAPANESE, False),
        (CHAT, "Ice flows.", False),  # too little to compare with
        ("Well said!", SEGMENT, False),
        (f"```\n{CHAT * 3}\n```\n{CHAT}", SEGMENT, False),  # code for the most part
        ("", "", False),
    ],
    ids=["about", "chat", "language", "other language", "script", "short segment", "short trace", "code", "empty"],
)
def test_what_is_off_topic(text: str, segment: str, expected: bool) -> None:
    assert is_off_topic(text, segment) == expected


def test_its_thresholds_are_the_config_s() -> None:
    assert is_off_topic(ABOUT, shared_by_chance=0.5) and not is_off_topic(CHAT, min_words=500)


def test_telling_words() -> None:
    found = TellingWords("The NodeVisitors visited 42 nodes in 東京タワー, which it does.")
    assert found.words == {"node", "visit", "nodes", "東", "京", "タワ", "ワー"} and found.numbers == {"42"}


def test_made_up_traces_are_not_judged() -> None:
    """A rehearsal goes the way of a real run, so its words must say nothing."""
    assert {word for word in _WORDS if len(word) > 2} <= COMMON
