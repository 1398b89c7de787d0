"""The way from documents to tokens, step by step: what went on, and what stayed behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.facts import Stages, missing_until, share
from pipelines.terminal import counted


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        count: what there is, as text; "" when it isn't there yet.
        part: the share of the step before that went on, from 0 to 1; None where the two count different things.
        notes: what stayed behind, and whatever else belongs to it.
        missing: what has to be run for it.
    """

    name: str
    count: str = ""
    part: float | None = None
    notes: Sequence[str] = ()
    missing: str = ""


def steps(stages: Stages) -> list[Step]:
    """Documents → segments → thought about → candidates → kept → tokens."""
    return [*_scored(stages), *_generated(stages), *_packed(stages)]


def _scored(stages: Stages) -> list[Step]:
    scored = stages["score"]
    if scored is None:
        return [Step(name=name, missing=missing_until("score")) for name in ("documents", "segments")]
    counts = scored.counts
    taken, there = counts["documents"], counts["documents_in"]
    why = [
        f"{n:,} {name.removeprefix('quarantined.').replace('_', ' ')}"
        for name, n in counts.items()
        if name.startswith("quarantined.")
    ]
    copies, dropped = counts.get("documents_duplicate", 0), counts.get("duplicates_dropped", 0)
    dealt = "dropped" if dropped else "kept"
    copied = [f"{counted(copies, 'exact copy')}, {dealt}"] if copies else []
    if near := counts.get("documents_near_copy", 0):
        dealt = "dropped" if counts.get("near_copies_dropped") else "kept in one split"
        copied.append(f"{counted(near, 'near-copy')}, {dealt}")
    nats = counts.get("surprisal_micronats", 0) / 1e6 / max(1, counts["source_tokens"])
    return [
        Step(
            name="documents",
            count=f"{taken:,}",
            part=taken / there if there else None,
            notes=[f"of {counted(there, 'record')}", *(why or ["none refused"]), *copied],
        ),
        Step(
            name="segments",
            count=f"{counts['segments']:,}",
            notes=[
                f"{counts['source_tokens']:,} source tokens",
                f"{nats:.2f} nats per token",
                f"{share(counts.get('hard_tokens', 0), counts['source_tokens'])} of the tokens are hard",
            ],
        ),
    ]


def _generated(stages: Stages) -> list[Step]:
    scored, augmented, selected = stages["score"], stages["augment"], stages["select"]
    if scored is None or augmented is None:
        found = [Step(name=name, missing=missing_until("augment")) for name in ("thought about", "candidates")]
    else:
        counts = augmented.counts
        segments = scored.counts["segments"]
        failed = [f"{counts['failed']:,} failed"] if counts.get("failed") else []
        found = [
            Step(
                name="thought about",
                count=f"{counts['requests']:,}",
                part=counts["requests"] / segments if segments else None,
                notes=[f"{tier['segments']:,} {tier['name']}" for tier in augmented.facts["tiers"]],
            ),
            Step(
                name="candidates",
                count=f"{counts['generations'] - counts.get('failed', 0):,}",
                notes=[f"{counts['thought_tokens']:,} generated tokens", *failed],
            ),
        ]
    if selected is None:
        return [*found, Step(name="kept", missing=missing_until("select"))]
    counts = selected.counts
    return [
        *found,
        Step(
            name="kept",
            count=f"{counts['kept']:,}",
            part=counts["kept"] / counts["candidates"] if counts["candidates"] else None,
            notes=[f"{counts['rejected']:,} rejected", f"{counts.get('kept_thought_tokens', 0):,} generated tokens"],
        ),
    ]


def _packed(stages: Stages) -> list[Step]:
    packed = stages["pack"]
    if packed is None:
        return [Step(name="tokens", missing=missing_until("pack"))]
    counts = packed.counts
    kinds = {kind: counts.get(f"tokens_{kind}", 0) for kind in ("source", "thought", "delimiter", "padding")}
    total = sum(kinds.values())
    return [
        Step(
            name="tokens",
            count=f"{total - kinds['padding']:,}",
            part=(total - kinds["padding"]) / total if total else None,
            notes=[f"{tokens:,} {kind}" for kind, tokens in kinds.items()],
        )
    ]
