"""Spill: records of fixed width set aside on disk by their key, so that what belongs together is looked at together.

Verify's state is a few dozen bytes for every item of the corpus. It goes to one file per bucket in a temporary folder
(see TMPDIR), and one bucket at a time comes back: memory is bounded by the largest bucket, whatever the corpus.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from types import TracebackType

import numpy as np

MAX_BUCKETS = 512


class Spill:
    """Arrays of one structured dtype with a field `key`, by `key % parts` in at most 512 buckets; safe for threads.

    Args:
        dtype: of the records; has a uint64 field `key`.
        parts: how many parts the keys are dealt to; those of one bucket are equal modulo the number of buckets.
    """

    def __init__(self, dtype: np.dtype, parts: int) -> None:
        self._dtype, self._parts = dtype, max(1, parts)
        self.buckets = min(self._parts, MAX_BUCKETS)
        self._folder = tempfile.TemporaryDirectory(prefix="thoughtmill-verify-")
        self._locks = [threading.Lock() for _ in range(self.buckets)]

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, records: np.ndarray) -> None:
        """Set records aside."""
        bucket_of = (records["key"] % np.uint64(self._parts) % np.uint64(self.buckets)).astype(np.int64)
        ordered = records[np.argsort(bucket_of, kind="stable")]
        ends = np.cumsum(np.bincount(bucket_of, minlength=self.buckets))
        begin = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > begin:
                with self._locks[bucket], self._path(bucket).open("ab") as out:
                    out.write(ordered[begin:end].tobytes())
                begin = end

    def bucket(self, number: int) -> np.ndarray:
        """All records of one bucket."""
        path = self._path(number)
        return np.fromfile(path, self._dtype) if path.exists() else np.empty(0, self._dtype)

    def part(self, number: int) -> np.ndarray:
        """All records of one part."""
        records = self.bucket(number % self.buckets)
        return records[records["key"] % np.uint64(self._parts) == number]

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:03d}"
