"""Reading and what is in the shards, for `benchmarks.milling`: speed from the page cache, beside Parquet and MDS.

All sides read the same rows on two threads and add up every id, so that what is decoded lazily is decoded:

ours     shards as they are: `sharding.shards.mapped`, as `sharding.shards.dataset` and the exporters read them
Parquet  what `thoughtmill export --format parquet` wrote: 32-bit ids, zstd, row groups of 32 MiB; pyarrow
MDS      what `--format mds` wrote, which isn't compressed; `benchmarks.milling_mds`, in a process of its own
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sharding import storage
from sharding.shards.export import export
from sharding.shards.mapped import MappedShard
from sharding.storage import manifest

THREADS = 2


def read_ours(output: str) -> list[Callable[[], int]]:
    """Work that reads each shard, and gives the sum of its ids."""
    packed = manifest.require(output, "pack")

    def read(url: str, entry: Any) -> int:
        shard = MappedShard(url, entry)
        return sum(int(shard.read(i).input_ids.sum(dtype=np.int64)) for i in range(len(shard.rows_of_batches)))

    urls = manifest.file_urls(output, packed, "shards")
    return [partial(read, url, entry) for url, entry in zip(urls, packed.files["shards"], strict=True)]


def read_parquet(folder: str) -> list[Callable[[], int]]:
    """The same for each Parquet file; the columns that ours reads."""

    def read(path: Path) -> int:
        total = 0
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["input_ids", "token_type", "seq_lengths"])
                total += sum(
                    int(chunk.values.to_numpy().sum(dtype=np.int64)) for chunk in table.column("input_ids").chunks
                )
        return total

    return [partial(read, path) for path in sorted(Path(folder).rglob("*.parquet"))]


def exported(output: str, target: str, fmt: str) -> str:
    """The output in another format."""
    export(output, fmt, target)
    return target


def reading_speeds(output: str, scratch: str, rounds: int, mds_python: str | None = None) -> dict[str, float]:
    """Tokens per second of each reader, of its quickest turn, by turns.

    Args:
        mds_python: an interpreter with mosaicml-streaming; without one MDS is left out.

    Raises:
        AssertionError: the readers don't read the same ids.
    """
    packed = manifest.require(output, "pack")
    tokens = sum(count for kind, count in packed.counts.items() if kind in TOKEN_COUNTS)
    sides = {
        "ours": read_ours(output),
        "Parquet": read_parquet(exported(output, storage.join(scratch, "parquet"), "parquet")),
    }
    seconds: dict[str, float] = {}
    sums: dict[str, int] = {}
    for _ in range(rounds + 1):  # the first brings everything into the page cache
        for name, work in sides.items():
            began = time.perf_counter()
            with ThreadPoolExecutor(THREADS) as pool:
                sums[name] = sum(pool.map(lambda read: read(), work))
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - began)
    if mds_python is not None:
        script = str(Path(__file__).with_name("milling_mds.py"))
        command = [mds_python, script, exported(output, storage.join(scratch, "mds"), "mds"), f"--rounds={rounds}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        seconds["MDS"], sums["MDS"] = found["elapsed_s"], found["sum"]
    if len(set(sums.values())) != 1:
        raise AssertionError(f"the readers differ in the sum of the ids they read: {sums}")
    return {name: tokens / elapsed_s for name, elapsed_s in seconds.items()}


TOKEN_COUNTS = ("tokens_source", "tokens_thought", "tokens_delimiter")


def shard_figures(output: str) -> dict[str, float]:
    """Bytes per token, share of padding, and documents in several items that would have fitted one sequence."""
    packed = manifest.require(output, "pack")
    length = int(packed.config["pack"]["sequence_length"])
    tokens = sum(packed.counts.get(kind, 0) for kind in TOKEN_COUNTS)
    slots = length * packed.counts["rows"]
    size_bytes = sum(entry.size_bytes for entry in packed.files["shards"])
    return {
        "bytes_per_token": size_bytes / tokens,
        "padding_share": (slots - tokens) / slots,
        "documents_cut_needlessly": cut_needlessly(_items(output), length),
    }


def cut_needlessly(items: Sequence[tuple[str, int]], sequence_length: int) -> int:
    """How many documents are in several items although all their tokens fit one sequence.

    Args:
        items: (document, tokens) of every item.
        sequence_length: tokens of a sequence.
    """
    pieces, lengths = Counter[str](), Counter[str]()
    for doc_id, length in items:
        pieces[doc_id] += 1
        lengths[doc_id] += length
    return sum(count > 1 and lengths[doc_id] <= sequence_length for doc_id, count in pieces.items())


def _items(output: str) -> list[tuple[str, int]]:
    packed = manifest.require(output, "pack")
    return [
        (doc_id, length)
        for url in manifest.file_urls(output, packed, "shards")
        for batch in storage.read_batches(url, ("doc_ids", "seq_lengths"))
        for doc_id, length in zip(
            batch.column("doc_ids").flatten().to_pylist(),
            batch.column("seq_lengths").flatten().to_pylist(),
            strict=True,
        )
    ]
