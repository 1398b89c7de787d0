"""Hostile traces and documents: what judges them takes time and memory in proportion to their size, whatever they say.

Each form made a gate quadratic or cubic, or might. `python -m benchmarks.crafted_traces` measures them at 1 MB.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from augment.selection.benchmarks.index import BenchmarkIndex
from augment.selection.gates import GatesConfig
from augment.selection.gates.gate import Gate, Subject
from augment.selection.word_runs import runs_of
from augment.selection.words import MAX_MARKS, words_of
from augment.traces import Trace
from benchmarks.crafted_traces import CRAFTED, SEGMENT, crafted

SIZE_BYTES = 100_000
MAX_S = 2.0
"""Of processor time; quadratic in 100 kB takes minutes."""

MAX_BYTES_PER_BYTE = 400

GATES = GatesConfig().enabled()


@contextmanager
def bounded(what: str) -> Iterator[None]:
    begin = time.process_time()
    yield
    assert time.process_time() - begin < MAX_S, what


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Loads the language model and the templates, which is not to count."""
    for gate in GATES.values():
        gate.objects(subject(SEGMENT, SEGMENT))


def subject(text: str, source: str) -> Subject:
    trace = Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=100)
    return Subject(trace=trace, source_text=source, prompt="expert")


@pytest.mark.parametrize("form", CRAFTED)
def test_every_gate_is_linear(form: str) -> None:
    text = crafted(form, SIZE_BYTES)
    for name, gate in GATES.items():
        with bounded(f"{name} on {form}"):
            gate.objects(subject(text, SEGMENT))
    for name, gate in GATES.items():
        with bounded(f"{name} on {form}, about itself"):
            gate.objects(subject(text, text))


@pytest.mark.parametrize("form", CRAFTED)
def test_the_index_is_linear_in_benchmark_and_text(form: str) -> None:
    text = crafted(form, SIZE_BYTES)
    with bounded(f"the index on {form}"):
        BenchmarkIndex([("quiz", 0, text), ("quiz", 1, SEGMENT)]).hits(text)


@pytest.mark.parametrize("form", ["distinct words", "letters", "Arabic ligatures", "Devanagari", "newlines", "digits"])
@pytest.mark.parametrize("name", GATES)
def test_memory_is_linear(form: str, name: str) -> None:
    text = crafted(form, SIZE_BYTES)
    tracemalloc.start()
    try:
        GATES[name].objects(subject(text, SEGMENT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES_PER_BYTE * SIZE_BYTES


def test_long_words_are_not_remembered() -> None:
    tracemalloc.start()
    try:
        for number in range(100):
            runs_of(f"{number:0100000}")
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1_000_000


def test_marks_beyond_what_a_letter_carries_make_no_difference() -> None:
    marked = "a" + "\u0301\u0323" * (MAX_MARKS // 2)
    assert words_of(f"{marked} b") == words_of(f"{marked}{chr(0x301) * 50} b")
    assert words_of(f"{marked} b") != words_of("a b")


@pytest.mark.parametrize("blank", ["\n", " \n", "\t\n\u3000"])
def test_a_refusal_after_blank_lines_is_one(blank: str) -> None:
    text = f"The passage is about a lock.{blank * 2000}I'm sorry, but I can't help with that request."
    assert GATES["refusal"].objects(subject(text, SEGMENT))


def test_a_formula_that_nothing_closes_hides_nothing() -> None:
    german = "Wer zum ersten Mal eine Rekursion liest, sucht den Anfang an der falschen Stelle, sagt man gern. " * 4
    language: Gate = GATES["language"]
    assert language.objects(subject("\\[ " * 1000 + "\n" + german, SEGMENT))
    assert language.objects(subject("\\begin{align} " * 1000 + "\n" + german, SEGMENT))
    assert not language.objects(subject(f"\\[ {german} \\] \\begin{{a}} {german} \\end{{a}}", SEGMENT))
