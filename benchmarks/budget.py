"""How well a plan meets its budget, and what planning costs, over 10 to 1,000,000 segments of heavy-tailed difficulty.

    python -m benchmarks.budget

"planned" is the plan's expected spend against the budget; "came to" is the spend of the tiers that the segments then
got, against the budget: the worst over seeds, distributions of difficulty and policies. With a handful of segments one
long thought is a large part of the budget, so only the planned spend can meet it; the table shows where the other
follows. The last line is one JSON object with the figures.
"""

import pickle
import time
import tracemalloc

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from difficulty.budget.allocate import allocate
from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.tiers import BudgetConfig, TierConfig

SIZES = (10, 30, 100, 1_000, 10_000, 100_000, 1_000_000)
SEEDS = {1_000_000: 1, 100_000: 2}  # fewer where a seed takes seconds
DEFAULT_SEEDS = 10
SEGMENT_TOKENS = 256
THINKING_TOKENS_PER_SOURCE_TOKEN = 2.0
FOLLOWS_FROM = 1_000  # segments from which what a plan comes to is counted as well

TIERS = (
    TierConfig(name="skip"),
    TierConfig(name="brief", model="small", prompt="brief", max_tokens=256),
    TierConfig(name="deep", model="large", prompt="feynman", max_tokens=4096, samples=4),
)


def difficulties(kind: str, num_segments: int, seed: int) -> np.ndarray:
    """(num_segments,) float64 nats."""
    rng = np.random.default_rng([seed, num_segments])
    if kind == "lognormal":
        return rng.lognormal(4.0, 1.2, num_segments)
    return 10 * (1 + rng.pareto(1.3, num_segments))


def plan(histogram: DifficultyHistogram, policy: str, num_segments: int) -> Allocation:
    """The plan of the benchmark's budget."""
    config = BudgetConfig(
        policy=policy,  # type: ignore[arg-type]
        thinking_tokens_per_source_token=THINKING_TOKENS_PER_SOURCE_TOKEN,
        tiers=TIERS,
    )
    return allocate(histogram, config, source_tokens=num_segments * SEGMENT_TOKENS, prices={})


def spend_errors(num_segments: int) -> tuple[float, float]:
    """Worst relative error of the planned spend, and of what it came to."""
    costs = np.array([tier.tokens_per_segment for tier in TIERS])
    ids = [f"doc{i // 4}#{i % 4}" for i in range(num_segments)]
    worst_planned = worst_came_to = 0.0
    for seed in range(SEEDS.get(num_segments, DEFAULT_SEEDS)):
        for kind in ("lognormal", "pareto"):
            difficulty_nats = difficulties(kind, num_segments, seed)
            histogram = DifficultyHistogram()
            histogram.add_many(ids, difficulty_nats)
            for policy in ("adaptive", "uniform"):
                allocation = plan(histogram, policy, num_segments)
                came_to = float(costs[allocation.tiers_of(ids, difficulty_nats)].sum())
                worst_planned = max(worst_planned, abs(allocation.planned_spend / allocation.target_spend - 1))
                worst_came_to = max(worst_came_to, abs(came_to / allocation.target_spend - 1))
    return worst_planned, worst_came_to


def costs_of_planning(num_segments: int) -> dict[str, float]:
    """Seconds of each step at this size, the plan's peak of Python memory, and the bytes of the histogram."""
    ids = [f"doc{i // 4}#{i % 4}" for i in range(num_segments)]
    difficulty_nats = difficulties("lognormal", num_segments, seed=0)
    histogram = DifficultyHistogram()
    started = time.perf_counter()
    histogram.add_many(ids, difficulty_nats)
    counted = time.perf_counter()
    allocation = plan(histogram, "adaptive", num_segments)
    planned = time.perf_counter()
    allocation.tiers_of(ids, difficulty_nats)
    assigned = time.perf_counter()
    tracemalloc.start()
    plan(histogram, "adaptive", num_segments)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    resident_bytes, _ = tracemalloc.get_traced_memory()
    again = DifficultyHistogram()
    again.add_many(ids, difficulty_nats)
    again_allocation = plan(again, "adaptive", num_segments)
    again_allocation.tiers_of(ids, difficulty_nats)
    _, whole_peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "count_s": counted - started,
        "plan_s": planned - counted,
        "assign_s": assigned - planned,
        "plan_peak_bytes": peak_bytes,
        "whole_peak_bytes": whole_peak_bytes - resident_bytes,
        "histogram_bytes": len(pickle.dumps(histogram)),
    }


def main() -> None:
    console = Console()
    table = Table("segments", "planned: worst error", "came to: worst error", title="Spend against budget")
    errors = {}
    for num_segments in SIZES:
        errors[num_segments] = spend_errors(num_segments)
        table.add_row(f"{num_segments:,}", *(f"{error:.3%}" for error in errors[num_segments]))
    console.print(table)

    spent = costs_of_planning(SIZES[-1])
    table = Table("step", "seconds", "peak MB", title=f"Planning for {SIZES[-1]:,} segments")
    table.add_row("count into the histogram", f"{spent['count_s']:.3f}", "")
    table.add_row("plan", f"{spent['plan_s']:.4f}", f"{spent['plan_peak_bytes'] / 1e6:.2f}")
    table.add_row("look up every tier", f"{spent['assign_s']:.3f}", "")
    table.add_row("all", "", f"{spent['whole_peak_bytes'] / 1e6:.1f}")
    console.print(table)
    console.print(f"The histogram travels as {spent['histogram_bytes']:,} bytes.")

    figures = {
        "worst_spend_error": max(planned for planned, _ in errors.values()),
        "worst_realised_error_from_1e3": max(e for n, (_, e) in errors.items() if n >= FOLLOWS_FROM),
        "seconds_at_1e6": spent["count_s"] + spent["plan_s"] + spent["assign_s"],
        "plan_seconds_at_1e6": spent["plan_s"],
        "peak_megabytes_at_1e6": spent["whole_peak_bytes"] / 1e6,
        "histogram_bytes_at_1e6": spent["histogram_bytes"],
    }
    conclude(console, "budget", figures, ("numpy",))


if __name__ == "__main__":
    main()
