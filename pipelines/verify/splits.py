"""Documents in two splits: what a model would be tested on although it was trained on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.verify.digests import document_keys
from pipelines.verify.files import Task
from pipelines.verify.report import Problem, at, limited
from pipelines.verify.spill import Spill
from sharding import storage
from sharding.shards import rows


def check_splits(output: str, seen: Spill, shards: Sequence[Task]) -> tuple[int, list[Problem]]:
    """How many documents the shards hold, and which of them are in more than one split.

    Args:
        output: the run's output folder.
        seen: `SEEN` records of every document in every shard.
        shards: the shards, read again only to name documents.
    """
    documents = 0
    twice: set[int] = set()
    for number in range(seen.buckets):
        records = np.unique(seen.bucket(number))
        same = (records["key"][1:] == records["key"][:-1]) & (records["check"][1:] == records["check"][:-1])
        documents += len(records) - int(same.sum())
        twice.update(records["key"][1:][same].tolist())
    return documents, list(limited(_named(output, twice, shards), output)) if twice else []


def _named(output: str, keys: set[int], shards: Sequence[Task]) -> Iterator[Problem]:
    """The documents with these keys that are in several splits, and where."""
    places: dict[str, dict[str, str]] = {}
    for task in shards:
        first_row = 0
        for batch in storage.read_batches(task.url, ("doc_ids",)):
            for row, doc_ids in enumerate(batch.column("doc_ids").to_pylist(), first_row):
                for doc_id, key in zip(doc_ids, document_keys(doc_ids)[0].tolist(), strict=True):
                    if key in keys:
                        places.setdefault(doc_id, {}).setdefault(rows.split_of(task.entry), at(task.url, row))
            first_row += batch.num_rows
    for doc_id, in_splits in sorted(places.items()):
        if len(in_splits) > 1:
            where = " and ".join(f"{split} ({place})" for split, place in sorted(in_splits.items()))
            yield Problem(at(output, None, doc_id), f"is in more than one split: {where}")
