"""A uniform arm with as many thought tokens as the adaptive one."""

from __future__ import annotations

from difficulty.budget.histogram import DifficultyHistogram
from pipelines import yaml_config
from pipelines.arms.result import ArmResult
from pipelines.config import MillConfig
from pipelines.documents.reader import read_allocation
from pipelines.joints import allocation_of
from sharding.storage import manifest

MATCHED_WITHIN = 0.001
"""The thought tokens that uniform_matched is planned for are so near to adaptive's, as a share of these."""
_TRIALS = 60


def matched(arm: MillConfig, uniform: ArmResult, adaptive: ArmResult) -> MillConfig:
    """The config of a uniform arm whose budget is such that its corpus has as many thought tokens as the adaptive one.

    The uniform arm tells what a segment of each tier brings in thought tokens, whatever its difficulty; how many get
    each tier follows from the histogram of difficulty and the budget, which is tried.

    Args:
        arm: the config of a uniform arm.
        uniform, adaptive: what these arms came to.

    Raises:
        RequestError: no budget comes to as many.
    """
    selected, scored = (manifest.require(uniform.output, stage) for stage in ("select", "score"))
    plan = read_allocation(uniform.output, scored)
    assert plan is not None  # its augment stage has made it
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    wanted = adaptive.thought_tokens + adaptive.thought_tokens_left_out
    kept = {row["tier"]: row["kept_thought_tokens"] for row in selected.facts["account"]}
    # In the tokens of the corpus; the account counts those of the generator.
    spelled = (uniform.thought_tokens + uniform.thought_tokens_left_out) / max(1, sum(kept.values()))
    brings = {tier.name: spelled * kept.get(tier.name, 0) / tier.segments for tier in plan.tiers if tier.segments}
    number = arm.budget.key.removeprefix("budget.")
    budget = float(getattr(arm.budget, number))
    for _ in range(_TRIALS):
        tried = _with_budget(arm, number, budget)
        tiers = allocation_of(tried, histogram, scored.counts["source_tokens"], scored.counts["documents"]).tiers
        found = sum(tier.segments * brings.get(tier.name, 0.0) for tier in tiers)
        if not found or abs(found - wanted) <= MATCHED_WITHIN * wanted:
            break
        budget *= min(2.0, max(0.5, wanted / found))
    return tried


def _with_budget(arm: MillConfig, number: str, budget: float) -> MillConfig:
    tree = yaml_config.to_mapping(arm)
    tree["budget"][number] = max(1, round(budget)) if number == "thinking_tokens" else budget
    return yaml_config.from_mapping(tree, "arm uniform_matched")
