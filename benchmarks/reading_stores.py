"""Reading shards from an object store beside reading them from a disk: 8 ranks of one machine, a whole epoch.

    python -m benchmarks.reading_stores [--tokens 60000000] [--readers 8] [--rounds 3]
        [--stream-rate 1000000] [--ahead 2]

The store is moto's S3 over HTTP on the loopback, in a process of its own on the same cores; with `--stream-rate` each
of its answers comes at no more than so many bytes a second, as those of stores far away do, whose speed is that of many
requests at once. Each rank is a process with its own `PackedSampler`, and makes every row a trainer's row. By turns:

disk        the output on a file system, from the page cache
S3, first   into an empty cache that the ranks share
S3, again   from that cache, as a second epoch finds it

Also printed: the CPU seconds of all ranks, which other work on the cores changes less than it does the speeds, and what
the checksums cost, as a share of reading the shards once in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import multiprocessing
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from sharding import storage
from sharding.packing.best_fit import pack_rows
from sharding.records.arrow import token_dtype
from sharding.records.families import ROWS
from sharding.records.rows import Item, TokenType
from sharding.shards.cache import ShardCache
from sharding.shards.dataset import PackedDataset
from sharding.shards.sampler import PackedSampler
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

LENGTH, VOCABULARY, ROWS_PER_SHARD = 4096, 49_152, 1024
BUCKET = "s3://reading/output"
VARIABLES = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def documents(tokens: int) -> Iterator[Item]:
    """Documents of skewed lengths and ids, a tenth of each of them thought."""
    rng = np.random.default_rng(0)
    made = 0
    while made < tokens:
        length = int(min(LENGTH, 32 + rng.pareto(1.2) * 200))
        ids = np.minimum(rng.zipf(1.2, length), VOCABULARY - 1).astype(token_dtype(VOCABULARY))
        kinds = np.where(np.arange(length) < length // 10, TokenType.THOUGHT, TokenType.SOURCE).astype(np.uint8)
        yield Item(doc_id=f"document-{made}", source_start=0, input_ids=ids, token_type=kinds)
        made += length


def write_output(folder: str, tokens: int) -> None:
    """Shards of equal rows with their manifest, as the pack stage leaves them."""
    schema = ROWS.schema(sequence_length=LENGTH, vocab_size=VOCABULARY)
    rows = list(pack_rows(documents(tokens), LENGTH))
    count = max(1, len(rows) // ROWS_PER_SHARD)
    per_shard, entries = len(rows) // count, []
    for number in range(count):
        name = f"data/train-{number:05d}-of-{count:05d}.arrow"
        shard = rows[number * per_shard : (number + 1) * per_shard]
        entry = storage.write_part(storage.join(folder, name), shard, schema, name=name, zstd_level=6, sum_batches=True)
        entries.append(msgspec.structs.replace(entry, tokens={"source": per_shard * LENGTH}))
    made = Manifest(
        stage="pack",
        format=manifest.FORMAT,
        fingerprint="f" * 32,
        config={
            "tokenizer": "made-up",
            "layout": "after_document",
            "card": {"name": "reading"},
            "pack": {"sequence_length": LENGTH},
        },
        inputs={},
        files={"shards": entries},
        counts={"rows": per_shard * count},
        facts={"vocab_size": VOCABULARY, "tokenizer_fingerprint": "-", "document_end_ids": [0]},
        rehearsal=True,
        elapsed_s=0.0,
    )
    manifest.write(folder, made)


def serve(port: Any, stream_rate: float) -> None:
    """moto's S3 until the process is ended; each answer at no more than `stream_rate` bytes a second."""
    import logging
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = store(environ, start_response)
        return body if stream_rate == math.inf else slowly(body, stream_rate)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port.send(server.server_port)
    port.recv()


def slowly(body: Iterable[bytes], rate: float) -> Iterator[bytes]:
    """The bytes of an answer at no more than so many a second."""
    began, sent = time.monotonic(), 0
    for data in body:
        for start in range(0, len(data), 1 << 16):
            piece = data[start : start + (1 << 16)]
            sent += len(piece)
            time.sleep(max(0.0, began + sent / rate - time.monotonic()))
            yield piece


def read(rank: int, readers: int, output: str, cache: ShardCache | None, begin: Any, found: Any) -> None:
    """Read the rows of a rank once all are ready."""
    dataset = PackedDataset(output, cache=cache)
    sampler = PackedSampler(dataset, rank=rank, world_size=readers)
    begin.wait()
    began, cpu = time.time(), time.process_time()
    total = sum(int(dataset[row]["input_ids"].sum()) for row in sampler)
    found.put((began, time.time(), time.process_time() - cpu, total))


def elapsed_s(readers: int, output: str, cache: ShardCache | None) -> tuple[float, float, int]:
    """Seconds from the first reader's begin to the last one's end, CPU seconds of all, and the sum of all ids."""
    context = multiprocessing.get_context("spawn")
    begin, found = context.Barrier(readers), context.Queue()
    started = [context.Process(target=read, args=(n, readers, output, cache, begin, found)) for n in range(readers)]
    for process in started:
        process.start()
    times = [found.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    began, ended, cpu, sums = zip(*times, strict=True)
    return max(ended) - min(began), sum(cpu), sum(sums)


def checksum_figures(output: str) -> dict[str, float]:
    """Seconds of sha256 and of CRC-32 of all shards, as shares of the seconds of reading every row once."""
    packed = manifest.require(output, "pack")
    began = time.perf_counter()
    for row in PackedDataset(output):
        row["input_ids"].sum()
    reading = time.perf_counter() - began
    data = [Path(url).read_bytes() for url in manifest.file_urls(output, packed, "shards")]
    figures = {}
    for name, check in (("sha256", hashlib.sha256), ("crc32", zlib.crc32)):
        began = time.perf_counter()
        for each in data:
            check(each)
        seconds = time.perf_counter() - began
        figures[f"{name}_share_of_reading"] = seconds / reading
        figures[f"{name}_gigabytes_per_s"] = sum(map(len, data)) / seconds / 1e9
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=60_000_000)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stream-rate", type=float, default=math.inf, help="bytes a second of each of the answers")
    parser.add_argument("--ahead", type=int, default=2, help="shards that are fetched ahead")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    port, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, chosen.stream_rate), daemon=True)
    server.start()
    os.environ |= VARIABLES | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.recv()}"}
    scratch = Path(tempfile.mkdtemp(prefix="reading-"))
    try:
        figures = measure(str(scratch / "output"), scratch, chosen)
    finally:
        port.send("end")
        server.join(10)
        shutil.rmtree(scratch)
    console = Console()
    table = Table("", "tokens/s", "of the disk's", "CPU seconds")
    for name in ("disk", "s3_first", "s3_again"):
        speed, cpu = figures[f"{name}_tokens_per_s"], figures[f"{name}_cpu_s"]
        table.add_row(
            name.replace("_", ", "), f"{speed:,.0f}", f"{speed / figures['disk_tokens_per_s']:.2f}", f"{cpu:.2f}"
        )
    console.print(table)
    for name in ("sha256", "crc32"):
        rate, share = figures[f"{name}_gigabytes_per_s"], figures[f"{name}_share_of_reading"]
        console.print(f"{name}: {rate:.2f} GB/s, {share:.1%} of the time of reading in one process")
    conclude(console, "reading_stores", figures, ("pyarrow", "s3fs", "moto", "numpy"))


def measure(output: str, scratch: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """All figures, each side's of its median turn."""
    import fsspec

    write_output(output, chosen.tokens)
    fsspec.filesystem("s3").mkdir("reading")
    fsspec.filesystem("s3").put(output, BUCKET, recursive=True)
    packed = manifest.require(output, "pack")
    read_tokens = packed.counts["rows"] * LENGTH
    speeds: dict[str, list[float]] = {}
    cpu_s: dict[str, list[float]] = {}
    sums = set()
    for turn in range(chosen.rounds):
        cache = ShardCache(folder=scratch / f"cache-{turn}", prefetch_shards=chosen.ahead)
        for name, side in (("disk", (output, None)), ("s3_first", (BUCKET, cache)), ("s3_again", (BUCKET, cache))):
            seconds, cpu, total = elapsed_s(chosen.readers, *side)
            cpu_s.setdefault(name, []).append(cpu)
            speeds.setdefault(name, []).append(read_tokens / seconds)
            sums.add(total)
        shutil.rmtree(cache.place)
    if len(sums) != 1:
        raise AssertionError(f"the sides differ in the sum of the ids that they read: {sums}")
    figures = {f"{name}_tokens_per_s": float(np.median(values)) for name, values in speeds.items()}
    figures |= {f"{name}_cpu_s": float(np.median(values)) for name, values in cpu_s.items()}
    ratios = {
        f"{name}_of_disk": float(np.median(np.array(speeds[name]) / np.array(speeds["disk"])))
        for name in ("s3_first", "s3_again")
    }
    size_bytes = sum(entry.size_bytes for entry in packed.files["shards"])
    return figures | ratios | checksum_figures(output) | {"tokens": read_tokens, "bytes": size_bytes}


if __name__ == "__main__":
    main()
