"""At what rate and price a tier's tokens are counted: those of the dearest of its models, as the budget counts them."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config import MillConfig
from pipelines.plan.measured import Pilot


def rate_of(config: MillConfig, models: Sequence[str], pilot: Pilot | None) -> tuple[float | None, str | None]:
    """Tokens per second and accelerator of the slowest of some models, and where that is from: "stated" or "pilot".

    Nothing where one of them has no rate, or there is none. How many accelerators a server has is not known, so what a
    pilot measured of one says nothing.
    """
    found: list[tuple[float, str]] = []
    for name in models:
        model = config.models[name]
        measured = pilot.tokens_per_second.get(name) if pilot is not None and model.engine != "endpoint" else None
        if model.tokens_per_gpu_second:
            found.append((model.tokens_per_gpu_second, "stated"))
        elif measured:
            found.append((measured, "pilot"))
    return min(found) if found and len(found) == len(models) else (None, None)


def price_of(config: MillConfig, models: Sequence[str]) -> float | None:
    """Dollars per million generated tokens of the dearest of some models; None where one has no price, or of none."""
    found = [price for name in models if (price := config.models[name].dollars_per_million_tokens) is not None]
    return max(found) if found and len(found) == len(models) else None


def without_rate(config: MillConfig, models: Sequence[str], pilot: Pilot | None) -> list[str]:
    """Those of some models that have no rate."""
    return [name for name in models if rate_of(config, [name], pilot)[0] is None]


def without_price(config: MillConfig, models: Sequence[str]) -> list[str]:
    """Those of some models that have no price."""
    return [name for name in models if price_of(config, [name]) is None]
