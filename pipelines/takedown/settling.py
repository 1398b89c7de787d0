"""The counts and accounts of the stages as they are once documents have gone. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from pipelines.epochs import epoch_counts
from pipelines.takedown.parts import Gone
from pipelines.tombstones import Tombstones
from sharding.records.families import EPOCH_ROWS
from sharding.records.rows import TokenType
from sharding.shards.rows import split_of
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


def settle_left_out(gone: Gone, in_shards: Counter[str]) -> None:
    """What of the documents `pack.max_rows` had left out of the shards: the rows that it left out hold less now."""
    counts = gone.counts["pack"]
    counts["rows_left_out_documents"] += gone.items["firsts"] - in_shards["firsts"]
    for kind in TokenType:
        if kind != TokenType.PADDING:
            less = gone.items[f"tokens_{kind:d}"] - in_shards[f"tokens_{kind:d}"]
            counts[f"rows_left_out_tokens_{kind.name.lower()}"] += less
            counts["rows_left_out_tokens_padding"] -= less


def settled(made: Manifest, gone: Gone, stones: Tombstones) -> Manifest:
    """The manifest with the counts and facts of what remains."""
    counts = dict(made.counts)
    for name, count in gone.counts[made.stage].items():
        if count:
            counts[name] = counts.get(name, 0) - count
            if not counts[name] and "." in name:
                del counts[name]  # as if it had never been counted
    facts = dict(made.facts)
    if made.stage == "augment":
        facts["tiers"] = _tiers(made, gone)
    elif made.stage == "select" and "account" in facts:
        facts["account"] = _account(facts["account"], gone.account)
    elif made.stage == "pack":
        entries = made.files.get("shards", [])
        counts["rows_without_labels"] = sum(entry.unlabelled_rows for entry in entries)
        for kind in TokenType:
            counts[f"tokens_{kind.name.lower()}"] = sum(entry.tokens[kind.name.lower()] for entry in entries)
        for split in {split_of(entry) for entry in entries}:
            of_split = [entry for entry in entries if split_of(entry) == split]
            counts[f"rows_{split}"] = sum(entry.rows - entry.padding_rows for entry in of_split)
        counts.update(epoch_counts(made.files.get(EPOCH_ROWS.name, [])))
        facts["removals"] = msgspec.to_builtins(stones.removals)
    return msgspec.structs.replace(made, counts=counts, facts=facts)


def _tiers(made: Manifest, gone: Gone) -> list[dict[str, Any]]:
    tiers = []
    requests = gone.counts["augment"]
    for tier in made.facts["tiers"]:
        thinks = f"tier.{tier['name']}.requests" in made.counts
        segments = requests[f"tier.{tier['name']}.requests"] if thinks else 0
        if not tier.get("planned_tokens") and not thinks:
            segments = gone.counts["score"]["segments"] - requests["requests"]
        less = {"segments": segments, "generations": requests[f"tier.{tier['name']}.samples"]}
        tiers.append({**tier, **{name: max(0, tier[name] - number) for name, number in less.items()}})
    return tiers


def _account(before: list[dict[str, Any]], gone: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The account of selection without some candidates; gains are left as they were measured."""
    less = {(row["tier"], row["model"], row["prompt"]): row for row in gone}
    settled = []
    for row in before:
        minus = less.get((row["tier"], row["model"], row["prompt"]))
        if minus is None:
            settled.append(row)
            continue
        new = dict(row)
        for name in ("candidates", "kept", "rejected", "thought_tokens", "kept_thought_tokens"):
            new[name] = row[name] - minus[name]
        if "prompt_tokens" in row:  # not in those of an earlier version
            new["prompt_tokens"] = row["prompt_tokens"] - minus["prompt_tokens"]
        for name in ("reasons", "objections"):
            left = {reason: count - minus[name].get(reason, 0) for reason, count in row[name].items()}
            new[name] = {reason: count for reason, count in left.items() if count}
        new["kept_share"] = round(new["kept"] / new["candidates"], 4) if new["candidates"] else 0.0
        settled.append(new)
    return settled


def chained(made: Mapping[str, Manifest], stones: Tombstones) -> dict[str, Manifest]:
    """The manifests with inputs and fingerprints that name each other as they are now."""
    chained: dict[str, Manifest] = {}
    for stage, of_stage in made.items():
        inputs = dict(of_stage.inputs)
        if stage == "score":
            inputs["removed"] = stones.digest
        inputs |= {name: manifest.digest(chained[name]) for name in inputs if name in chained}
        chained[stage] = msgspec.structs.replace(
            of_stage, inputs=inputs, fingerprint=manifest.fingerprint(stage, of_stage.config, inputs)
        )
    return chained
