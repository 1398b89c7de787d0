"""A newcomer's first hour: three corpora, the commands of README and quickstart, and how long each is silent.

    python -m benchmarks.newcomer --megabytes 100

In an empty folder, in rehearsal: manual-like pages with licence headers, prose in Japanese and Chinese, and a large
corpus go through `init`, `plan`, `run`, `verify` and `status` as a newcomer types them. Measured of each command: its
time, the time until it first says something, and its longest silence; what a command says at its end ends its last
silence. The tests in tests/newcomer do the same with small corpora, and literally with the commands of the pages. The
last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from pipelines.cli.packaged_models import COMPLETE
from pipelines.tools.conformance import train_tokenizer

MODEL = "smollm2-135m-instruct"
THOUGHTMILL = (sys.executable, "-m", "pipelines.cli")
WANTED_S = 5.0
"""No command should be silent for longer when it begins."""

HEADER = (
    "COPYRIGHT\n\nCopyright (c) 1989, {year} The Authors of {name}. All rights reserved.\n\nRedistribution and use in "
    "source and binary forms, with or without modification, are permitted provided that the following conditions are "
    "met: redistributions of source code must retain the above notice, this list and the following disclaimer.\n\n"
)
_SUBJECTS = (
    "the socket",
    "a descriptor",
    "the kernel",
    "this call",
    "the buffer",
    "every lock",
    "the child",
    "a signal",
)
_VERBS = (
    "returns to",
    "waits for",
    "is closed by",
    "is shared with",
    "must precede",
    "never outlives",
    "is copied from",
)
_ENDS = ("unless it is marked", "when the last reference goes", "before an error is set", "if the flag is given")
_JAPANESE = (
    ("氷河は", "海の水は", "古い町では", "この季節に", "山の上で", "港の人々は"),
    ("ゆっくりと谷を下り", "静かに岸を離れ", "長い冬のあいだ", "誰にも知られずに", "石の橋を渡って"),
    ("やがて形を変える。", "遠くの村へ届いた。", "春を待っていた。", "一つの話になった。", "光の中に消えていく。"),
)
_CHINESE = (
    ("冰川在", "老城里的人们在", "这条河在", "山上的雪在", "港口的船在"),
    ("漫长的冬天里", "重力的作用下", "没有人注意的时候", "清晨的雾气之中"),
    ("慢慢改变了形状。", "向远处流去。", "等待着春天的到来。", "渐渐变成了一个故事。"),
)


def manual_pages(pages: int, seed: int = 0) -> Iterator[str]:
    """Pages as manuals have them: a licence, a name, a synopsis, and sentences that differ from page to page."""
    drawn = random.Random(seed)
    for number in range(pages):
        name = f"call{number}"
        said = " ".join(
            f"{drawn.choice(_SUBJECTS)} {drawn.choice(_VERBS)} {drawn.choice(_SUBJECTS)} {drawn.choice(_ENDS)}, with "
            f"{drawn.randrange(2, 999)} of {drawn.randrange(1000, 9999)} entries.".capitalize()
            for _ in range(drawn.randint(12, 40))
        )
        top = HEADER.format(year=1990 + number % 30, name=name)
        names = f"NAME\n\n{name} - call number {number}\n\nSYNOPSIS\n\nint {name}(int fd);\n\n"
        yield f"{top}{names}DESCRIPTION\n\n{said}\n"


def prose(language: str, documents: int, seed: int = 0) -> Iterator[str]:
    """Made-up prose in Japanese ("ja") or Chinese ("zh")."""
    drawn, parts = random.Random(seed), {"ja": _JAPANESE, "zh": _CHINESE}[language]
    for _ in range(documents):
        yield "".join("".join(map(drawn.choice, parts)) for _ in range(drawn.randint(8, 25)))


def write_lines(path: Path, texts: Iterator[str], max_bytes: int | None = None) -> Path:
    """Texts as JSON lines, up to a size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if max_bytes is not None and file.tell() >= max_bytes:
                break
    return path


def make_home(folder: Path) -> Path:
    """A folder of fetched models that holds a small tokenizer under the name of the examples' model."""
    model = folder / "models" / MODEL
    train_tokenizer(model)
    (model / COMPLETE).touch()
    return folder


@dataclass(frozen=True)
class Told:
    """What a command said, and when.

    Attributes:
        code: its exit code.
        out, err: all that it wrote.
        wall_s: seconds until its end.
        first_output_s: seconds until it first said something; all of them where it said nothing.
        longest_silence_s: the longest time between two things that it said, its beginning and end included.
    """

    code: int
    out: str
    err: str
    wall_s: float
    first_output_s: float
    longest_silence_s: float


def told_by(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Told:
    """Run `thoughtmill WORDS` in a folder, with nobody at the terminal."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*THOUGHTMILL, *words],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    times = [began]
    with process, selectors.DefaultSelector() as selector:
        streams: dict[str, IO[bytes] | None] = {"out": process.stdout, "err": process.stderr}
        for name, stream in streams.items():
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 1 << 16)
                if data:
                    times.append(time.monotonic())
                    said[key.data] += data
                else:
                    selector.unregister(key.fileobj)
    end = time.monotonic()
    gaps = [later - earlier for earlier, later in zip(times, [*times[1:], end], strict=True)]
    return Told(
        code=process.returncode,
        out=said["out"].decode(errors="replace"),
        err=said["err"].decode(errors="replace"),
        wall_s=end - began,
        first_output_s=gaps[0],
        longest_silence_s=max(gaps),
    )


def trial(folder: Path, environment: Mapping[str, str], name: str, source: str) -> Iterator[tuple[str, Told]]:
    """A corpus through the commands that a newcomer types, in rehearsal."""
    config, output = f"{name}.yaml", f"out/{name}"
    for words in (
        ["init", config, "--example", "rehearsal", "--source", source, "--output", output],
        ["plan", config],
        ["run", config],
        ["verify", output],
        ["status", output],
        ["run", config],
    ):
        yield f"{name}: {words[0]}", told_by(words, folder, environment)


def write_corpora(folder: Path, large_bytes: int) -> dict[str, str]:
    """The three corpora; name of each → its source."""
    write_lines(folder / "manual" / "pages.jsonl", manual_pages(120))
    for language in ("ja", "zh"):
        write_lines(folder / "prose" / f"{language}.jsonl", prose(language, 60))
    write_lines(folder / "large" / "pages.jsonl", manual_pages(10**9, seed=1), large_bytes)
    return {"manual": "manual", "prose": "prose/*.jsonl", "large": "large"}


def table_of(measured: Sequence[tuple[str, Told]]) -> Table:
    """Each command with its times; those over `WANTED_S` are marked."""
    table = Table("command", "seconds", "until its first word", "longest silence")
    for name, told in measured:
        late = " (!)" if told.first_output_s > WANTED_S else ""
        table.add_row(name, f"{told.wall_s:.1f}", f"{told.first_output_s:.1f}{late}", f"{told.longest_silence_s:.1f}")
    return table


def main() -> None:
    """Make the corpora, type the commands, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100, help="of the large corpus")
    options = parser.parse_args()
    console = Console()
    measured: list[tuple[str, Told]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = {"THOUGHTMILL_HOME": str(make_home(folder / "home"))}
        for name, source in write_corpora(folder, int(options.megabytes * 1e6)).items():
            for command, told in trial(folder, environment, name, source):
                if told.code:
                    raise SystemExit(f"{command} ended with {told.code}:\n{told.err}")
                measured.append((command, told))
    console.print(table_of(measured))
    figures = {
        "megabytes": options.megabytes,
        "first_output_s": max(told.first_output_s for _, told in measured),
        "longest_silence_s": max(told.longest_silence_s for _, told in measured),
        "large_run_s": next(told.wall_s for command, told in measured if command == "large: run"),
    }
    conclude(console, "newcomer", figures, ("thoughtmill", "apache-beam"))


if __name__ == "__main__":
    main()
