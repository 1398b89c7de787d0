"""Our side of `benchmarks.milling`, in a process of its own: the four stages over raw text, no scorer, no thoughts.

With `--everything`: a scorer, an n-gram memory, two models of which one contracts documents, and traces that are chosen
by their gain and looked through for repeats; scorer and models rehearse.

    python -m benchmarks.milling_ours SOURCE OUTPUT --tokenizer NAME --shards 2 --beam-args=--direct_num_workers=2
    python -m benchmarks.milling_ours SOURCE OUTPUT --tokenizer NAME --without-fast

What is timed is `mill` from its call to `_SUCCESS`, Beam's pipelines built, its workers started and every file synced.
The last line is a JSON object of what it took: seconds, processor seconds and the largest process, of this one (which
is Beam's runner, and without other workers the worker too) and of the workers it started.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peaks import Peaks
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.yaml_config import from_mapping

NOTHING_THINKS = {"policy": "fixed", "fixed_tier": "plain", "thinking_tokens": 1, "tiers": [{"name": "plain"}]}
"""A budget: documents are tokenized and packed."""

SEQUENCE_LENGTH = 4096
POLL_S = 0.25


def raw_config(source: str, output: str, tokenizer: str, num_shards: int) -> MillConfig:
    """A run that tokenizes and packs JSON lines, and nothing else."""
    return from_mapping(
        {
            "source": {"path": source, "id_field": "id"},
            "output": output,
            "tokenizer": tokenizer,
            "difficulty": {"scorer": "none"},
            "budget": NOTHING_THINKS,
            "pack": {"sequence_length": SEQUENCE_LENGTH, "num_shards": num_shards},
            "workers": 1,  # where Beam's options say nothing
        }
    )


def full_config(source: str, output: str, tokenizer: str, num_shards: int) -> MillConfig:
    """A run with all that the local runner might hold in memory: what waits for an n-gram memory, for contractions, for
    controls, for repeats, and for one of two models. From 24 MB of text on the memory is as large as it may get."""
    return from_mapping(
        {
            "source": {"path": source, "id_field": "id"},
            "output": output,
            "tokenizer": tokenizer,
            "difficulty": {"scorer": "rehearsal", "segment_tokens": 512, "memory": {"max_ngrams": 1 << 20}},
            "models": {name: {"engine": "rehearsal", "name": name} for name in ("small", "large")},
            "budget": {
                "thinking_tokens_per_source_token": 0.5,
                "contraction_model": "small",
                "contraction_tokens": 64,
                "tiers": [
                    {"name": "skip"},
                    {
                        "name": "brief",
                        "model": "small",
                        "prompt": "brief",
                        "max_tokens": 256,
                        "context": "contraction",
                    },
                    {"name": "deep", "model": "large", "prompt": "expert", "max_tokens": 1024, "samples": 2},
                ],
            },
            "select": {"value": "continuation_gain", "repeats": {}},
            "pack": {"sequence_length": SEQUENCE_LENGTH, "num_shards": num_shards},
            "workers": 1,  # where Beam's options say nothing
        }
    )


def cpu_seconds() -> float:
    """Processor seconds of this process and of those it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(config: MillConfig, beam_args: list[str]) -> dict[str, Any]:
    """Mill; what it took."""
    cpu_s, began = cpu_seconds(), time.perf_counter()
    with Peaks("_worker_main", poll_s=POLL_S) as workers:
        manifests = mill(config, beam_args=beam_args)
    elapsed_s = time.perf_counter() - began
    return {
        "elapsed_s": elapsed_s,
        "cpu_s": cpu_seconds() - cpu_s,
        "tokens": manifests["pack"].counts["tokens_source"],
        "documents": manifests["score"].counts["documents"],
        "runner_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "worker_peak_bytes": workers.largest_bytes,
        "stages_s": {stage: finished.elapsed_s for stage, finished in manifests.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--beam-args", default="", help="separated by commas")
    parser.add_argument("--everything", action="store_true", help="all that a corpus can wait for; see above")
    parser.add_argument("--without-fast", action="store_true", help="as if the extra fast were not installed")
    args = parser.parse_args()
    beam_args = [word for word in args.beam_args.split(",") if word]
    with tempfile.TemporaryDirectory() as folder:
        if args.without_fast:
            hide("gigatoken", Path(folder))
        make = full_config if args.everything else raw_config
        print(json.dumps(run(make(args.source, args.output, args.tokenizer, args.shards), beam_args)))


def hide(package: str, folder: Path) -> None:
    """Have imports of a package fail, here and in the workers that are started from here."""
    (folder / f"{package}.py").write_text("raise ImportError")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


if __name__ == "__main__":
    main()
