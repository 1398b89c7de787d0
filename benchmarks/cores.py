"""Two cores over one, stage by stage, and what the default costs a run that is too small for them.

    python -m benchmarks.cores
    python -m benchmarks.cores --only plain
    python -m benchmarks.cores --megabytes 4 --plain-megabytes 4 --turns 1   # to try it out

Made-up documents are milled with one worker process and with two, by the command line, each run in a process of its
own, and every file of the two has to have the same bytes: with thoughts (rehearsal scorer, rehearsal traces, all gates,
four shards; the second run finds its generations in the ledger of the first, so that both select and pack the same),
and more of them without (`plain`), where little is to be done for each. `speedup_STAGE` is the time of a stage with one
process over that with two, from the manifests: Beam's start and that of its workers is in it. `rehearsal_over_before`
is the example `rehearsal` with its sample, by default over `--workers 1`, in turns, the shortest of each. The last line
is one JSON object with the figures of the parts that ran.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from benchmarks.milling_ours import NOTHING_THINKS
from pipelines.yaml_config import dump, from_mapping
from sharding.storage import manifest

console = Console()

PARTS = ("thoughts", "plain", "rehearsal")

STAGES = {"thoughts": ("score", "select", "pack"), "plain": ("score", "pack")}
"""Those that are compared: the second run generates nothing, and without thoughts there is nothing to select."""

FILES = 8
_SYLLABLES = tuple(f"{consonant}{vowel}" for consonant in "bcdfghjklmnprstvz" for vowel in "aeiou")


def documents(size_bytes: int, seed: int = 0) -> Iterator[str]:
    """Documents of 100 to 2,000 made-up words, as frequent as in a language (Zipf), in sentences and paragraphs."""
    draw = np.random.default_rng(seed)
    words = ["".join(draw.choice(_SYLLABLES, draw.integers(1, 5))) for _ in range(20_000)]
    made = 0
    while made < size_bytes:
        ranks = np.minimum(draw.zipf(1.3, draw.integers(100, 2_000)), len(words)) - 1
        sentences = [
            " ".join(words[rank] for rank in ranks[at : at + 14]).capitalize() for at in range(0, len(ranks), 14)
        ]
        text = "\n\n".join(". ".join(sentences[at : at + 6]) + "." for at in range(0, len(sentences), 6))
        made += len(text)
        yield text


def write_source(folder: Path, size_bytes: int) -> None:
    """The documents as JSON lines, dealt out to files."""
    folder.mkdir(parents=True)
    files = [(folder / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    for number, text in enumerate(documents(size_bytes)):
        files[number % FILES].write(json.dumps({"id": str(number), "text": text}) + "\n")
    for file in files:
        file.close()


def write_config(folder: Path, tokenizer: str, *, thoughts: bool = True) -> Path:
    """The config of both runs."""
    path = folder / "mill.yaml"
    config = from_mapping(
        {
            "source": {"path": str(folder / "source" / "*.jsonl"), "id_field": "id"},
            "output": str(folder / "one"),
            "tokenizer": tokenizer,
            "difficulty": {"scorer": "rehearsal", "segment_tokens": 512},
            "models": {"pretend": {"engine": "rehearsal", "name": "pretend"}} if thoughts else {},
            "budget": NOTHING_THINKS
            if not thoughts
            else {
                "policy": "adaptive",
                "thinking_tokens_per_source_token": 0.5,
                "tiers": [
                    {"name": "skip"},
                    {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 256, "samples": 1},
                    {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 2048, "samples": 2},
                ],
            },
            "ledger": {"path": str(folder / "ledger")},
            "pack": {"sequence_length": 4096, "num_shards": 4},
        }
    )
    path.write_text(dump(config), encoding="utf-8")
    return path


def thoughtmill(*arguments: object) -> float:
    """Seconds that a command takes.

    Raises:
        CalledProcessError: it failed.
    """
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipelines.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def digests(output: Path) -> dict[str, str]:
    """The sha256 of every file that the stages of an output have written, by stage and name."""
    found = {}
    for stage in manifest.STAGES:
        made = manifest.require(str(output), stage)
        for family in made.files:
            for url in manifest.file_urls(str(output), made, family):
                path = Path(url)
                found[f"{stage}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def speedups(folder: Path, megabytes: float, tokenizer: str, part: str) -> dict[str, float | bool]:
    """Of each stage, one process over two; and whether they wrote the same."""
    write_source(folder / "source", int(megabytes * 1e6))
    config = write_config(folder, tokenizer, thoughts=part == "thoughts")
    outputs = {1: folder / "one", 2: folder / "two"}
    for workers, output in outputs.items():
        thoughtmill("run", config, "--set", f"output={output}", "--workers", workers, "--quiet")
    elapsed = {
        workers: {stage: manifest.require(str(output), stage).elapsed_s for stage in STAGES[part]}
        for workers, output in outputs.items()
    }
    table = Table("stage", "one process, s", "two, s", title=f"{megabytes:g} MB, {part}")
    for stage in STAGES[part]:
        table.add_row(stage, f"{elapsed[1][stage]:.1f}", f"{elapsed[2][stage]:.1f}")
    console.print(table)
    same = digests(outputs[1]) == digests(outputs[2])
    suffix = "_plain" if part == "plain" else ""
    speedup = {f"speedup_{stage}{suffix}": elapsed[1][stage] / elapsed[2][stage] for stage in STAGES[part]}
    return speedup | {f"same_bytes{suffix}": same}


def rehearsal_over_before(folder: Path, tokenizer: str, turns: int) -> float:
    """The example with its sample as it comes, over one process."""
    folder.mkdir()
    config = folder / "mill.yaml"
    sample = folder / "sample.jsonl"
    thoughtmill("init", config, "--example", "rehearsal", "--sample", "--source", sample, "--tokenizer", tokenizer)
    took: dict[str, list[float]] = {"auto": [], "1": []}
    for turn in range(turns):
        for workers, seconds in took.items():
            output = folder / f"{workers}-{turn}"
            seconds.append(thoughtmill("run", config, "--set", f"output={output}", "--workers", workers, "--quiet"))
    console.print(f"rehearsal example: {min(took['auto']):.1f} s by default, {min(took['1']):.1f} s with one process")
    return min(took["auto"]) / min(took["1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=250.0, help="text of the made-up documents")
    parser.add_argument("--plain-megabytes", type=float, default=1000.0, help="the same, of those without thoughts")
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--turns", type=int, default=3, help="of the rehearsal example")
    parser.add_argument("--only", choices=PARTS, help="one part; all of them when absent")
    args = parser.parse_args()
    megabytes = {"thoughts": args.megabytes, "plain": args.plain_megabytes}
    figures: dict[str, float | bool] = {}
    for part in PARTS if args.only is None else (args.only,):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / part
            if part in megabytes:
                figures |= speedups(folder, megabytes[part], args.tokenizer, part)
            else:
                figures["rehearsal_over_before"] = rehearsal_over_before(folder, args.tokenizer, args.turns)
    conclude(console, "cores", figures, ("apache-beam", "tokenizers", "gigatoken", "pyarrow"))


if __name__ == "__main__":
    main()
