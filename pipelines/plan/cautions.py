"""What a plan warns of: caps that cut, traces that gain nothing, models that don't think, other lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from augment.selection.values import needs_controls
from augment.selection.verdict import shortfall
from pipelines.config import MillConfig
from pipelines.joints import holdback_of
from pipelines.plan.chance import estimate
from pipelines.plan.forecast import Forecast, TierForecast
from pipelines.plan.measured import Pilot
from sharding.models.store import resolve_model

CUT_WARNING = 0.2
"""A cap that ends more than this share of a tier's generations is worth a word."""


def cautions(config: MillConfig, made: Forecast, pilot: Pilot | None) -> list[str]:
    """What the owner of the budget should know, in words."""
    said = []
    if pilot is not None and (short := shortfall(pilot.counts, config.select.min_kept_share)):
        said.append(f"of the pilot's segments too few keep a thought: {short}")
    valued_tiers = holdback_of(config).valued_tiers
    used = {tier.model: tier for tier in made.tiers if tier.model is not None and tier.segments[0] > 0}
    for name in used:
        if thinks_not(config, str(name)):
            said.append(
                f"model {name} ({config.models[str(name)].name}) has no thinking mode; more tokens don't replace it"
            )
    for number, tier in enumerate(config.budget.tiers):
        if tier.model is None or made.tiers[number].segments[0] == 0:
            continue
        room = config.models[tier.model].max_model_len - (tier.max_tokens or 0)
        if config.difficulty.segment_tokens > room:
            said.append(
                f"segments of up to difficulty.segment_tokens={config.difficulty.segment_tokens} are longer than the "
                f"{room} tokens that budget.tiers.{number}.max_tokens leaves of models.{tier.model}.max_model_len: "
                "their beginning will not be shown"
            )
        cut = share(made.tiers[number], made.tiers[number].cut)
        if cut is not None and cut["value"] > CUT_WARNING:
            said.append(
                f"budget.tiers.{number}.max_tokens={tier.max_tokens} cuts {cut['value']:.0%} of the traces of tier "
                f"{tier.name}: raise it, or spend on fewer segments"
            )
        if (found := made.tiers[number].gain_nats) is not None and (gain := estimate(found))["low"] <= 0:
            said.append(
                f"the pilot doesn't show that the traces of tier {tier.name} gain anything: {gain['value']:+.2f} nats "
                f"per segment beyond traces of other segments ({gain['low']:+.2f} to {gain['high']:+.2f}): "
                + ("a larger --pilot may tell" if gain["high"] > 0 else "try another prompt or model, or a longer cap")
            )
        accepted = share(made.tiers[number], made.tiers[number].accepted)
        if accepted is not None and accepted["value"] == 0:
            continue  # nothing is left to be measured, and a larger pilot would say the same
        compared = tier.name in valued_tiers and needs_controls(config.select.value_name)
        if compared and made.tiers[number].basis == "pilot" and made.tiers[number].gain_nats is None:
            said.append(
                f"the pilot can't tell what the traces of tier {tier.name} gain: too few of its segments are of "
                "those that the plan gives this tier, or too few other documents have traces to compare with; "
                "a larger --pilot can"
            )
        if pilot is not None and made.tiers[number].basis == "pilot":
            mean = float(made.tiers[number].tokens_out[0] / max(made.tiers[number].generations[0], 1e-9))
            if abs(mean * tier.samples / tier.tokens_per_segment - 1) > 0.1:
                said.append(
                    f"tier {tier.name} takes {mean:,.0f} tokens per generation, and the budget reckons with "
                    f"{tier.tokens_per_segment / tier.samples:,.0f}: set budget.tiers.{number}.expected_tokens to "
                    f"{mean:.0f} to spend what you asked for"
                )
    if made.infeasible_share > 0:
        said.append(
            f"in {made.infeasible_share:.0%} of the resampled corpora the budget can't be met: it is at the edge"
        )
    return said


def thinks_not(config: MillConfig, name: str) -> bool:
    """Whether a model's chat template is at hand and has no thinking mode; only its files are looked at."""
    from augment.requests.dialects import find_thinking

    model = config.models[name]
    if model.engine == "rehearsal" or model.thinking is True or not Path(resolve_model(model.name)).is_dir():
        return False
    folder = Path(resolve_model(model.name))
    template = folder / "chat_template.jinja"
    if template.is_file():
        return not find_thinking(template.read_text(encoding="utf-8"))[0]
    settings = folder / "tokenizer_config.json"
    said: Mapping[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return not find_thinking(str(said.get("chat_template") or ""))[0]


def share(tier: TierForecast, counts: np.ndarray | None) -> dict[str, float] | None:
    """Of the tier's generations; None where it wasn't measured, or there is none."""
    return None if counts is None or not tier.generations.all() else estimate(counts / tier.generations)
