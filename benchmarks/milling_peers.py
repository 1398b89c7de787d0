"""The other sides of `benchmarks.milling`, each in a process of its own over the same JSON lines.

    python -m benchmarks.milling_peers bare SOURCE_FOLDER OUTPUT --tokenizer FOLDER
    python -m benchmarks.milling_peers datatrove SOURCE_FOLDER OUTPUT --tokenizer FOLDER

bare       `tokenizers`' encode_batch_fast on texts that are in memory already, in batches of a megabyte; what it gives
           is dropped
datatrove  JsonlReader and DocumentTokenizer in two worker processes, one task each, then DocumentTokenizerMerger, which
           shuffles; with the end-of-text token and everything else as it comes
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.milling_ours import cpu_seconds
from sharding.storage.arrow_files import chunks

BATCH_CHARACTERS = 1 << 20
END_OF_TEXT = "<|endoftext|>"
WORKERS = 2


def run_bare(source: Path, output: Path, tokenizer: Path) -> dict[str, Any]:
    """The tokenizer alone."""
    from tokenizers import Tokenizer

    bare = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [json.loads(line)["text"] for path in sorted(source.glob("*.jsonl")) for line in path.open("rb")]
    bare.encode_batch_fast(texts[:8], add_special_tokens=False)  # its threads are there
    cpu_s, began = cpu_seconds(), time.perf_counter()
    tokens = 0
    for batch in chunks(texts, BATCH_CHARACTERS, len):
        tokens += sum(map(len, bare.encode_batch_fast(batch, add_special_tokens=False)))
    return {"elapsed_s": time.perf_counter() - began, "cpu_s": cpu_seconds() - cpu_s, "tokens": tokens}


def run_datatrove(source: Path, output: Path, tokenizer: Path) -> dict[str, Any]:
    """datatrove's tokenizer and merger."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger
    from loguru import logger

    logger.remove()
    steps = [
        JsonlReader(str(source), glob_pattern="*.jsonl"),
        DocumentTokenizer(
            str(output / "tokenized"),
            tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
            local_working_dir=str(output / "working"),
            eos_token=END_OF_TEXT,
            seed=0,
        ),
    ]
    merge = [DocumentTokenizerMerger(str(output / "tokenized"), str(output / "merged"), "all", seed=0, progress=False)]
    cpu_s, began = cpu_seconds(), time.perf_counter()
    # Spawned, so that the workers are waited for here and their processor seconds are known.
    LocalPipelineExecutor(
        steps, tasks=WORKERS, workers=WORKERS, logging_dir=str(output / "logs"), start_method="spawn"
    ).run()
    LocalPipelineExecutor(merge, tasks=1, logging_dir=str(output / "logs-merge")).run()
    elapsed_s = time.perf_counter() - began
    written = sum(path.stat().st_size for path in (output / "merged").glob("*.ds")) // 2
    ends = sum(path.stat().st_size for path in (output / "merged").glob("*.index")) // 8
    return {"elapsed_s": elapsed_s, "cpu_s": cpu_seconds() - cpu_s, "tokens": written - ends}


SIDES = {"bare": run_bare, "datatrove": run_datatrove}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps(SIDES[args.side](args.source, args.output, args.tokenizer)))


if __name__ == "__main__":
    main()
