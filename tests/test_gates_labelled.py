"""Gates on the labelled traces: good ones pass, baits too but for a few, and no failure of a gate is missed.

`python -m benchmarks.gates` shows which; a gate that is changed has to keep what these limits say on either half.
"""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.gates import HALVES, distinct, precision, recall, rejected
from benchmarks.labelled_traces import EVERY_GATE, LabelledTrace, labelled_traces

JUDGED = [(trace, trace.objections(EVERY_GATE)) for trace in labelled_traces()]
GATES = [name for name in EVERY_GATE.enabled() if name not in ("unclosed", "unprintable")]
"""Those that judge what is said: the others go by how it ended, and by single characters."""

LEAST_RECALL = {
    "off_topic": 0.8,  # texts of fifty words that have nothing to do with each other may share one all the same
    "contradiction": 0.5,  # made to be right, not to find all
}


def half_of(name: str) -> list[tuple[LabelledTrace, list[str]]]:
    return [pair for pair in JUDGED if HALVES[name](pair[0])]


def test_the_set_has_every_language_kind_and_gate() -> None:
    traces = [trace for trace, _ in JUDGED]
    assert len(traces) >= 200
    assert len({trace.text for trace in traces}) == len(traces)
    assert {trace.language for trace in traces} == {"de", "en", "ja", "zh"}
    assert set(distinct(trace.expected for trace in traces if trace.expected)) == set(GATES)
    assert all((trace.expected is not None) == (trace.class_ == "failure") for trace in traces)
    for class_, kinds in {"good": {"prose", "code", "table", "formula", "matrix"}, "bait": set(GATES)}.items():
        assert {trace.kind for trace in traces if trace.class_ == class_} == kinds
    assert min(Counter(trace.held_out for trace in traces).values()) >= 80


@pytest.mark.parametrize("half", HALVES)
def test_good_traces_pass(half: str) -> None:
    wrong, number = rejected(half_of(half), "good")
    assert wrong <= 0.01 * number, [trace.text for trace, found in half_of(half) if trace.class_ == "good" and found]
    wrong, number = rejected(half_of(half), "bait")
    assert wrong <= 0.11 * number, [trace.text for trace, found in half_of(half) if trace.class_ == "bait" and found]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("half", HALVES)
def test_failures_are_found(half: str, gate: str) -> None:
    found, number = recall(half_of(half), gate)
    assert found >= LEAST_RECALL.get(gate, 0.9) * number
    right, objections = precision(half_of(half), gate)
    assert right >= 0.8 * objections
