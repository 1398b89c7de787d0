"""What a model would be tested on although it was trained on it: documents in two splits, and texts in two splits.

By id from the shards alone, for every `verify`; by content from the scored parts, for `deep`: copies of a text have ids
of their own.
"""

from __future__ import annotations

import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pipelines.verify.report import Problem, at, limited, shortened
from pipelines.verify.task import Task
from sharding import hashing, storage
from sharding.hashing import fingerprint
from sharding.records.rows import Row
from sharding.shards import rows
from sharding.storage.private import private_folder

_SEEN = np.dtype([("key", "u8"), ("check", "u4"), ("split", "u4")])
"""A document in a split; 96 bits stand for its id."""


class SeenDocuments:
    """Which documents are in which split: 16 bytes each, set aside on disk (in TMPDIR) in buckets by id, so that memory
    doesn't grow with the corpus. Safe for threads; a context manager.

    Args:
        num_buckets: one at a time is looked at.
    """

    def __init__(self, num_buckets: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="verify-", dir=private_folder())
        self._locks = [threading.Lock() for _ in range(num_buckets)]

    def __enter__(self) -> SeenDocuments:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def add(self, records: Sequence[np.ndarray]) -> None:
        """Set aside what `seen_records` gave for some batches of a shard."""
        made = np.unique(np.concatenate(records)) if records else np.empty(0, _SEEN)
        bucket_of = (made["key"] % np.uint64(len(self._locks))).astype(np.int64)
        for number in np.unique(bucket_of).tolist():
            with self._locks[number], self._path(number).open("ab") as out:
                out.write(made[bucket_of == number].tobytes())

    def check(self, output: str, shards: Sequence[Task]) -> tuple[int, list[Problem]]:
        """How many documents there are, and which of them are in more than one split.

        Args:
            output: the run's output folder.
            shards: the shards, read again only to name documents.
        """
        documents = 0
        twice: set[int] = set()
        for path in map(self._path, range(len(self._locks))):
            records = np.unique(np.fromfile(path, _SEEN)) if path.exists() else np.empty(0, _SEEN)
            same = (records["key"][1:] == records["key"][:-1]) & (records["check"][1:] == records["check"][:-1])
            documents += len(records) - int(same.sum())
            twice.update(records["key"][1:][same].tolist())
        return documents, list(limited(_named(output, twice, shards), output)) if twice else []

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:03d}"


def seen_records(doc_ids: Sequence[str], split: int) -> np.ndarray:
    """(num_ids,) the records of documents in a split."""
    made = np.empty(len(doc_ids), _SEEN)
    made["key"], made["split"] = keys_of(doc_ids), split
    made["check"] = [zlib.crc32(doc_id.encode("utf-8", "surrogatepass")) for doc_id in doc_ids]
    return made


def keys_of(doc_ids: Sequence[str]) -> np.ndarray:
    """(num_ids,) uint64, the hash of each id that also says which part it is in."""
    return np.fromiter((hashing.partition_of(doc_id, 1 << 64) for doc_id in doc_ids), np.uint64, len(doc_ids))


def _named(output: str, keys: set[int], shards: Sequence[Task]) -> Iterator[Problem]:
    """The documents with these keys that are in several splits, and where."""
    places: dict[str, dict[str, str]] = {}
    for task in shards:
        first_row = 0
        for batch in storage.read_batches(task.url, ("doc_ids",), kind=Row):
            for row, doc_ids in enumerate(batch.column("doc_ids").to_pylist(), first_row):
                for doc_id, key in zip(doc_ids, keys_of(doc_ids).tolist(), strict=True):
                    if key in keys:
                        places.setdefault(doc_id, {}).setdefault(rows.split_of(task.entry), at(task.url, row))
            first_row += batch.num_rows
    for doc_id, in_splits in sorted(places.items()):
        if len(in_splits) > 1:
            where = " and ".join(f"{split} ({place})" for split, place in sorted(in_splits.items()))
            yield Problem(at(output, None, doc_id), f"is in more than one split: {where}")


def text_record(doc_id: str, input_ids: np.ndarray, split: str) -> tuple[str, bytes]:
    """(what tells the text of a document, the document and its split): equal texts are equal tokens."""
    digest = fingerprint([input_ids.tobytes()])
    return digest, msgspec.json.encode((doc_id.encode("utf-8", "surrogatepass").hex(), split))


def shared_text(_: str, documents: Iterable[bytes]) -> Iterator[str]:
    """What is wrong with the documents of one text."""
    first: dict[str, str] = {}
    for encoded, split in sorted(msgspec.json.decode(document, type=tuple[str, str]) for document in documents):
        first.setdefault(split, bytes.fromhex(encoded).decode("utf-8", "surrogatepass"))
    if len(first) > 1 and len(set(first.values())) > 1:
        where = " and ".join(f"{split} ({shortened(doc_id)})" for split, doc_id in sorted(first.items()))
        yield f"one text is in more than one split: {where}"
