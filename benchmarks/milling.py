"""Raw text to shards, measured: ours against the bare tokenizer and datatrove; the shards; growth with the corpus.

    python -m benchmarks.milling
    python -m benchmarks.milling --megabytes 16 --rounds 1 --only speed,shards
    python -m benchmarks.milling --only everything
    python -m benchmarks.milling --beam-args=

The same documents (`benchmarks.milling_corpus`), in fresh processes that take turns: ours and datatrove with two worker
processes each (or ours with other options of Beam), the bare tokenizer with a thread per core. A speed is source tokens
per second of the median turn; the ratios per processor second hold on a busy machine too. The last line is one JSON
object with the figures of the parts that ran. `growth` is measured without thoughts, `everything` with all that
documents, requests and traces can wait for in a run (`benchmarks.milling_ours`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from benchmarks.milling_corpus import write_jsonl

PARTS = ("speed", "shards", "growth", "everything")
FIGURES = {
    "speed": (
        "ratio_to_bare_tokenizer",
        "ratio_to_datatrove",
        "ratio_to_bare_tokenizer_per_cpu_s",
        "ratio_to_datatrove_per_cpu_s",
        "ratio_to_bare_tokenizer_without_fast",
        "ratio_to_datatrove_without_fast",
    ),
    "shards": ("bytes_per_token", "read_mtokens_per_s", "padding_share", "documents_cut_needlessly"),
    "growth": ("rss_growth_10x", "time_growth_10x"),
    "everything": ("rss_growth_10x_everything", "runner_rss_growth_10x_everything", "time_growth_10x_everything"),
}
GROWTH = 10
WITHOUT_FAST = "ours, without the extra fast"
TWO_WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")

Turn = dict[str, Any]
Figures = dict[str, float | None]

console = Console()


def in_process(module: str, *arguments: str) -> Turn:
    """Run a side in a fresh process; its last line.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(source: Path, output: Path, tokenizer: str, shards: int, beam_args: Sequence[str], *flags: str) -> Turn:
    """Our turn."""
    arguments = [f"{source}/*.jsonl", str(output), "--tokenizer", tokenizer, "--shards", str(shards)]
    return in_process("milling_ours", *arguments, f"--beam-args={','.join(beam_args)}", *flags)


def median_rate(turns: Sequence[Turn], unit: str = "elapsed_s") -> float:
    """Tokens per second, or per processor second, of the median turn."""
    return statistics.median(turn["tokens"] / turn[unit] for turn in turns)


def compare(args: argparse.Namespace, source: Path, scratch: Path) -> tuple[Figures, Path]:
    """Ours, the bare tokenizer and datatrove by turns; and where our last turn's output is."""
    turns: dict[str, list[Turn]] = {"bare tokenizer": [], "ours": [], WITHOUT_FAST: [], "datatrove": []}
    for number in range(args.rounds):
        output = scratch / f"ours-{number}"
        folder = model_folder(args.tokenizer)
        turns["bare tokenizer"].append(peer("bare", source, scratch, folder))
        settings = (args.tokenizer, args.shards, args.beam_args)
        turns["ours"].append(ours(source, output, *settings))
        turns[WITHOUT_FAST].append(ours(source, scratch / f"exact-{number}", *settings, "--without-fast"))
        turns["datatrove"].append(peer("datatrove", source, scratch / f"datatrove-{number}", folder))
    counted = {name: {turn["tokens"] for turn in side} for name, side in turns.items()}
    if any(max(found) > 1.001 * min(counted["bare tokenizer"]) for found in counted.values()):
        raise AssertionError(f"the sides counted different tokens: {counted}")
    rates = {name: median_rate(side) for name, side in turns.items()}
    per_cpu_s = {name: median_rate(side, "cpu_s") for name, side in turns.items()}
    table = Table("", "Mtok/s", "Mtok per processor second", "ours is", title="Read, tokenize, pack, write")
    for name in turns:
        relative = "" if name == "ours" else f"{rates['ours'] / rates[name]:.2f}x"
        table.add_row(name, f"{rates[name] / 1e6:.3f}", f"{per_cpu_s[name] / 1e6:.3f}", relative)
    console.print(table)
    console.print("Seconds of our stages, last turn:", turns["ours"][-1]["stages_s"])
    return {
        "ratio_to_bare_tokenizer": rates["ours"] / rates["bare tokenizer"],
        "ratio_to_datatrove": rates["ours"] / rates["datatrove"],
        "ratio_to_bare_tokenizer_per_cpu_s": per_cpu_s["ours"] / per_cpu_s["bare tokenizer"],
        "ratio_to_datatrove_per_cpu_s": per_cpu_s["ours"] / per_cpu_s["datatrove"],
        "ratio_to_bare_tokenizer_without_fast": rates[WITHOUT_FAST] / rates["bare tokenizer"],
        "ratio_to_datatrove_without_fast": rates[WITHOUT_FAST] / rates["datatrove"],
    }, output


def peer(side: str, source: Path, output: Path, tokenizer: Path) -> Turn:
    return in_process("milling_peers", side, str(source), str(output), "--tokenizer", str(tokenizer))


def model_folder(tokenizer: str) -> Path:
    """Where the tokenizer.json of a model is."""
    from sharding.models.store import resolve_model

    return Path(resolve_model(tokenizer))


def look_at_shards(output: Path, scratch: Path, rounds: int, mds_python: str | None) -> Figures:
    """Size, padding, cuts, and the speed of reading."""
    from benchmarks.milling_reading import reading_speeds, shard_figures

    speeds = reading_speeds(str(output), str(scratch), rounds, mds_python)
    figures: Figures = {**shard_figures(str(output)), "read_mtokens_per_s": speeds["ours"] / 1e6}
    table = Table("reader", "Mtok/s", title="Reading from the page cache, two threads")
    for name, rate in speeds.items():
        table.add_row(name, f"{rate / 1e6:.0f}")
    if "MDS" not in speeds:
        table.add_row("MDS", "not read: --mds-python names an interpreter with mosaicml-streaming")
    console.print(table)
    return figures


def measure_growth(args: argparse.Namespace, scratch: Path, megabytes: int, *flags: str) -> dict[str, float]:
    """Ten times the documents, in ten times the shards: what the largest process takes, and how long it all takes.

    One turn each, of more text than the buffers of Beam's workers hold, some 100 MB a kind: what grows until they are
    full says nothing of a larger corpus.

    Args:
        scratch: a folder of its own.
        megabytes: of text, before it is ten times as much.
        flags: of `benchmarks.milling_ours`.

    Returns:
        Ten times over once, of each measure of a turn.
    """
    small, large = scratch / "once", scratch / "ten-times"
    paths, _, _ = write_jsonl(small, megabytes * 10**6, args.shards)
    repeat(paths, large, GROWTH)
    turns = {
        name: ours(source, scratch / f"out-{name}", args.tokenizer, factor * args.shards, TWO_WORKERS, *flags)
        for name, source, factor in (("1x", small, 1), ("10x", large, GROWTH))
    }
    title = " ".join(["Growth", *flags])
    table = Table("", "tokens", "seconds", "largest worker, MB", "Beam's local runner, MB", title=title)
    for name, turn in turns.items():
        table.add_row(
            name,
            f"{turn['tokens']:,}",
            f"{turn['elapsed_s']:.1f}",
            f"{turn['worker_peak_bytes'] / 1e6:.0f}",
            f"{turn['runner_peak_bytes'] / 1e6:.0f}",
        )
    console.print(table)
    measures = ("worker_peak_bytes", "runner_peak_bytes", "elapsed_s")
    return {measure: turns["10x"][measure] / turns["1x"][measure] for measure in measures}


def repeat(paths: Sequence[Path], folder: Path, times: int) -> None:
    """The same documents so many times over, each time under other ids and with another first line."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        documents = [json.loads(line) for line in path.open(encoding="utf-8")]
        for copy in range(times):
            with (folder / f"{path.stem}-{copy}.jsonl").open("w", encoding="utf-8") as file:
                for document in documents:
                    copied = {"id": f"{copy}/{document['id']}", "text": f"{copy}\n{document['text']}"}
                    file.write(json.dumps(copied, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", help="a folder, or a fetched model")
    parser.add_argument("--megabytes", type=int, default=128, help="of text")
    parser.add_argument("--growth-megabytes", type=int, default=96, help="of text, before it is ten times as much")
    parser.add_argument("--everything-megabytes", type=int, default=24, help="the same, of the part everything")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts of {', '.join(PARTS)}")
    parser.add_argument("--beam-args", default=",".join(TWO_WORKERS), help="of our speed turns, separated by commas")
    parser.add_argument("--mds-python", help="an interpreter with mosaicml-streaming, to read MDS as well")
    args = parser.parse_args()
    args.beam_args = [word for word in args.beam_args.split(",") if word]
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")

    figures: Figures = {name: None for part in parts for name in FIGURES[part]}
    with tempfile.TemporaryDirectory(prefix="milling-") as folder:
        scratch = Path(folder)
        if {"speed", "shards"} & set(parts):
            source = scratch / "source"
            _, count, text_bytes = write_jsonl(source, args.megabytes * 10**6, args.shards)
            console.print(f"{count:,} documents, {text_bytes / 1e6:.1f} MB of text")
            if "speed" in parts:
                found, output = compare(args, source, scratch)
                figures |= found
            else:
                output = scratch / "ours"
                ours(source, output, args.tokenizer, args.shards, args.beam_args)
            if "shards" in parts:
                figures |= look_at_shards(output, scratch, args.rounds, args.mds_python)
        if "growth" in parts:
            grown = measure_growth(args, scratch / "growth", args.growth_megabytes)
            figures |= {"rss_growth_10x": grown["worker_peak_bytes"], "time_growth_10x": grown["elapsed_s"]}
        if "everything" in parts:
            grown = measure_growth(args, scratch / "everything", args.everything_megabytes, "--everything")
            measured = (grown["worker_peak_bytes"], grown["runner_peak_bytes"], grown["elapsed_s"])
            figures |= dict(zip(FIGURES["everything"], measured, strict=True))
    packages = ("apache-beam", "tokenizers", "gigatoken", "pyarrow", "datatrove", "mosaicml-streaming")
    conclude(console, "milling", figures, packages)


if __name__ == "__main__":
    main()
