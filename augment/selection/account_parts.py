"""Parts of the account that few runs have: steps of recipes, a judge's grades, traces that were cut. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from augment.selection.account_sums import add_to_sums, count_name, net_nats
from augment.selection.trimming import Trimmed
from augment.selection.valuing import ValuedSegment
from sharding.records.types import Candidate


def step_counts(candidates: Sequence[Candidate], valued: ValuedSegment) -> Counter[str]:
    """Calls, tokens and gains by step, of a segment whose traces a recipe made."""
    counts: Counter[str] = Counter()
    if not candidates or not valued.steps:
        return counts
    group = (candidates[0].tier, candidates[0].model, candidates[0].prompt)
    for call in valued.steps:
        counts[count_name(group, f"step {call.step}", "calls")] += 1
        counts[count_name(group, f"step {call.step}", "thought_tokens")] += call.thought_tokens
        counts[count_name(group, f"step {call.step}", "prompt_tokens")] += call.prompt_tokens
    for step, nats in valued.step_nats.items():
        add_to_sums(counts, group, f"step {step}", valued.document, nats)
    return counts


def judge_counts(candidates: Sequence[Candidate], valued: ValuedSegment) -> Counter[str]:
    """How a judge's grades order the candidates of a segment, against how their gains do."""
    counts: Counter[str] = Counter()
    pairs = [
        (valued.grades[candidate.key], net_nats(candidate))
        for candidate in candidates
        if candidate.key in valued.grades and candidate.gain_nats is not None
    ]
    if (found := concordance(pairs)) is not None:
        group = (candidates[0].tier, candidates[0].model, candidates[0].prompt)
        add_to_sums(counts, group, "judge_rank", valued.document, found)
    return counts


def order_counts(candidate: Candidate, compared: int, agreed: int) -> dict[str, int]:
    """How many pairs of a segment's traces a judge has read in both orders, and of how many it said the same.

    Args:
        candidate: one of them.
    """
    if not compared:
        return {}
    group = (candidate.tier, candidate.model, candidate.prompt)
    found = {"compared": compared, "agreed": agreed}
    return {count_name(group, "judge_orders", name): number for name, number in found.items()}


def concordance(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Goodman and Kruskal's gamma of (grade, gain): pairs of traces in one order less those in the other, of both.

    From -1 to 1, and 0 on average where grades know nothing of gains; None where no two traces differ in both.
    """
    signs = [
        float(np.sign((one[0] - other[0]) * (one[1] - other[1])))
        for place, one in enumerate(pairs)
        for other in pairs[:place]
    ]
    told = [sign for sign in signs if sign]
    return sum(told) / len(told) if told else None


def trim_counts(whole: Candidate, tokens_left: int, cut: Trimmed, document: str) -> dict[str, int]:
    """What a kept trace that was cut adds.

    Args:
        whole: as it was.
        tokens_left: training tokens of what is kept.
        document: see `AskedSegment`.
    """
    saved = len(whole.input_ids) - tokens_left
    group = (whole.tier, whole.model, whole.prompt)
    counts: Counter[str] = Counter({"trimmed": 1, "trimmed_tokens": saved})
    counts[count_name(group, "trim", "traces")] += 1
    counts[count_name(group, "trim", "tokens_saved")] += saved
    add_to_sums(counts, group, "trimmed", document, cut.change_nats)
    return dict(counts)


_STEP_ORDER = ("draft", "choice", "critique", "rewrite")


def step_order(step: str) -> tuple[int, int, str]:
    """As they are made: by round, within it those of the built-in recipes in their order, then others by name."""
    name, _, number = step.partition(" ")
    return int(number or 1), _STEP_ORDER.index(name) if name in _STEP_ORDER else len(_STEP_ORDER), name
