"""A large ledger in an object store: listing what is new, looking at its keys, compacting it.

    python -m benchmarks.ledger --rows 1000000
    python -m benchmarks.ledger --rows 10000000

Made-up rows of some 300 bytes, one in a hundred of them there twice, in parts of `--rows-per-part`, in moto's S3 over
HTTP on the loopback, which is a process of its own on the same cores. Each step runs in a fresh process, whose peak is
what the kernel kept of it (VmHWM). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from augment.ledger.compaction import compact
from augment.ledger.keys import KEY_ROWS
from augment.ledger.parts import ledger_parts, write_table
from augment.ledger.recent import CLOCK_SKEW_MS, FinishedSince
from benchmarks.machine import conclude
from benchmarks.peaks import Peaks, peak_bytes
from benchmarks.reading_stores import VARIABLES, serve
from sharding.records.families import LEDGER_SCHEMA
from sharding.storage.files import filesystem

BUCKET = "s3://ledger"
URL = f"{BUCKET}/ledger"
TEXT_BYTES = 160
TWICE = 100
"""One row in so many is there twice."""

POLL_S = 0.05

Figures = dict[str, Any]


def made_up(first: int, rows: int) -> pa.Table:
    """Rows of the ledger, by the number of the first."""
    numbers = np.arange(first, first + rows)
    texts = np.random.default_rng(first).bytes(rows * TEXT_BYTES // 2).hex()
    keys = [f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}" for number in numbers.tolist()]
    columns: dict[str, Any] = {
        "key": [f"{key}-0" for key in keys],
        "request_key": keys,
        "segment_id": [f"document-{number}#0" for number in numbers.tolist()],
        "text": [texts[at : at + TEXT_BYTES] for at in range(0, rows * TEXT_BYTES, TEXT_BYTES)],
        "token_ids": [[1, 2, 3]] * rows,
        "thought_tokens": np.full(rows, 40, np.int32),
        "finished_at": 1.7e9 + numbers,
        "sum_logprobs": pa.nulls(rows, pa.float64()),
        "made_from": [[]] * rows,
    }
    zeros = {"string": "", "int32": 0, "double": 0.0}
    for field in LEDGER_SCHEMA:
        if field.name not in columns:
            columns[field.name] = [zeros[str(field.type)]] * rows
    return pa.table({name: columns[name] for name in LEDGER_SCHEMA.names}, LEDGER_SCHEMA)


def write(rows: int, rows_per_part: int) -> Figures:
    """Fill the ledger; so many of its last part's rows are those of the first."""
    began = time.perf_counter()
    for first in range(0, rows, rows_per_part):
        table = made_up(first, min(rows_per_part, rows - first))
        again = made_up(max(0, first - rows_per_part), len(table) // TWICE)
        write_table(URL, pa.concat_tables([table, again]) if first else table)
    return {"write_s": time.perf_counter() - began}


def listing(rows: int, rows_per_part: int) -> Figures:
    """List all parts, and what has come in the last minutes: here, all."""
    began = time.perf_counter()
    found = ledger_parts(URL)
    whole_s = time.perf_counter() - began
    since_ms = time.time_ns() // 1_000_000 - 2 * CLOCK_SKEW_MS
    began = time.perf_counter()
    new = ledger_parts(URL, since_ms)
    return {"parts": len(found), "list_s": whole_s, "new_parts": len(new), "list_new_s": time.perf_counter() - began}


def looking(rows: int, rows_per_part: int) -> Figures:
    """What each generating process does once for every part."""
    before = peak_bytes(os.getpid())
    finished = FinishedSince(URL, 1)
    began = time.perf_counter()
    finished.refresh()
    elapsed_s = time.perf_counter() - began
    key = made_up(rows - 1, 1)["key"][0].as_py()
    if finished.tokens(key) != 40:
        raise AssertionError("a generation that is there was not found")
    sizes = _sizes()
    return {
        "keys_s": elapsed_s,
        "keys_bytes_per_row": sizes[".keys"] / rows,
        "part_bytes_per_row": sizes[".arrow"] / rows,
        "looking_grew_bytes": peak_bytes(os.getpid()) - before,
    }


def compacting(rows: int, rows_per_part: int) -> Figures:
    """Compact it, in as many processes as there are cores."""
    with Peaks(poll_s=POLL_S) as peaks:
        began = time.perf_counter()
        done = compact(URL)
        elapsed_s = time.perf_counter() - began
    if (done.rows_after, done.rows_before > rows) != (rows, True):
        raise AssertionError(f"{done} of {rows:,} rows")
    return {
        "compact_s": elapsed_s,
        "compact_parts_after": done.parts_after,
        "compact_peak_bytes": peak_bytes(os.getpid()),
        "compact_worker_peak_bytes": peaks.largest_bytes,
    }


def _sizes() -> dict[str, int]:
    fs, path = filesystem(URL)
    sizes = dict.fromkeys((".keys", ".arrow"), 0)
    for name, info in fs.find(path, detail=True).items():
        sizes[name[name.rindex(".") :]] += info["size"]
    return sizes


def _run(step: Callable[[int, int], Figures], rows: int, rows_per_part: int, found: Any) -> None:
    try:
        found.put(step(rows, rows_per_part))
    except BaseException as error:
        found.put(repr(error))
        raise


def in_process(step: Callable[[int, int], Figures], rows: int, rows_per_part: int) -> Figures:
    """A step in a fresh process.

    Raises:
        RuntimeError: it failed.
    """
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    child = context.Process(target=_run, args=(step, rows, rows_per_part, found))
    child.start()
    figures = found.get()
    child.join()
    if isinstance(figures, str):
        raise RuntimeError(f"{step.__name__} failed: {figures}")
    return dict(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-part", type=int, default=5_000, help="as docs/scale.md recommends to flush")
    args = parser.parse_args()
    console = Console()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    os.environ |= VARIABLES | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{here.recv()}"}
    figures: Figures = {"rows": args.rows}
    try:
        filesystem(BUCKET)[0].mkdir("ledger")
        for step in (write, listing, looking, compacting):
            figures |= in_process(step, args.rows, args.rows_per_part)
    finally:
        here.send(None)
        server.terminate()
    table = Table(
        "", "", title=f"A ledger of {args.rows:,} rows in S3 on the loopback; keys are {KEY_ROWS.itemsize} bytes"
    )
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
    console.print(table)
    conclude(console, "ledger", figures, ("pyarrow", "numpy", "s3fs", "moto"))


if __name__ == "__main__":
    main()
