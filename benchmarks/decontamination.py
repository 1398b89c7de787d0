"""What decontamination finds and what it finds wrongly: benchmark texts written otherwise, and technical documents.

    python -m benchmarks.decontamination gsm8k/test.jsonl HumanEval.jsonl.gz

Each text of the benchmarks that is long enough to be looked for is hidden in a page of documentation: as it is, without
GSM8K's `<<48/2=24>>` marks, and with other case, punctuation and line breaks; `missed` are those that aren't found.
Technical documents are Python's topics, the modules of its library and their docstrings, and what installed packages
ship as text: each that hits is shown with the words in common, to be judged, since a few quote a benchmark in truth.
The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.table import Table

from augment.selection.benchmarks.files import read_benchmarks
from augment.selection.benchmarks.index import BenchmarkIndex
from augment.selection.word_runs import HALVES, runs_of
from augment.selection.words import words_of
from benchmarks.machine import conclude

console = Console()

NGRAM_WORDS, MIN_WORDS = 13, 8
_MARKS = re.compile(r"<<[^<>\n]*>>")
_DOCSTRING = re.compile(r'"""(.{200,}?)"""', re.DOTALL)
_TEXTS = ("*.md", "*.rst", "*.txt", "METADATA")
MAX_BYTES = 200_000


def technical_documents() -> Iterator[tuple[str, str]]:
    """(name, text) of what ships with Python and its packages."""
    yield from topics.items()
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            text = _read(path)
            yield str(path.relative_to(library)), text
            if docstrings := _DOCSTRING.findall(text):
                yield f"{path.relative_to(library)}, docstrings", "\n\n".join(docstrings)
    for ending in _TEXTS:
        for path in sorted(packages.rglob(ending)):
            yield str(path.relative_to(packages)), _read(path)


def _read(path: Path) -> str:
    return path.read_bytes()[:MAX_BYTES].decode(errors="replace")


def rewritten(text: str) -> dict[str, str]:
    """A benchmark's text as a document may have it."""
    bare = _MARKS.sub("", text)
    return {
        "as it is": text,
        "without marks": bare,
        "upper case, no commas": bare.upper().replace(",", ""),
        "over lines": "\n> ".join(bare.split(" ")),
    }


def words_in_common(index: BenchmarkIndex, text: str) -> str:
    """The first run of the text that hits by itself."""
    words = words_of(text)
    low, high = 0, len(words)
    while high - low > NGRAM_WORDS + 1:
        middle = (low + high) // 2
        if index.hits(" ".join(words[low : middle + NGRAM_WORDS])):
            if high == middle + NGRAM_WORDS:
                break
            high = middle + NGRAM_WORDS
        else:
            low = middle
    return " ".join(words[low:high])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", help="JSON-lines files, or globs of them")
    parser.add_argument("--every", type=int, default=1, help="hide only every so many-th text of the benchmarks")
    parser.add_argument("--fields", nargs="*", default=[], help="fields that hold texts; all by default")
    arguments = parser.parse_args()

    texts = list(read_benchmarks(arguments.benchmarks, arguments.fields))
    index = BenchmarkIndex(texts, ngram_words=NGRAM_WORDS, min_words=MIN_WORDS)
    console.print(index.describe())

    long_enough = [(name, text) for name, _, text in texts if runs_of(text).size_halves >= HALVES * MIN_WORDS]
    page = topics["comparisons"][:2000]
    hidden: dict[str, list[bool]] = {}
    for name, text in long_enough[:: arguments.every]:
        for how, written in rewritten(text).items():
            hidden.setdefault(f"{name}, {how}", []).append(name in index.hits(f"{page}\n\n{written}\n\n{page}"))
    table = Table("benchmark, written", "texts", "found", "missed")
    for how, found in hidden.items():
        table.add_row(how, str(len(found)), str(sum(found)), str(len(found) - sum(found)))
    console.print(table)

    number = 0
    wrong: list[tuple[str, list[str], str]] = []
    for name, text in technical_documents():
        number += 1
        if hits := index.hits(text):
            wrong.append((name, hits, words_in_common(index, text)))
    for name, hits, common in wrong:
        console.print(name, *hits, repr(common[:200]), markup=False)
    console.print(f"{len(wrong)} of {number:,} technical documents hit")
    found = [hit for outcomes in hidden.values() for hit in outcomes]
    conclude(
        console,
        "decontamination",
        {
            "hidden": len(found),
            "missed_share": 1 - sum(found) / len(found),
            "technical_documents": number,
            "technical_documents_hit": len(wrong),
        },
        ("numpy",),
    )


if __name__ == "__main__":
    main()
