"""What a run will take, before it runs: `thoughtmill plan`. Read `make_plan` from top to bottom.

scored parts or a sample ─► evidence ─► forecast ─► a plan for people (show) or as JSON
                               └─► pilot ─► pilot.json ─┘
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from augment.selection.values import needs_controls
from augment.selection.verdict import SEGMENTS_KEPT, shortfall
from pipelines import preflight
from pipelines.config import MillConfig
from pipelines.joints import holdback_of
from pipelines.plan import measured
from pipelines.plan.chance import estimate
from pipelines.plan.corpus import Evidence
from pipelines.plan.evidence import gather
from pipelines.plan.forecast import Forecast, TierForecast, allocation_for, forecast, shard_bytes
from pipelines.plan.measured import Pilot
from sharding.errors import RequestError
from sharding.models.store import resolve_model
from sharding.storage import manifest

__all__ = ["make_plan"]

CUT_WARNING = 0.2
"""A cap that ends more than this share of a tier's generations is worth a word."""

SAMPLE_DOCUMENTS = 64
"""Documents looked at, unless the user says otherwise."""


def make_plan(
    config: MillConfig,
    *,
    sample_documents: int = SAMPLE_DOCUMENTS,
    accelerators: int = 1,
    pilot: int = 0,
    beam_args: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan as JSON values; every estimate is {"value", "low", "high"} with a 90% interval, or None if not known.

    Args:
        config: the run.
        sample_documents: how many documents stand for the corpus where the whole isn't scored.
        accelerators: how many generate at the same time.
        pilot: how many segments to generate really and measure; 0: none.
        beam_args: Beam options for the pilot.

    Raises:
        RequestError: the budget can't be met, or a pilot is asked for before the corpus is scored.
        MillError: the source can't be read, the scorer can't be loaded, or the pilot failed.
    """
    if manifest.read(config.output, "score") is None:
        preflight.check(config, ["score"])  # a sample of the source is scored here
    evidence = gather(config, max(sample_documents, pilot))
    if pilot and evidence.scored is None:
        raise RequestError(
            "plan --pilot: the corpus isn't scored yet, so a pilot's tiers would not be those of the run, and what it "
            "buys would be bought twice: run `thoughtmill score` first, or plan without --pilot"
        )
    if pilot:
        from pipelines.beam_options import beam_options, works_here
        from pipelines.plan.pilot import measure

        if works_here(beam_options(beam_args)):
            preflight.check(config, ["augment", "select"])
        found: Pilot | None = measure(config, evidence, allocation_for(config, evidence), pilot, beam_args)
        notes: list[str] = []
    else:
        found, notes = measured.read_pilot(config, evidence.scored)
    made = forecast(config, evidence, found)
    if pilot and found is not None and evidence.scored is not None:
        thinking = estimate(np.sum([tier.tokens_out for tier in made.tiers], axis=0))
        measured.write_pilot(config, evidence.scored, found, {"thought_tokens": thinking})
    return _to_json(config, evidence, made, found, accelerators, notes)


def _to_json(
    config: MillConfig,
    evidence: Evidence,
    made: Forecast,
    pilot: Pilot | None,
    accelerators: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    allocation = made.allocation
    interval = partial(estimate, resampled=evidence.scored is None)
    tiers = [_tier(config, tier, pilot, resampled=evidence.scored is None) for tier in made.tiers]
    costs = [cost for cost in tiers if cost["model"] is not None]
    gpu_hours = _sum([cost["_gpu_hours"] for cost in costs])
    dollars = _sum([cost["_dollars"] for cost in costs])
    for cost in tiers:
        del cost["_gpu_hours"], cost["_dollars"]
    kept_tokens = np.sum([tier.kept_tokens for tier in made.tiers], axis=0) * (1 - config.pack.raw_fraction)
    training_tokens = (made.source_tokens + kept_tokens) * made.copies
    size_bytes = shard_bytes(config, training_tokens)
    rate = evidence.scoring_tokens_per_second
    return {
        "output": config.output,
        "basis": {
            "scored": evidence.scored is not None,
            "documents": len(evidence.sample),
            "complete": evidence.scored is not None or evidence.complete,
            "pilot_segments": sum(len(t.thought_tokens) for t in pilot.tiers.values()) if pilot else 0,
            "rehearsal": _is_rehearsal(config),
        },
        "budget": {
            "policy": allocation.policy,
            "unit": allocation.unit,
            "target": allocation.target_spend,
            "planned": allocation.planned_spend,
        },
        "score": {
            "documents": interval(made.documents),
            "segments": interval(made.segments),
            "tokens_in": interval(made.source_tokens),
            "seconds_here": None if rate is None else interval(made.source_tokens / rate),
        },
        "augment": {
            "tiers": tiers,
            "tokens_in": interval(np.sum([tier.tokens_in for tier in made.tiers], axis=0)),
            "tokens_out": interval(np.sum([tier.tokens_out for tier in made.tiers], axis=0)),
            "gpu_hours": None if gpu_hours is None else interval(gpu_hours),
            "dollars": None if dollars is None else interval(dollars),
            "accelerators": accelerators,
            "hours": None if gpu_hours is None else interval(gpu_hours / accelerators),
        },
        "select": {
            "candidates": interval(np.sum([tier.generations for tier in made.tiers], axis=0)),
            "kept": interval(np.sum([tier.kept for tier in made.tiers], axis=0)),
        },
        "pack": {
            "training_tokens": interval(training_tokens),
            "sequences": interval(training_tokens / config.pack.sequence_length),
            "shards": config.pack.num_shards,
            "bytes": interval(size_bytes),
        },
        "nothing_kept": pilot is not None and _keeps_nothing(config, pilot),
        "warnings": [
            *notes,
            *evidence.notes,
            *allocation.warnings,
            *_warnings(config, made, pilot),
        ],
    }


def _keeps_nothing(config: MillConfig, pilot: Pilot) -> bool:
    """Whether selection keeps nothing of more than a handful of segments, and was not told that it may."""
    return shortfall(pilot.counts, config.select.min_kept_share) is not None and not pilot.counts[SEGMENTS_KEPT]


def _tier(config: MillConfig, tier: TierForecast, pilot: Pilot | None, *, resampled: bool) -> dict[str, Any]:
    interval = partial(estimate, resampled=resampled)
    model = config.models[tier.model] if tier.model is not None else None
    rate = model.tokens_per_gpu_second if model else None
    rate_from = "stated" if rate else None
    if model is not None and rate is None and pilot is not None and model.engine != "endpoint":
        rate = pilot.tokens_per_second.get(tier.model or "")
        rate_from = "pilot" if rate else None
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
        "cut_share": _share(tier, tier.cut),
        "accepted_share": _share(tier, tier.accepted),
        "kept_share": _share(tier, tier.kept if tier.basis == "pilot" else None),
        "gain_nats": None if tier.gain_nats is None else estimate(tier.gain_nats),
        "_gpu_hours": gpu_hours,
        "_dollars": dollars,
    }


def _share(tier: TierForecast, counts: np.ndarray | None) -> dict[str, float] | None:
    """Of the tier's generations; None where it wasn't measured, or there is none."""
    return None if counts is None or not tier.generations.all() else estimate(counts / tier.generations)


def _sum(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The sum, or None where a part is not known or there is none."""
    known = [part for part in parts if part is not None]
    return np.sum(known, axis=0) if known and len(known) == len(parts) else None


def _warnings(config: MillConfig, made: Forecast, pilot: Pilot | None) -> list[str]:
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
        cut = _share(made.tiers[number], made.tiers[number].cut)
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
        accepted = _share(made.tiers[number], made.tiers[number].accepted)
        if accepted is not None and accepted["value"] == 0:
            continue  # nothing is left to be measured, and a larger pilot would say the same
        compared = tier.name in valued_tiers and needs_controls(config.select.value_name)
        if compared and made.tiers[number].basis == "pilot" and made.tiers[number].gain_nats is None:
            said.append(
                f"the pilot can't tell what the traces of tier {tier.name} gain: too few other documents have traces "
                "to compare them with; a larger --pilot can"
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


def _is_rehearsal(config: MillConfig) -> bool:
    return config.difficulty.scorer == "rehearsal" or any(m.engine == "rehearsal" for m in config.models.values())
