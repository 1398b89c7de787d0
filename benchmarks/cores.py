"""Two cores over one, stage by stage, and what the default costs a run that is too small for them.

    python -m benchmarks.cores
    python -m benchmarks.cores --megabytes 4 --turns 1   # to try it out

Made-up documents are milled with one worker process and with two, by the command line, each run in a process of its
own: rehearsal scorer, rehearsal traces, all gates, four shards. The second run finds its generations in the ledger of
the first, so that both select and pack the same; every file of the two has to have the same bytes. `speedup_STAGE` is
the time of a stage with one process over that with two, from the manifests: Beam's start and that of its workers is in
it. `rehearsal_over_before` is the example `rehearsal` with its sample, by default over `--workers 1`, in turns, the
shortest of each. The last line is one JSON object with the figures.
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

from benchmarks.machine import conclude
from pipelines.yaml_config import dump, from_mapping
from sharding.storage import manifest

console = Console()

STAGES = ("score", "select", "pack")
"""Those that are compared: the second run generates nothing."""

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


def write_config(folder: Path, tokenizer: str) -> Path:
    """The config of both runs."""
    path = folder / "mill.yaml"
    config = from_mapping(
        {
            "source": {"path": str(folder / "source" / "*.jsonl"), "id_field": "id"},
            "output": str(folder / "one"),
            "tokenizer": tokenizer,
            "difficulty": {"scorer": "rehearsal", "segment_tokens": 512},
            "models": {"pretend": {"engine": "rehearsal", "name": "pretend"}},
            "budget": {
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


def speedups(folder: Path, megabytes: float, tokenizer: str) -> dict[str, float | bool]:
    """Of each stage, one process over two; and whether they wrote the same."""
    write_source(folder / "source", int(megabytes * 1e6))
    config = write_config(folder, tokenizer)
    outputs = {1: folder / "one", 2: folder / "two"}
    for workers, output in outputs.items():
        thoughtmill("run", config, "--set", f"output={output}", "--workers", workers, "--quiet")
    elapsed = {
        workers: {stage: manifest.require(str(output), stage).elapsed_s for stage in STAGES}
        for workers, output in outputs.items()
    }
    for stage in STAGES:
        console.print(f"{stage}: {elapsed[1][stage]:.1f} s with one process, {elapsed[2][stage]:.1f} s with two")
    same = digests(outputs[1]) == digests(outputs[2])
    return {f"speedup_{stage}": elapsed[1][stage] / elapsed[2][stage] for stage in STAGES} | {"same_bytes": same}


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
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--turns", type=int, default=3, help="of the rehearsal example")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures: dict[str, float | bool] = dict(speedups(Path(temporary) / "cores", args.megabytes, args.tokenizer))
        figures["rehearsal_over_before"] = rehearsal_over_before(Path(temporary) / "small", args.tokenizer, args.turns)
    conclude(console, "cores", figures, ("apache-beam", "tokenizers", "gigatoken", "pyarrow"))


if __name__ == "__main__":
    main()
