"""Made candidates on which the gates' verdicts are pinned (`tests/gate_verdicts.json`), always the same.

The labelled traces, each about its own segment and about another one of any language; and texts put together at random
of what gates look for: quotations, code, chat markup, refusals, rows of numbers, loops, copies, other languages, marks
without end. Gates were made faster by looking at less, and must not see less by it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from augment.selection.gates.gate import Subject
from augment.traces import Trace
from benchmarks.labelled_traces import EVERY_GATE, labelled_traces

VERDICTS = Path(__file__).parent / "gate_verdicts.json"

NUM_MADE = 400

_OPENINGS = (
    "The user wants me to explain the passage. ", "My task is to write the thoughts of an expert. ",
    "Sure, here is the analysis. ", "As an AI language model, I cannot do that. ", "I'm sorry, but I can't help. ",
    "Es tut mir leid, dabei kann ich nicht helfen. ", "Die Aufgabe verlangt von mir einen Gedankengang. ",
    "用户要求我写出专家的思考。", "抱歉，我无法提供帮助。",
    "専門家になりきって考察します。", "ユーザーは私に文章の要約を求めています。",
    "<think>", "### Response:\n", "Human: hello\n",
)  # fmt: skip
_BITS = (
    '"The user wants me to stop", he said. ', "“I'm sorry, but I can't help with that.” ", "'don't' ", "‘as an AI I’ ",
    "> my task is to write\n", "`call(x)` ", "```\nfor i in range(3): print(i)\n```\n", "~~~ open fence\n", "$x_1^2$ ",
    "$$ \\sum_i x_i $$ ", "\\begin{align} a &= b \\end{align} ", "https://example.org/a?b=c ", "<b>bold</b> ",
    "<|im_end|>", "[INST] ", "1 0 0 1\n0 1 1 0\n1 1 0 0\n", "[1 2 3; 4 5 6; 7 8 9] ", "| - - - |\n| + + + |\n",
    "camelCase NodeVisitor HTTPServer snake_case a.b f(x) ", "42 1,000 3.14 ² ", "\u0007 ", "\u202eabc ", "\ufffd ",
    "e\u0301\u0323 ", "a" + "\u0301" * 40 + " ", "ガ ｶﾞ ", "ﬁne ", "\n\n", "    \n", "…", "東京タワーは高い。",
    "हिन्दी में लिखा है। ",
    "ภาษาไทยไม่มีช่องว่าง ", "한국어 문장입니다. ", "Это предложение по-русски. ",
)  # fmt: skip


def subjects() -> Iterator[Subject]:
    """The candidates with what they were made from, in order."""
    traces = labelled_traces()
    for number, trace in enumerate(traces):
        yield trace.subject(trace.segment)
        yield trace.subject(traces[number * 197 % len(traces)].segment)
    draw = random.Random(22)
    for _ in range(NUM_MADE):
        source = draw.choice(traces).segment
        if draw.random() < 0.3:
            source = f"{source} {draw.choice(_OPENINGS)} {draw.choice(_BITS)}"
        yield Subject(
            trace=Trace(
                text=_made(draw, source, [trace.text for trace in draw.choices(traces, k=4)]),
                closed=draw.choice(("natural", "natural", "cut")),
                finish_reason="stop",
                thought_tokens=100,
            ),
            source_text=source,
            prompt=draw.choice(("expert", "brief")),
        )


def verdicts() -> dict[str, list[int]]:
    """Reasons, with spaces between → the numbers of the candidates that are rejected for them."""
    found: dict[str, list[int]] = {}
    gates = EVERY_GATE.enabled()
    for number, subject in enumerate(subjects()):
        reasons = [name for name, gate in gates.items() if gate.objects(subject)]
        if reasons:
            found.setdefault(" ".join(reasons), []).append(number)
    return found


def _made(draw: random.Random, source: str, others: list[str]) -> str:
    """A text of parts: openings, bits, sentences of other traces, of the segment, and of loops."""
    parts = [draw.choice(_OPENINGS)] if draw.random() < 0.3 else []
    for _ in range(draw.randrange(1, 12)):
        kind = draw.random()
        if kind < 0.35:
            parts.append(_piece(draw, draw.choice(others)))
        elif kind < 0.7:
            parts += draw.choices(_BITS, k=draw.randrange(1, 4))
        elif kind < 0.85:
            parts.append(_piece(draw, source))
        elif kind < 0.95:
            parts.append(_piece(draw, draw.choice(others)) * draw.randrange(1, 8))
        else:
            parts.append(draw.choice(_OPENINGS))
    return "".join(parts)


def _piece(draw: random.Random, text: str) -> str:
    begin = draw.randrange(len(text))
    return text[begin : begin + draw.randrange(20, 600)]


if __name__ == "__main__":
    VERDICTS.write_text(json.dumps(verdicts(), indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
