"""An ablation for a terminal: what students were trained on, tokens to the target, ratios."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from pipelines.ablation.result import Ablation
from pipelines.ablation.verdict import Reached, in_words
from pipelines.terminal import counted, number


def render(found: Ablation) -> list[Table | Text]:
    """The tables, from top to bottom."""
    first, *others = map(Text, sentences(found))
    return [first, _table(*reached_rows(found)), _table(*ratio_rows(found)), *others]


def sentences(found: Ablation) -> list[str]:
    """What tables don't say."""
    seeds = len(found.seeds)
    said = [
        f"Student: {found.model}; {counted(found.parameters, 'parameter')}, {counted(seeds, 'seed')}. "
        f"Target: {found.verdict.metric} {target_in_words(found)}."
    ]
    bounds = [one.bound for one in found.verdict.ratios]
    if untold := bounds.count("unknown"):
        said.append(
            f"{untold} of {counted(len(bounds), 'ratio')} between arms can't be told and are left out, since too few "
            "students reached the target."
        )
    if found.dose is not None:
        dose = found.dose
        end = (
            "beyond the largest dose" if dose.enough is None else f"at {dose.enough:.3g} thought tokens a source token"
        )
        low, high = (f"{end:.3g}" if end is not None else "the largest dose" for end in (dose.low, dose.high))
        interval = f" (95% interval {low} to {high})" if seeds > 1 else " (one seed: no interval)"
        rises = "No larger dose is worse than a smaller one" if dose.monotone else "Some larger dose is worse"
        said.append(f"{rises}; more no longer pays {end}{interval}.")
    if found.influence is not None:
        one = found.influence
        interval = "" if one.low is None else f" (95% interval {one.low:+.2f} to {one.high:+.2f})"
        said.append(
            f"Influence check, {counted(one.traces, 'trace')} of arm {one.arm}: the rank correlation of a trace's gain "
            f"with what training on it does is {one.spearman:+.2f}{interval}; by chance {one.null[0]:+.2f} to "
            f"{one.null[1]:+.2f}."
        )
    return said


def target_in_words(found: Ablation) -> str:
    """What is to be reached."""
    targets = list(found.verdict.targets.values())
    if len(set(targets)) == 1 and len(found.seeds) > 1:
        return f"{targets[0]:.4g}"
    return f"of {found.baseline} at its end, seed by seed ({', '.join(f'{target:.4g}' for target in targets)})"


def reached_rows(found: Ablation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: what each arm was, and how many tokens its students took."""
    trained = {arm.arm: arm for arm in found.arms}
    header = (
        "arm",
        "training tokens",
        "epochs",
        "thought share",
        "tokens to target",
        "seed by seed",
        "score at the end",
    )
    rows: list[tuple[str, ...]] = []
    for one in found.verdict.reached:
        arm = trained[one.arm]
        share = arm.thought_tokens / max(1, arm.thought_tokens + arm.source_tokens)
        last = sum(one.last.values()) / len(one.last)
        rows.append(
            (
                one.arm, f"{arm.tokens:,}", f"{arm.epochs:.2f}", f"{share:.1%}", _mean(one), _each(one),
                f"{last:.4g}",
            )
        )  # fmt: skip
    return header, rows


def ratio_rows(found: Ablation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: how many times fewer tokens one arm takes than another."""
    header = ("fewer tokens", "than", "times (95% interval over seeds)")
    return header, [(one.arm, one.other, in_words(one)) for one in found.verdict.ratios if one.bound != "unknown"]


def _mean(one: Reached) -> str:
    reached = [tokens for tokens in one.tokens.values() if tokens is not None]
    if one.mean_tokens is not None:
        return f"{one.mean_tokens:,.0f}"
    return f"not reached by {len(one.tokens) - len(reached)} of {len(one.tokens)}"


def _each(one: Reached) -> str:
    each = ["never" if tokens is None else number(tokens) for tokens in one.tokens.values()]
    return each[0] if set(each) == {"never"} else ", ".join(each)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        table.add_column(
            name, style="bold" if place == 0 else "", justify="left" if place == 0 else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table
