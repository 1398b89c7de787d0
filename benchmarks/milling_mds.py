"""Reading MDS with mosaicml-streaming's own reader of a file, for `benchmarks.milling --mds-python`.

    PYTHON benchmarks/milling_mds.py FOLDER --rounds 3

A program by itself, since what mosaicml-streaming requires can't be installed beside thoughtmill. Reads the files on
two threads and adds up every id; the last line is a JSON object with the seconds of the quickest turn and the sum.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format import reader_from_json  # type: ignore[import-not-found]

THREADS = 2


def read(file: tuple[Path, dict[str, Any]]) -> int:
    """The sum of the ids of one MDS file."""
    folder, info = file
    shard = reader_from_json(str(folder.parent), folder.name, info)
    return sum(int(shard[i]["tokens"].sum(dtype=np.int64)) for i in range(len(shard)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    indexes = sorted(args.folder.rglob("index.json"))
    files = [(path.parent, info) for path in indexes for info in json.loads(path.read_text())["shards"]]
    seconds = []
    for _ in range(args.rounds + 1):  # the first brings everything into the page cache
        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            total = sum(pool.map(read, files))
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"elapsed_s": min(seconds), "sum": total}))


if __name__ == "__main__":
    main()
