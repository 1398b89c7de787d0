"""What the miniature shows, from its finished runs.

    make evidence                                    # or evidence-full, first
    python -m benchmarks.evidence
    python -m benchmarks.evidence --output out/miniature/mill --picture docs/evidence.png

`A_over_B`: how many times the training tokens of arm B arm A takes to the target, with its 95% interval over seeds.
Where a student of A never gets there it is a lower bound, where one of B doesn't an upper one, and where both happen
there is none; `..._bound` says which. `surprisal` is the arm adaptive, whose budget goes by surprise, and is held
against the arm learned where there is one; `dose_2` is adaptive with twice the budget. `gain_influence_spearman`:
whether a trace's gain foretells what a step of training on it does. `final_...` are the mean scores of each arm at the
end, `noise_over_...` is of the arm whose thoughts are all about numbers. What was asked for before anything was run, in
`ASKED_FOR`, is told with what became of it. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from pipelines.ablation import result
from pipelines.ablation.result import Ablation
from pipelines.ablation.verdict import find
from pipelines.miniature.run import NOISE, OUTPUT
from sharding.errors import RequestError

RATIOS = {
    "raw_over_learned": ("raw", "learned"),
    "shuffled_over_learned": ("shuffled", "learned"),
    "raw_over_adaptive": ("raw", "adaptive"),
    "shuffled_over_adaptive": ("shuffled", "adaptive"),
    "noise_over_adaptive": (NOISE, "adaptive"),
    "uniform_over_adaptive": ("uniform", "adaptive"),
    "uniform_over_learned": ("uniform", "learned"),
    "surprisal_over_learned": ("adaptive", "learned"),
    "noise_over_learned": (NOISE, "learned"),
    "raw_over_dose_2": ("raw", "dose_2"),
    "shuffled_over_dose_2": ("shuffled", "dose_2"),
}
"""Figure → the arm whose tokens are counted in those of the other."""


@dataclass(frozen=True)
class Limit:
    """What a figure was asked to be, before anything was run.

    Attributes:
        least: it is this much at least.
        above: so is the low end of its interval above this; None: that isn't asked for.
    """

    least: float
    above: float | None = None


ASKED_FOR = {
    "raw_over_adaptive": Limit(3),
    "uniform_over_learned": Limit(1.5, above=1),
    "surprisal_over_learned": Limit(1.5, above=1),
    "shuffled_over_adaptive": Limit(3),
    "dose_monotone": Limit(1),
    "gain_influence_spearman": Limit(0, above=0),
}
"""Figure → its limit."""


def figures_of(made: Ablation) -> dict[str, Any]:
    """The figures, None where the runs don't say; the ends of an interval beside each."""
    figures: dict[str, Any] = {"seeds": len(made.seeds), "parameters": made.parameters}
    for name, (other, arm) in RATIOS.items():
        found = find(made.verdict.ratios, arm, other)
        figures[name] = found and found.ratio
        figures[f"{name}_bound"] = found and found.bound
        figures[f"{name}_low"], figures[f"{name}_high"] = (found.low, found.high) if found else (None, None)
    figures["dose_monotone"] = made.dose and made.dose.monotone
    figures["dose_enough"] = made.dose and made.dose.enough
    influence = made.influence
    figures["gain_influence_spearman"] = influence and influence.spearman
    figures["gain_influence_low"] = influence and influence.low
    figures["gain_influence_high"] = influence and influence.high
    for arm, scores in last_scores(made).items():
        figures |= {f"final_{arm}_{metric.rpartition('.')[2]}": score for metric, score in scores.items()}
    return figures


def became(name: str, figures: Mapping[str, Any]) -> str:
    """What became of a figure that was asked for: "reached", "not reached", or that it can't be told.

    Args:
        name: of `ASKED_FOR`.
        figures: of `figures_of`.
    """
    limit, found, bound = ASKED_FOR[name], figures[name], figures.get(f"{name}_bound")
    if found is None or bound == ("at most" if found >= limit.least else "at least"):
        return "can't be told"
    low = figures.get(f"{name.removesuffix('_spearman')}_low")
    is_sure = limit.above is None or (low is not None and low > limit.above)
    return "reached" if found >= limit.least and is_sure else "not reached"


def last_scores(made: Ablation) -> dict[str, dict[str, float]]:
    """Of each arm, the mean over seeds of every score at the end."""
    found: dict[str, dict[str, list[float]]] = {}
    for curve in made.curves:
        of_arm = found.setdefault(curve.arm, {})
        for metric, score in curve.points[-1].scores.items():
            of_arm.setdefault(metric, []).append(score)
    return {
        arm: {metric: sum(scores) / len(scores) for metric, scores in of_arm.items()} for arm, of_arm in found.items()
    }


def render(made: Ablation) -> Table:
    """Every arm with the tokens that each seed took, and its scores at the end."""
    scores = last_scores(made)
    metrics = list(next(iter(scores.values())))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("arm", "tokens to the target, seed by seed", *(name.rpartition(".")[2] for name in metrics)):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in made.verdict.reached:
        tokens = ", ".join("never" if found is None else f"{found / 1e6:.2f} M" for found in arm.tokens.values())
        table.add_row(arm.arm, tokens, *(f"{scores[arm.arm][metric]:.2f}" for metric in metrics))
    return table


def take_picture(output: str, file: Path) -> None:
    """The learning curves and the ratios of the report, in headless Chromium."""
    from benchmarks.browser import Browser
    from benchmarks.figure_report import WIDTH, save
    from pipelines import report

    with Browser() as browser:
        page = browser.open(Path(report.write(output)).absolute().as_uri(), width=WIDTH, height=900)
        edge = "document.querySelector('#{}').getBoundingClientRect().{} + scrollY"
        top, bottom = (page.evaluate(edge.format(*at)) for at in (("curves", "top"), ("ratios", "bottom")))
        save(page.screenshot(clip=(0, top, WIDTH, bottom - top + 16)), str(file.parent), file.name)


def main() -> None:
    """Read the runs and say what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=f"{OUTPUT}/mill", help="where the ablation is")
    parser.add_argument("--picture", metavar="FILE", help="take one of the report's curves and ratios as well")
    asked = parser.parse_args()
    output = asked.output
    made = result.read(output)
    if made is None:
        raise RequestError(f"{output} holds no finished ablation: run `make evidence` first")
    console = Console()
    console.print(f"{made.model}; {made.parameters:,} parameters; target {made.verdict.metric}")
    console.print(render(made))
    figures = figures_of(made)
    for name, limit in ASKED_FOR.items():
        interval = "" if limit.above is None else f", its interval above {limit.above:g}"
        console.print(f"{name}, asked to be at least {limit.least:g}{interval}: {became(name, figures)}")
    if asked.picture is not None:
        take_picture(output, Path(asked.picture))
    conclude(console, "evidence", figures, ("torch", "transformers", "tokenizers"))


if __name__ == "__main__":
    main()
