"""Prices: what generated tokens cost in the unit of a budget."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.errors import RequestError

Unit = Literal["tokens", "dollars", "gpu_hours"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelPrice:
    """What a generated token of a model costs. A field is needed only for a budget in its unit."""

    dollars_per_million_tokens: float | None = Field(
        default=None, gt=0, description="Dollars per million generated tokens, the prompts' share included."
    )
    tokens_per_gpu_second: float | None = Field(
        default=None, gt=0, description="Generated tokens per second and GPU under full load."
    )


def cost_of(
    tokens: float, models: Sequence[str], unit: Unit, prices: Mapping[str, ModelPrice], needed_for: str
) -> float:
    """What so many tokens cost in a unit, at the dearest of the models that make them.

    Raises:
        RequestError: the unit needs a price that one of them doesn't have.
    """
    if unit == "tokens":
        return tokens
    field = "dollars_per_million_tokens" if unit == "dollars" else "tokens_per_gpu_second"
    found = {name: getattr(prices.get(name, ModelPrice()), field) for name in models}
    needed = [_needed(price, name, needed_for, field, unit) for name, price in found.items()]
    return tokens * max(needed) / 1e6 if unit == "dollars" else tokens / min(needed) / 3600


def _needed(price: float | None, model: str, needed_for: str, field: str, unit: Unit) -> float:
    if price is None:
        raise RequestError(
            f"models.{model}.{field}: not set, but a budget in {unit} needs it for {needed_for}; "
            f"set it, or give the budget as thinking_tokens"
        )
    return price
