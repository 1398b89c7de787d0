"""ArrayRecord with a document in each record, without padding: for trainers that pack documents themselves, as MaxText.

The message is that of `sharding.shards.export.arrayrecord`, and its arrays are those of `DocumentSource`.
"""

from __future__ import annotations

from collections.abc import Iterator

from sharding.records.types import FileEntry
from sharding.shards.export.arrayrecord import record, training_rows, write_records
from sharding.shards.export.source import SourceShard
from sharding.shards.grain_sources import document_arrays


def write_shard(shard: SourceShard, target: str) -> list[FileEntry]:
    """Write the file of a shard.

    Raises:
        RequestError: array_record isn't installed.
        MillError: the shard is not what its manifest says, or the store refused.
    """
    return [write_records(shard, target, _documents(shard))]


def _documents(shard: SourceShard) -> Iterator[bytes]:
    for row, doc_ids in training_rows(shard):
        for item, doc_id in enumerate(doc_ids):
            yield record(document_arrays(row, item), [doc_id])
