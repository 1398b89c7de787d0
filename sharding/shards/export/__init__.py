"""Exports: packed shards in the formats of trainers. What `thoughtmill export OUTPUT --to FORMAT --target URL` calls.

    MANIFEST.json ─► each shard, on its own ─► its files, whole or not at all ─► per split: an index ─► EXPORT.json
                     proved, a batch at a time   (one module per format)          where the format has one

Shards are exported apart from each other, so memory doesn't depend on their number; a target holds one export and
nothing else (`target`), and is not finished without EXPORT.json. docs/formats.md says what is where in each format and
how a trainer loads it.

A format's module has

    write_shard   (shard, target) → the files it wrote of a shard: `files.publish(target, f"{shard.stem}.ENDING")` opens
                  one under the name that belongs to it, `shard.batches()` gives the rows, `shard.counted` the loss mask
    finish        (target, split, shard, files) → the files over those of a whole split (index.json) that it wrote,
                  where its line in `FORMATS` says `has_index`; `shard` is any one of the export
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import msgspec

from sharding import storage
from sharding.errors import RequestError
from sharding.hashing import fingerprint
from sharding.records.types import FileEntry
from sharding.shards.export.source import SourceShard
from sharding.shards.export.target import EXPORT_VERSION, Export, begin, finish
from sharding.shards.rows import LOSS_MASKS, LossMask, has_surprisal, policy_of, split_of
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

Progress = Callable[[int, int, int], None]
"""Called with shards done, shards in all, and tokens done."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a format is written.

    Attributes:
        module: where it is; imported when it is used.
        carries_loss_mask: whether it has a place for one.
        has_index: whether a split has files over those of its shards.
    """

    module: str
    carries_loss_mask: bool = True
    has_index: bool = False


FORMATS = {
    "arrayrecord": Format(module="sharding.shards.export.arrayrecord"),
    "arrayrecord_documents": Format(module="sharding.shards.export.arrayrecord_documents"),
    "megatron": Format(module="sharding.shards.export.megatron", carries_loss_mask=False),
    "datatrove": Format(module="sharding.shards.export.datatrove"),
    "mds": Format(module="sharding.shards.export.mds", has_index=True),
    "olmo": Format(module="sharding.shards.export.olmo"),
    "parquet": Format(module="sharding.shards.export.parquet"),
}
"""The formats by the names that `--to` takes; "hub" beside them uploads the shards as they are."""


def export(
    output: storage.Location,
    fmt: str,
    target: storage.Location,
    *,
    splits: Sequence[str] | None = None,
    loss_mask: LossMask | None = None,
    workers: int = 4,
    replace: bool = False,
    progress: Progress | None = None,
) -> tuple[Export, bool]:
    """Write a finished output in another format.

    Args:
        output: the run's output folder, in any store.
        fmt: a name of `FORMATS`.
        target: URL of the folder to write, in any store.
        splits: the splits wanted; all when absent.
        loss_mask: which tokens count; None: those that `pack.loss_mask` of the corpus counts, and where that is all of
            them, the format's files without a mask, if it can do without. A format that has no place for a mask takes
            "all" alone, which is what its files mean.
        workers: shards exported at the same time. Each holds a batch; from an object store, a shard.
        replace: delete another export that the target holds.
        progress: called after every shard.

    Returns:
        What EXPORT.json says, and whether anything was written: False when the target was this export already.

    Raises:
        RequestError: an argument is not allowed, or the target holds something else: see `target.begin`.
        MillError: the output isn't finished, a shard is not what its manifest says, or the store refused.
    """
    output, target = os.fspath(output), os.fspath(target)
    packed = manifest.require(output, "pack")
    plan = _plan(packed, fmt, splits, loss_mask)
    if workers < 1:
        raise RequestError(f"workers: {workers} is not at least 1")
    if (found := begin(output, target, plan, replace=replace)) is not None:
        return found, False
    files = _write(FORMATS[fmt], _shards(output, packed, plan), target, workers, progress)
    tokens: dict[str, int] = {}
    for entries in files.values():
        for entry in entries:
            for kind, number in entry.tokens.items():
                tokens[kind] = tokens.get(kind, 0) + number
    done = msgspec.structs.replace(plan, tokens=tokens, files=files)
    finish(target, done)
    return done, True


def _plan(packed: Manifest, fmt: str, splits: Sequence[str] | None, loss_mask: LossMask | None) -> Export:
    """The export that is asked for, without its files.

    Raises:
        RequestError: an argument is not allowed.
    """
    if fmt not in FORMATS:
        raise RequestError(f"format: {fmt!r} is not one of {', '.join(FORMATS)}")
    if loss_mask is not None and loss_mask not in LOSS_MASKS:
        raise RequestError(f"loss_mask: {loss_mask!r} is not one of {', '.join(LOSS_MASKS)}")
    if loss_mask is None and policy_of(packed) != "all":
        loss_mask = policy_of(packed)
    if not FORMATS[fmt].carries_loss_mask:
        if loss_mask not in (None, "all"):
            able = ", ".join(name for name, form in FORMATS.items() if form.carries_loss_mask)
            raise RequestError(
                f"loss_mask: {fmt} has no place for the mask {loss_mask}; these have: {able}; "
                "to count every token, ask for all"
            )
        loss_mask = None  # every token counts, which is what its files say without one
    shards = packed.files.get("shards", [])
    there = sorted(set(map(split_of, shards)))
    wanted = there if splits is None else sorted(set(splits))
    for split in wanted:
        if split not in there:
            raise RequestError(f"splits: {split!r} is not one of {', '.join(there)}")
    source = fingerprint(f"{entry.name} {entry.sha256}\n" for entry in shards)
    return Export(
        version=EXPORT_VERSION,
        format=fmt,
        loss_mask=loss_mask,
        splits=wanted,
        source_fingerprint=packed.fingerprint,
        source_digest=source,
        sequence_length=packed.config["pack"]["sequence_length"],
        vocab_size=packed.facts["vocab_size"],
        tokenizer=str(packed.config.get("tokenizer", "")),
        tokenizer_fingerprint=packed.facts["tokenizer_fingerprint"],
        document_end_ids=packed.facts["document_end_ids"],
        rehearsal=packed.rehearsal,
    )


def _shards(output: str, packed: Manifest, plan: Export) -> list[SourceShard]:
    common: dict[str, Any] = {
        "sequence_length": plan.sequence_length,
        "vocab_size": plan.vocab_size,
        "tokenizer": plan.tokenizer,
        "loss_mask": plan.loss_mask,
        "has_surprisal": has_surprisal(packed),
    }
    base = manifest.stage_url(output, "pack")
    return [
        SourceShard(url=storage.join(base, entry.name), entry=entry, **common)
        for entry in packed.files.get("shards", [])
        if split_of(entry) in plan.splits
    ]


def _write(
    form: Format, shards: Sequence[SourceShard], target: str, workers: int, progress: Progress | None
) -> dict[str, list[FileEntry]]:
    """The files of all shards by split. A shard without a document has none."""
    filled = [shard for shard in shards if sum(shard.tokens().values())]
    written: dict[str, list[FileEntry]] = {}
    tokens = 0
    module = importlib.import_module(form.module)
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(module.write_shard, shard, target): shard for shard in filled}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                shard = futures[future]
                written[shard.entry.name] = future.result()
                tokens += sum(shard.tokens().values())
                if progress is not None:
                    progress(done, len(filled), tokens)
        finally:  # an error must not wait for the shards that have not begun
            pool.shutdown(cancel_futures=True)
    files: dict[str, list[FileEntry]] = {}
    for shard in filled:
        files.setdefault(shard.split, []).extend(written[shard.entry.name])
    if form.has_index:
        for split, entries in files.items():
            entries += module.finish(target, split, filled[0], entries)
    return files
