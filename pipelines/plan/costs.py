"""What tiers and contractions cost, in the JSON of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pipelines.config import MillConfig
from pipelines.plan.cautions import share
from pipelines.plan.chance import estimate
from pipelines.plan.forecast import Forecast, TierForecast
from pipelines.plan.measured import Pilot
from pipelines.plan.tier_prices import price_of, rate_of, without_price, without_rate


def tier_costs(config: MillConfig, tier: TierForecast, pilot: Pilot | None, *, resampled: bool) -> dict[str, Any]:
    """A tier in the plan's JSON; its `_gpu_hours` and `_dollars` are arrays to be added up, and are no part of it.

    Where steps of its recipe have models of their own, all its tokens are counted as the dearest's, as the budget does.
    """
    interval = partial(estimate, resampled=resampled)
    models = next(one.models for one in config.budget.tiers if one.name == tier.name)
    rate, rate_from = rate_of(config, models, pilot)
    price = price_of(config, models)
    gpu_hours = tier.tokens_out / rate / 3600 if rate else None
    dollars = tier.tokens_out * price / 1e6 if price else None
    if not models:
        gpu_hours = dollars = np.zeros_like(tier.tokens_out)
    return {
        "name": tier.name,
        "model": tier.model,
        "segments": interval(tier.segments),
        "generations": interval(tier.generations),
        "tokens_in": interval(tier.tokens_in),
        "tokens_out": interval(tier.tokens_out),
        "gpu_hours": None if gpu_hours is None else interval(gpu_hours),
        "dollars": None if dollars is None else interval(dollars),
        "length_from": tier.basis,
        "rate_from": rate_from,
        "unpriced": {"gpu_hours": without_rate(config, models, pilot), "dollars": without_price(config, models)},
        "cut_share": share(tier, tier.cut),
        "accepted_share": share(tier, tier.accepted),
        "kept_share": share(tier, tier.kept if tier.basis == "pilot" else None),
        "gain_nats": None if tier.gain_nats is None else estimate(tier.gain_nats),
        "_gpu_hours": gpu_hours,
        "_dollars": dollars,
    }


def contraction_costs(
    config: MillConfig, made: Forecast, pilot: Pilot | None, *, resampled: bool
) -> dict[str, Any] | None:
    """What contractions take at most, as `tier_costs`; None where no tier shows any."""
    name = config.budget.contraction_model
    if name is None:
        return None
    interval = partial(estimate, resampled=resampled)
    rate, _ = rate_of(config, [name], pilot)
    price = price_of(config, [name])
    return {
        "model": name,
        "calls": interval(made.contractions),
        "tokens_in": interval(made.contraction_prompt_tokens),
        "tokens_out": interval(made.contraction_tokens),
        "length_from": "max_tokens",
        "_gpu_hours": made.contraction_tokens / rate / 3600 if rate else None,
        "_dollars": made.contraction_tokens * price / 1e6 if price else None,
    }


def total(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The sum, or None where a part is not known or there is none."""
    known = [part for part in parts if part is not None]
    return np.sum(known, axis=0) if known and len(known) == len(parts) else None
