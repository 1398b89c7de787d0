"""The YAML at the top of the card: what the hub indexes, and what `datasets` opens the shards by."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.epochs import shards_by_epoch
from sharding import records
from sharding.records.families import ROWS
from sharding.shards import rows
from sharding.storage.manifest import Manifest

SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)
"""Rows below the number → the hub's name for the size."""

TAGS = ("thoughtmill", "thinking-augmented", "pretraining", "synthetic", "packed-sequences")


def front_matter(packed: Manifest) -> str:
    """The YAML, without the lines that enclose it."""
    from huggingface_hub import DatasetCardData

    about = packed.config["card"]
    infos = [_dataset_info(epoch, of_epoch) for epoch, of_epoch in epochs_of(packed).items()]
    data = DatasetCardData(
        pretty_name=about["name"],
        language=list(about["language"]) or None,
        license=about["license"],
        source_datasets=list(about["source_datasets"]) or None,
        size_categories=[size_category(packed.counts["rows"])],
        task_categories=["text-generation"],
        tags=[*TAGS, *(["rehearsal"] if packed.rehearsal else [])],
        configs=[_data_files(epoch, of_epoch) for epoch, of_epoch in epochs_of(packed).items()],
        dataset_info=infos if len(infos) > 1 else infos[0],
    )
    return data.to_yaml() + "\n"


def config_name(epoch: int) -> str:
    """What `load_dataset` calls the rows that an epoch shows."""
    return f"epoch-{epoch}" if epoch else "default"


def epochs_of(packed: Manifest) -> dict[int, Manifest]:
    """Epoch → the manifest as if its rows were the corpus: its train split, and the others, which stay the same."""
    shards = packed.files.get("shards", [])
    same = [entry for entry in shards if rows.split_of(entry) != "train"]
    later = {
        epoch: msgspec.structs.replace(packed, files={**packed.files, "shards": [*of_epoch, *same]})
        for epoch, of_epoch in shards_by_epoch(packed)
    }
    return {0: packed, **later}


def _data_files(epoch: int, packed: Manifest) -> dict[str, Any]:
    """A config of `load_dataset`."""
    files = [{"split": split, "path": _one_or_all(shard_patterns(packed, split))} for split in splits(packed)]
    return {"config_name": config_name(epoch), "data_files": files, **({} if epoch else {"default": True})}


def _dataset_info(epoch: int, packed: Manifest) -> dict[str, Any]:
    return {
        "config_name": config_name(epoch),
        "features": features(packed),
        "splits": [_split_info(packed, split) for split in splits(packed)],
        "download_size": sum(entry.size_bytes for entry in packed.files.get("shards", [])),
        "dataset_size": sum(_split_info(packed, split)["num_bytes"] for split in splits(packed)),
    }


def size_category(num_rows: int) -> str:
    """The hub's name for a dataset of so many rows."""
    return next((name for limit, name in SIZE_CATEGORIES if num_rows < limit), "n>1T")


def splits(packed: Manifest) -> list[str]:
    """The splits that have shards, train first."""
    names = {rows.split_of(entry) for entry in packed.files.get("shards", [])}
    return sorted(names, key=lambda name: (name != "train", name))


def has_loss_mask(packed: Manifest) -> bool:
    """Whether the shards have a column that says which tokens count in the loss."""
    return packed.config["pack"].get("loss_mask", "all") != "all"


def features(packed: Manifest) -> list[dict[str, Any]]:
    """The columns of the shards, in the hub's spelling."""
    length = packed.config["pack"]["sequence_length"]
    ids = str(records.token_dtype(packed.facts["vocab_size"]))
    fixed = [("input_ids", ids), ("token_type", "uint8"), *([("loss_mask", "bool")] if has_loss_mask(packed) else [])]
    fixed += [("surprisal", "float16")] if rows.has_surprisal(packed) else []
    columns = {name: {"name": name, "list": kind, "length": length} for name, kind in fixed}
    ragged = {"seq_lengths": "int32", "doc_ids": "string", "source_starts": "int64"}
    columns |= {name: {"name": name, "list": kind} for name, kind in ragged.items()}
    schema = ROWS.schema(
        sequence_length=length,
        vocab_size=packed.facts["vocab_size"],
        with_loss_mask=has_loss_mask(packed),
        with_surprisal=rows.has_surprisal(packed),
    )
    return [columns[name] for name in schema.names]


def shard_patterns(packed: Manifest, split: str) -> list[str]:
    """Patterns for the shards of a split, their number in them: shards of another run in the folder don't match.

    One for the first documents, and one for each delivery that has joined them.
    """
    names = [entry.name for entry in packed.files["shards"] if rows.split_of(entry) == split]
    ends = [(name.rpartition(f"{split}-")[0], name.rpartition("-of-")[2]) for name in names]
    return [f"{folder}{split}-*-of-{end}" for folder, end in dict.fromkeys(ends)]


def _one_or_all(patterns: list[str]) -> str | list[str]:
    return patterns[0] if len(patterns) == 1 else patterns


def _split_info(packed: Manifest, split: str) -> dict[str, Any]:
    """Rows of a split, and the bytes that its columns of a fixed width take in memory: all but a few in a thousand."""
    entries = [entry for entry in packed.files["shards"] if rows.split_of(entry) == split]
    num_rows = sum(entry.rows for entry in entries)
    token_bytes = records.token_dtype(packed.facts["vocab_size"]).itemsize + 1 + 2 * rows.has_surprisal(packed)
    num_bytes = num_rows * packed.config["pack"]["sequence_length"] * token_bytes
    return {"name": split, "num_bytes": num_bytes, "num_examples": num_rows}
