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


def tier_costs(config: MillConfig, tier: TierForecast, pilot: Pilot | None, *, resampled: bool) -> dict[str, Any]:
    """A tier in the plan's JSON; its `_gpu_hours` and `_dollars` are arrays to be added up, and are no part of it."""
    interval = partial(estimate, resampled=resampled)
    model = config.models[tier.model] if tier.model is not None else None
    rate, rate_from = _rate(config, tier.model, pilot)
    price = model.dollars_per_million_tokens if model else None
    gpu_hours = tier.tokens_out / rate / 3600 if rate else None
    dollars = tier.tokens_out * price / 1e6 if price else None
    if model is None:
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
        "cut_share": share(tier, tier.cut),
        "accepted_share": share(tier, tier.accepted),
        "kept_share": share(tier, tier.kept if tier.basis == "pilot" else None),
        "gain_nats": None if tier.gain_nats is None else estimate(tier.gain_nats),
        "_gpu_hours": gpu_hours,
        "_dollars": dollars,
    }


def _rate(config: MillConfig, name: str | None, pilot: Pilot | None) -> tuple[float | None, str | None]:
    """Tokens per second and accelerator of a model, and where that is from."""
    if name is None:
        return None, None
    model = config.models[name]
    if model.tokens_per_gpu_second:
        return model.tokens_per_gpu_second, "stated"
    measured = pilot.tokens_per_second.get(name) if pilot is not None and model.engine != "endpoint" else None
    return (measured, "pilot") if measured else (None, None)


def contraction_costs(
    config: MillConfig, made: Forecast, pilot: Pilot | None, *, resampled: bool
) -> dict[str, Any] | None:
    """What contractions take at most, as `tier_costs`; None where no tier shows any."""
    name = config.budget.contraction_model
    if name is None:
        return None
    interval = partial(estimate, resampled=resampled)
    rate, _ = _rate(config, name, pilot)
    price = config.models[name].dollars_per_million_tokens
    return {
        "model": name,
        "calls": interval(made.contractions),
        "tokens_out": interval(made.contraction_tokens),
        "length_from": "max_tokens",
        "_gpu_hours": made.contraction_tokens / rate / 3600 if rate else None,
        "_dollars": made.contraction_tokens * price / 1e6 if price else None,
    }


def total(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The sum, or None where a part is not known or there is none."""
    known = [part for part in parts if part is not None]
    return np.sum(known, axis=0) if known and len(known) == len(parts) else None
