"""What the augment stage leaves for `status` when it begins: what is to be made, by what, at which price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from augment.requests.planner import TracePlanner
from difficulty.budget.allocation import Allocation
from pipelines.config import MillConfig
from pipelines.watch.files import absolute, ledger_beside


def planned_generations(config: MillConfig, allocation: Allocation) -> dict[str, float]:
    """Name of each tier that thinks → how many generations it is expected to ask for."""
    tiers = zip(allocation.tiers, config.budget.tiers, strict=True)
    return {tier.name: plan.segments * tier.samples for plan, tier in tiers if tier.model is not None}


def plan_of(
    config: MillConfig,
    allocation: Allocation,
    planner: TracePlanner,
    *,
    began_at: float,
    rehearsal: bool,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """What status needs to know of a run, as JSON values: what is to be made, by what, at which price.

    Args:
        beside: keys of the requests that its pilot made and it doesn't: they are in the same ledger.
    """
    generations = planned_generations(config, allocation)
    models = planner.describe()
    asked = {tier.name: tier for tier in config.budget.tiers}
    for name, model in planner.models.items():
        models[name] |= {
            "dollars_per_million_tokens": model.dollars_per_million_tokens,
            "tokens_per_gpu_second": model.tokens_per_gpu_second,
        }
    return {
        "ledger": absolute(config.ledger_url),
        "ledger_beside": ledger_beside(config.output, config.ledger_url),
        "began_at": began_at,
        "generations": sum(generations.values()),
        "planned_tokens": allocation.planned_tokens,
        "target": allocation.target_spend,
        "unit": allocation.unit,
        "tiers": {
            plan.name: {
                "model": asked[plan.name].model,
                "models": list(asked[plan.name].models),
                "generations": generations[plan.name],
                "planned_tokens": plan.tokens,
            }
            for plan in allocation.tiers
            if plan.name in generations
        },
        "models": models,
        "prompts": planner.prompt_versions(),
        "warnings": [*allocation.warnings, *planner.warnings()],
        "rehearsal": rehearsal,
        "beside": list(beside),
    }
