"""Time and memory of each gate, of words, runs and the benchmark index on 1 MB of text made to be slow.

    python -m benchmarks.crafted_traces
    python -m benchmarks.crafted_traces --megabytes 4

Each form made a gate quadratic or cubic, or might. A table of the slowest form for each part; linear means that four
megabytes take four times as long. Memory is the peak of what Python and numpy hold, per byte of text, on a tenth of the
size. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from augment.selection.benchmarks.index import BenchmarkIndex
from augment.selection.gates import GatesConfig
from augment.selection.gates.gate import Subject
from augment.selection.word_runs import runs_of
from augment.selection.words import words_of
from augment.traces import Trace
from benchmarks.machine import conclude

console = Console()

SEGMENT = (
    "A list grows when one appends to it, and most of the time that is cheap, since it holds more room than it uses. "
    "Once the room is used up, a larger block is asked for and all that was there is copied. The cost of the copy is "
    "spread over the many calls that came before it, which is what amortised means."
)

CRAFTED: dict[str, str | Callable[[int], str]] = {
    "newlines": "\n",
    "spaces": " ",
    "blank lines with spaces": " \n\t",
    "letters": "a",
    "capitals": "A",
    "digits": "1",
    "numbers": "1 0 ",
    "rows of numbers": "1 0 0 1\n",
    "distinct words": lambda number: f"w{number} ",
    "distinct words, no space": lambda number: f"w{number}-",
    "distinct characters": lambda number: chr(0x4E00 + number % 0x5000),
    "full stops and stars": ".* ",
    "stars": ".*****",
    "fillers": "okay, well... ",
    "refusals": "I'm sorry, but I can't help. ",
    "nearly refusals": "sorry for the delay which I cannot ",
    "users": "the user wants me to think about the ",
    "nearly leaks": "I need to write down the very the very ",
    "formula, unclosed": "\\[ ",
    "formula in brackets, unclosed": "\\( ",
    "environments, unclosed": lambda number: f"\\begin{{a{number}}} ",
    "environment, unclosed": "\\begin{align} ",
    "dollars": "$$ a $",
    "backticks": "`` a ` ",
    "fences": "``` ~~~ ",
    "tags": "<a ",
    "chat markup": "<|a ",
    "headings": "### ",
    "quotations, unclosed": "“a ",
    "apostrophes": " 'a",
    "quotation marks": '"a ',
    "quoted lines": "> a\n",
    "marks out of order": "\u0301\u0323",
    "marked letters": "a\u0301\u0323",
    "decomposed kana": "か\u3099",
    "Devanagari": "क्",
    "Arabic ligatures": "\ufdfa",
    "lone surrogates": "\ud800",
    "brackets": "[[1,2],",
}
"""What is repeated, or what stands at each place."""


def crafted(form: str, size_bytes: int) -> str:
    """About so many bytes of UTF-8 of a form."""
    made = CRAFTED[form]
    if isinstance(made, str):
        return made * (size_bytes // len(made.encode(errors="surrogatepass")))
    return "".join(made(number) for number in range(size_bytes // len(made(size_bytes).encode())))


def parts() -> dict[str, Callable[[str], object]]:
    """What is measured, by name: each takes a text."""
    gates = GatesConfig().enabled()

    def subject(text: str) -> Subject:
        trace = Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=100)
        return Subject(trace=trace, source_text=SEGMENT, prompt="expert")

    index = BenchmarkIndex([("quiz", 0, SEGMENT)])
    return {
        **{name: lambda text, gate=gate: gate.objects(subject(text)) for name, gate in gates.items()},  # type: ignore[misc]
        "words": words_of,
        "runs": lambda text: runs_of(text).numbers(26),
        "benchmark index, looked into": index.hits,
        "benchmark index, made": lambda text: BenchmarkIndex([("quiz", 0, text)]),
    }


def seconds(part: Callable[[str], object], text: str) -> float:
    begin = time.process_time()
    part(text)
    return time.process_time() - begin


def peak_bytes(part: Callable[[str], object], text: str) -> int:
    tracemalloc.start()
    try:
        part(text)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.0, help="size of each text")
    size_bytes = int(parser.parse_args().megabytes * 1e6)

    table = Table("part", "slowest form", "s", "most memory", "bytes per byte")
    figures: dict[str, float] = {}
    for name, part in parts().items():
        part(SEGMENT)
        spent = {form: seconds(part, crafted(form, size_bytes)) for form in CRAFTED}
        small = size_bytes // 10
        held = {form: peak_bytes(part, crafted(form, small)) / small for form in CRAFTED}
        slowest, largest = max(spent, key=spent.__getitem__), max(held, key=held.__getitem__)
        table.add_row(name, slowest, f"{spent[slowest]:.2f}", largest, f"{held[largest]:.0f}")
        key = name.replace(", ", "_").replace(" ", "_")
        figures |= {f"{key}_worst_s": spent[slowest], f"{key}_worst_bytes_per_byte": held[largest]}
    console.print(table)
    conclude(console, "crafted_traces", {"megabytes": size_bytes / 1e6, **figures}, ("numpy", "py3langid"))


if __name__ == "__main__":
    main()
