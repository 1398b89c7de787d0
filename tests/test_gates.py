"""Gates: real text passes, real failures don't."""

from __future__ import annotations

import inspect
import random
import string
import textwrap
from collections.abc import Callable
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.selection.gates import GatesConfig
from augment.selection.gates.gate import Subject
from augment.selection.gates.loop import Loop, compression_ratios, repeated_shares
from augment.selection.gates.too_short import TooShort
from augment.selection.gates.unclosed import Unclosed
from augment.selection.words import words_as_they_are
from augment.traces import Trace

JAPANESE = """\
水は零度で凍り、百度で沸騰するとよく言われるが、それは海面の高さでの話である。山に登れば気圧が下がり、水はもっと低い
温度で沸き始める。富士山の頂上では八十七度ほどで沸くので、米を炊いても芯が残る。圧力鍋はこの逆を利用したものだ。蓋を
閉じて蒸気を逃がさなければ、中の圧力が上がり、沸点も上がる。そのため食材は短い時間で柔らかくなる。ここで大切なのは、
沸騰とは温度そのものではなく、蒸気の圧力が周りの圧力に等しくなる現象だという点である。だから真空に近い容器の中では、
室温の水でさえ泡を立てて沸く。私たちが台所で見ているのは、そのつり合いのひとつの場合にすぎない。
"""


def number_table() -> str:
    rng = random.Random(1)
    rows = [" | ".join(f"{rng.gauss(50, 20):8.3f}" for _ in range(6)) for _ in range(50)]
    return "\n".join(["| " + row + " |" for row in rows])


def ruled_table() -> str:
    rows = [f"| {name:<12} | {len(topics[name]):>8} |" for name in sorted(topics)[:20]]
    rule = "+--------------+----------+"
    return f"\n{rule}\n".join(rows)


REAL = {
    "documentation": topics["assignment"],
    "documentation with tables": topics["strings"],
    "code": inspect.getsource(textwrap) + inspect.getsource(string),
    "Japanese": JAPANESE,
    "a table of numbers": number_table(),
    "a ruled table": ruled_table(),
}

GOOD = topics["assignment"][:2500]

LOOPS = {
    "one sentence": "The value of x is then the same as the value of y. " * 30,
    "after good text": GOOD + " and so on and so forth" * 40,
    "with a counter": GOOD
    + "\n".join(f"Step {i}: now we look at the next case, like the one before." for i in range(50)),
    "a paragraph": GOOD + topics["comparisons"][:900] * 4,
    "before good text": topics["comparisons"][:600] * 5 + GOOD,
    "Japanese": "これは文の意味を考えることです。" * 30,
    "characters": GOOD + "!?" * 1200,
    "digits": "1, 0, " * 200,
    "code": GOOD + "    x = x + 1\n    y = y + x\n    print(x, y, sep=', ', end='')\n" * 20,
}


def trace(text: str, closed: str = "natural", finish_reason: str = "stop") -> Trace:
    return Trace(text=text, closed=closed, finish_reason=finish_reason, thought_tokens=100)  # type: ignore[arg-type]


def reasons(made: Trace, config: GatesConfig | None = None) -> list[str]:
    subject = Subject(trace=made, source_text="", prompt="expert")
    return [name for name, gate in (config or GatesConfig()).enabled().items() if gate.objects(subject)]


@pytest.mark.parametrize("name", REAL)
def test_real_text_passes(name: str) -> None:
    assert reasons(trace(REAL[name])) == []


def test_every_page_of_the_documentation_passes() -> None:
    rejected = {name: r for name, text in topics.items() if (r := reasons(trace(text)))}
    assert all(r == ["too_short"] for r in rejected.values()), rejected


SIZE = 16
MATRICES = {
    "identity": [[int(row == column) for column in range(SIZE)] for row in range(SIZE)],
    "zeros": [[0] * SIZE for _ in range(SIZE)],
    "chessboard": [[(row + column) % 2 for column in range(SIZE)] for row in range(SIZE)],
    "signs": [["-+"[(row & column).bit_count() % 2] for column in range(SIZE)] for row in range(SIZE)],
    "sums modulo 16": [[(row + column) % SIZE for column in range(SIZE)] for row in range(SIZE)],
    "decimals": [[f"{0.25 * (abs(row - column) < 2):.2f}" for column in range(SIZE)] for row in range(SIZE)],
}
WAYS: dict[str, Callable[[list[str]], str]] = {
    "lines": lambda rows: "\n".join(row.replace(",", " ") for row in rows),
    "a list": lambda rows: "[[" + "], [".join(rows) + "]]",
    "LaTeX": lambda rows: (
        "\\begin{pmatrix}" + " \\\\ ".join(row.replace(",", " & ") for row in rows) + "\\end{pmatrix}"
    ),
    "a table": lambda rows: "\n".join("| " + row.replace(",", " | ") + " |" for row in rows),
    "MATLAB": lambda rows: "A = [" + "; ".join(row.replace(",", " ") for row in rows) + "];",
    "C": lambda rows: "int a[16][16] = {" + ",".join("{" + row + "}" for row in rows) + "};",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_no_loop(name: str, way: str) -> None:
    written = WAYS[way]([",".join(map(str, row)) for row in MATRICES[name]])
    assert "loop" not in reasons(trace(written))
    assert "loop" not in reasons(trace(f"The matrix is\n\n{written}\n\nand its structure is plain to see."))


@pytest.mark.parametrize(
    "loop",
    [
        "2 -1 0 0 0 0 0 0\n" * 120,
        "1 0 0 1\n" * 40,
        ("1 0 0\n0 1 0\n0 0 1\n\nThe next is\n" * 40),
        "[0, 1, 0, -1], " * 60,
        "0 1 " * 100,
        ("a | b | c\n1 | 2 | 3\nx | y | z\nand so on\n" * 30),
    ],
)
def test_rows_without_end_are_a_loop(loop: str) -> None:
    assert "loop" in reasons(trace(GOOD + "\n" + loop))


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    assert reasons(trace(LOOPS[name])) == ["loop"]


def test_a_loop_that_the_engine_cut() -> None:
    assert reasons(trace(GOOD, closed="cut", finish_reason="repetition")) == ["unclosed", "loop"]


@pytest.mark.parametrize(("closed", "expected"), [("natural", []), ("forced", []), ("cut", ["unclosed"])])
def test_unclosed(closed: str, expected: list[str]) -> None:
    assert reasons(trace(GOOD, closed=closed)) == expected


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("", True),
        ("   \n\n  ", True),
        ("Okay.", True),
        ("...!!! --- " * 40, True),
        ("The loop ends when the list is empty, because pop would fail otherwise.", True),
        ("The loop has to end when the list is empty, because pop would raise an IndexError on it.", False),
        ("水は零度で凍り、百度で沸騰するとよく言われるが、それは海面の高さでの話である。", False),
    ],
)
def test_too_short(text: str, short: bool) -> None:
    assert ("too_short" in reasons(trace(text))) == short


@pytest.mark.parametrize(
    ("config", "subject"),
    [
        (GatesConfig(unclosed=Unclosed(enabled=False)), trace(GOOD, closed="cut")),
        (GatesConfig(too_short=TooShort(enabled=False)), trace("No.")),
        (GatesConfig(too_short=TooShort(min_bytes=2)), trace("No.")),
        (GatesConfig(loop=Loop(enabled=False)), trace(LOOPS["one sentence"])),
        (GatesConfig(loop=Loop(max_repeated_share=1.0, min_compression_ratio=0.0)), trace(LOOPS["digits"])),
    ],
)
def test_each_gate_can_be_switched_off(config: GatesConfig, subject: Trace) -> None:
    assert reasons(subject) != []
    assert reasons(subject, config) == []


@given(st.text(max_size=3000))
def test_measures_are_shares(text: str) -> None:
    assert all(0 <= share < 1 for share in repeated_shares(words_as_they_are(text)))
    assert all(ratio > 0 for ratio in compression_ratios(text))


@given(st.integers(2, 60), st.integers(0, 2000))
def test_a_loop_of_any_period_is_found_wherever_it_is(period: int, before: int) -> None:
    words = topics["comparisons"].split()
    loop = " ".join(words[:period] * (400 // period))
    assert reasons(trace(f"{GOOD[:before]} {loop} {GOOD[before:]}")) == ["loop"]
