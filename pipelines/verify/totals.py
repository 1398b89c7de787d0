"""Manifests against each other, and against what was counted in their files."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import accounts
from pipelines.verify.report import Problem
from sharding import storage
from sharding.shards import rows
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

LIKE_A_SHARD = re.compile(r"-of-\d{5,}\.arrow$")
"""What the patterns of the card take; more than a killed run leaves, which the pack stage removes."""


def check_manifests(output: str, stages: Mapping[str, Manifest]) -> Iterator[Problem]:
    """Whether each manifest is whole, and was made from the others as they are now."""
    for stage, found in stages.items():
        url = manifest.manifest_url(output, stage)
        if found.fingerprint != manifest.fingerprint(found.stage, found.config, found.inputs):
            yield Problem(url, "its fingerprint is not that of its config and inputs: one of them was changed")
        names = Counter(entry.name for family in found.files.values() for entry in family)
        for name in sorted(name for name, number in names.items() if number > 1):
            yield Problem(url, f"names the file {name} {names[name]} times")
        for earlier in manifest.STAGES:
            if (
                earlier in found.inputs
                and earlier in stages
                and found.inputs[earlier] != manifest.digest(stages[earlier])
            ):
                yield Problem(url, f"was made from another result of the stage {earlier} than the one that is here")
    if "score" in stages and "pack" in stages:
        scored, packed = (stages[stage].facts.get("vocab_size") for stage in ("score", "pack"))
        if scored != packed:
            url = manifest.manifest_url(output, "pack")
            yield Problem(url, f"a vocabulary size of {packed}, and {scored} in the stage score")


def check_counts(output: str, stage: Manifest, counted: Mapping[str, int]) -> Iterator[Problem]:
    """Whether the counts of a manifest are what its files hold.

    Args:
        counted: what was counted, by the name of the count; names that are not here are not compared.
    """
    url = manifest.manifest_url(output, stage.stage)
    recounted = {"score": ("quarantined.", "source."), "augment": ("tier.",), "select": ("rejected.",)}.get(
        stage.stage, ()
    )
    if stage.counts.get("rows_left_out", 0):
        counted = {name: number for name, number in counted.items() if name != "items"}  # counted before rows were cut
    names = {*counted, *(name for name in stage.counts if name.startswith(recounted) and recounted)}
    for name in sorted(names):
        is_outcome = stage.stage == "select" and name.startswith("tier.")
        if not is_outcome and stage.counts.get(name, 0) != counted.get(name, 0):
            yield Problem(url, f"says {name} {stage.counts.get(name, 0)}, its files hold {counted.get(name, 0)}")


def check_totals(output: str, stages: Mapping[str, Manifest]) -> Iterator[Problem]:
    """Whether the totals of one stage follow from those of the others."""
    packed = stages["pack"]
    yield from _check_shards(output, packed)
    for stage in stages:
        for problem in accounts.unmet(stage, stages):
            yield Problem(manifest.manifest_url(output, stage), problem)
    if "select" in stages:
        yield from _check_account(output, stages["select"])


def _check_shards(output: str, packed: Manifest) -> Iterator[Problem]:
    url = manifest.manifest_url(output, "pack")
    numbers: dict[str, set[int]] = {}
    shards = [*packed.files.get("shards", []), *packed.files.get("epoch_shards", [])]
    for entry in shards:
        numbers.setdefault(f"{posixpath.dirname(entry.name)}/{rows.split_of(entry)}", set()).add(entry.rows)
    for split, different in sorted(numbers.items()):
        if max(different) - min(different) > 1:
            said = f"the shards of {split.rpartition('/')[2]} differ by more than a row: {sorted(different)}"
            yield Problem(url, said)
    length = packed.config["pack"]["sequence_length"]
    for entry in shards:
        if sum(entry.tokens.values()) != entry.rows * length:
            said = f"{sum(entry.tokens.values())} tokens of {entry.name} are not {entry.rows} rows of {length}"
            yield Problem(url, said)
    named = {url for family in ("shards", "epoch_shards") for url in manifest.file_urls(output, packed, family)}
    for folder in Output(output).data_folders():
        for name in storage.list_names(folder):
            url = storage.join(folder, name)
            if LIKE_A_SHARD.search(name) and url not in named:
                yield Problem(url, "no manifest names it, but a loader would take it for a shard")


def _check_account(output: str, selected: Manifest) -> Iterator[Problem]:
    """Whether the account of selection, row by row, adds up to its counts."""
    account: list[dict[str, Any]] | None = selected.facts.get("account")
    for outcome in ("candidates", "kept", "rejected"):
        number = selected.counts.get(outcome, 0)
        if account is not None and (total := sum(row[outcome] for row in account)) != number:
            said = f"its account adds up to {total} {outcome}, its counts say {number}"
            yield Problem(manifest.manifest_url(output, "select"), said)
