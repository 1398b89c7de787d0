"""Model servers that mean harm, or are broken in ways that come to the same: one answer costs one request.

Through the feeder as in a run; the servers are scripted. What honest servers do is in tests/test_endpoint_engine.py.
"""

from __future__ import annotations

import time

import pytest

from augment.requests.closing import closed_of
from augment.traces import ends_sentence, goes_on, parse_trace
from tests.test_thoughts import generation, ledger_row

# --- traces -----------------------------------------------------------------------------------------------------------

SIZE = 250_000
CRAFTED = {
    "ends of thinking": "</think>",
    "beginnings": "<think>",
    "empty blocks": "<think>\n</think>",
    "beginnings and ends that don't match": "<think>[/THINK]</seed:think>",
    "newlines": "\n",
    "lines": "a\n",
    "marks that never close": "<|channel|>analysis",
    "roles that never open": "<|start|>assistant",
    "ends of sentences": '."',
    "numbers": "1. ",
    "abbreviations": "e. g",
    "fences": "```\n",
    "formulas": "$$\\[",
}


@pytest.mark.parametrize("name", CRAFTED)
@pytest.mark.parametrize("last", ["", "x", " \n\nx"])
def test_a_crafted_trace_takes_linear_time(name: str, last: str) -> None:
    """A quarter of a megabyte. Before, 1,000 times "</think>" were a RecursionError and 32 kB of newlines took 5 s."""
    text = CRAFTED[name] * (SIZE // len(CRAFTED[name])) + last
    began = time.process_time()
    for forced in (False, True):
        for reason in ("stop", "length"):
            assert closed_of(generation(text, reason, forced=forced)) in ("natural", "forced", "cut")
    parse_trace(ledger_row(text))
    ends_sentence(text), goes_on(text)
    assert time.process_time() - began < 2


def test_a_thousand_ends_are_an_empty_trace() -> None:
    assert parse_trace(ledger_row("</think>" * 1000)).text == ""
    assert parse_trace(ledger_row("</think>\n" * 5000 + "So.")).text == "So."
