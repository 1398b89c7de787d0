"""What the policy learned goes by: the model of gain that a pilot left, and what the pilot measured of costs.

Read by the augment stage and by the plan, which make the same allocation of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from difficulty.budget.policies.learned import costs_of
from difficulty.budget.tiers import TierConfig
from pipelines.config import MillConfig
from pipelines.joints import TierGains, goes_by_gain, prices
from pipelines.plan.learned import Learned, TierCost, read_learned
from sharding import hashing
from sharding.storage.manifest import Manifest

GAIN_COLUMNS = ("entropy_nats", "source")
"""What the model of gain looks at beside what a request is made from."""


@dataclass(frozen=True, kw_only=True)
class ExpectedGain:
    """What a run with the policy learned goes by.

    Attributes:
        config: the run's, its tiers as long as the pilot found them, where the config doesn't say how long they are.
        gains: what each tier is expected to gain.
        costs: of a segment at each tier, in the budget's unit.
    """

    config: MillConfig
    gains: TierGains
    costs: tuple[float, ...]

    @property
    def digest(self) -> str:
        """Of all that decides the tier of a segment but the budget."""
        return hashing.fingerprint([self.gains.model.digest, json.dumps(self.costs)])


def expected_gain(config: MillConfig, scored: Manifest) -> ExpectedGain | None:
    """What the run goes by; None where its policy is another one.

    Raises:
        RequestError: no pilot has explored the tiers of this config on these scores, or a price is missing.
        MillError: what it left can't be read.
    """
    if not goes_by_gain(config):
        return None
    learned = read_learned(config, scored)
    gains = TierGains.of(learned.model, config.budget.tiers, _cautions(learned))
    tiers = tuple(_as_measured(tier, learned.costs) for tier in config.budget.tiers)
    measured = dataclasses.replace(config, budget=dataclasses.replace(config.budget, tiers=tiers))
    return ExpectedGain(config=measured, gains=gains, costs=costs_of(measured.budget, prices(measured)))


def _cautions(learned: Learned) -> list[str]:
    """Where the pilot's gains can't be told from none, what is bought rests on the prior, and that is said."""
    if learned.report.get("promises", True):
        return []
    return [
        "the pilot doesn't show that thinking gains anything here (`thoughtmill plan` has its report): what is bought "
        f"rests to {1 - learned.report['weight']:.0%} on the prior, that thinking resolves a share of the difficulty; "
        "a larger pilot tells, or don't buy"
    ]


def _as_measured(tier: TierConfig, costs: Mapping[str, TierCost]) -> TierConfig:
    if tier.skips or tier.expected_tokens is not None or tier.name not in costs:
        return tier
    tokens = min(max(costs[tier.name].thought_tokens / tier.samples, tier.min_tokens, 1.0), float(tier.max_tokens or 1))
    return dataclasses.replace(tier, expected_tokens=tokens)
