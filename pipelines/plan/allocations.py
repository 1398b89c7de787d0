"""How a plan divides the budget: as the run will where the corpus is scored, and else as its evidence suggests."""

from __future__ import annotations

import numpy as np

from difficulty.budget.allocation import Allocation
from difficulty.budget.steps import GainSteps
from pipelines.config import MillConfig
from pipelines.joints import TierGains, allocation_of, plan_budget
from pipelines.plan.corpus import Corpus, Evidence
from sharding.errors import RequestError


def plans_of(
    config: MillConfig,
    evidence: Evidence,
    draws: np.ndarray,
    by_gain: tuple[TierGains, GainSteps] | None = None,
) -> tuple[list[Corpus], list[Allocation], int]:
    """The corpus and the plan of each draw of the sample, the first as it is; in how many the budget can't be met.

    Raises:
        RequestError: it can't be met in the first.
    """
    corpora, plans = [evidence.corpus(draws[0])], [allocation_for(config, evidence, by_gain)]
    infeasible = 0
    for multiplicity in draws[1:]:
        corpus, plan = corpora[0], plans[0]
        if evidence.scored is None:
            try:
                drawn = evidence.corpus(multiplicity)
                corpus, plan = drawn, _allocate(config, drawn)
            except RequestError:
                infeasible += 1
        corpora.append(corpus)
        plans.append(plan)
    return corpora, plans, infeasible


def allocation_for(
    config: MillConfig, evidence: Evidence, by_gain: tuple[TierGains, GainSteps] | None = None
) -> Allocation:
    """The plan for the corpus as the evidence has it.

    Raises:
        RequestError: the budget can't be met.
    """
    if evidence.scored is not None:
        return plan_budget(config, evidence.scored, by_gain)
    corpus = evidence.corpus(np.ones(len(evidence.sample)))
    try:
        return _allocate(config, corpus)
    except RequestError as error:
        raise RequestError(f"{error} (as estimated from {len(evidence.sample)} documents)") from error


def _allocate(config: MillConfig, corpus: Corpus) -> Allocation:
    return allocation_of(config, corpus.histogram, round(corpus.source_tokens), corpus.documents)
