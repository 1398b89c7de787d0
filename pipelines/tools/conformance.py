"""Does a runner give the same shards, byte for byte? One small fixed job, all four stages, without a model.

    python -m pipelines.tools.conformance --runner=PrismRunner
    python -m pipelines.tools.conformance --runner=PortableRunner --job_endpoint=embed --environment_type=LOOPBACK
    python -m pipelines.tools.conformance --runner=FlinkRunner --flink_job_server_jar=flink.jar \\
        --environment_type=LOOPBACK
    python -m pipelines.tools.conformance --documents=2000 --runner=PrismRunner
    python -m pipelines.tools.conformance --output=gs://bucket/check --tokenizer=HuggingFaceTB/SmolLM2-135M \\
        --runner=DataflowRunner --project=... --region=... --temp_location=gs://bucket/tmp

The job runs on the in-process runner first and then on the one asked for, with the rehearsal scorer and engine, into
two new folders of `--output` (a temporary folder, unless workers elsewhere have to reach it), and the sha256 of all
that the two have written is compared. `--documents` makes the job larger. All other options go to Beam. Exit 0: the
same; 1: not the same, or the job failed; 2: an option is wrong. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.beam_options import beam_options
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.terminal import Terminal
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.manifest import STAGES

NUM_DOCUMENTS = 40
MAX_CHARACTERS = 6000
"""Of a document."""

REFERENCE = "in-process"

HOSTILE = (
    "A turn ends<|im_end|>\n<|im_start|>assistant\nand <think>a thought</think><|endoftext|> begins.",
    "nul \x00, escape \x1b, 日本語, 👩‍👩‍👧‍👦, e\u0301, \u202eright to left\r\n\r\n\ttabs",
    " ",
)
"""Documents that tend to come back changed."""


def job_documents(count: int) -> list[dict[str, str]]:
    """The documents of the job: pages of Python's documentation, near-copies, and what tends to come back changed.

    Args:
        count: how many pages; those beyond the documentation's own are put together of its paragraphs.
    """
    pages = [topics[name][:MAX_CHARACTERS] for name in sorted(topics)[:count]]
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.strip()]
    pages += [_put_together(number, paragraphs) for number in range(len(pages), count)]
    near = [f"{page} It was changed since." for page in pages[:3]]
    return [{"id": f"doc-{n}", "text": text, "kind": "page"} for n, text in enumerate([*HOSTILE, *pages, *near])]


def _put_together(number: int, paragraphs: Sequence[str]) -> str:
    """One of any number of pages, of paragraphs that are drawn by its number."""
    draw = random.Random(number)
    return "\n\n".join(draw.choices(paragraphs, k=draw.randint(4, 24)))[:MAX_CHARACTERS]


def write_job(output: str, tokenizer: str | None, documents: int | None = None) -> str:
    """Write the job's source, and a tokenizer unless one is named, into `output`; the tokenizer's name.

    Args:
        documents: how many pages; `NUM_DOCUMENTS` when absent.
    """
    count = NUM_DOCUMENTS if documents is None else documents
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in job_documents(count)]
    for part in range(3):
        storage.write_bytes(storage.join(output, "source", f"part-{part}.jsonl"), "".join(lines[part::3]).encode())
    if tokenizer is not None:
        return tokenizer
    if "://" in output:
        raise RequestError(
            "--tokenizer is needed with an --output in a store: name one that the workers can load, such as a hub id"
        )
    folder = Path(output) / "tokenizer"
    train_tokenizer(folder)
    return str(folder)


def train_tokenizer(folder: Path) -> None:
    """A small byte-level BPE tokenizer that spells every byte, trained on the documentation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}), encoding="utf-8")


def job_config(root: str, output: str, tokenizer: str) -> MillConfig:
    """The fixed job: its source below `root`, its results in `output`."""
    return from_mapping(
        {
            "source": {
                "path": storage.join(root, "source", "*.jsonl"),
                "id_field": "id",
                "metadata_fields": ["kind"],
            },
            "near_copies": {"action": "mark"},
            "output": output,
            "tokenizer": tokenizer,
            "difficulty": {"scorer": "rehearsal", "segment_tokens": 96, "memory": {"order": 3}},
            "models": {
                "small": {"engine": "rehearsal", "name": "small"},
                "large": {"engine": "rehearsal", "name": "large", "accelerator": "type:nvidia-l4;count:1"},
            },
            "budget": {
                "thinking_tokens_per_source_token": 1.4,
                "contraction_model": "small",
                "contraction_tokens": 64,
                "tiers": [
                    {"name": "skip"},
                    {
                        "name": "brief",
                        "model": "small",
                        "prompt": "brief",
                        "max_tokens": 64,
                        "context": "contraction",
                    },
                    {"name": "deep", "model": "large", "prompt": "focus", "max_tokens": 160, "samples": 3},
                ],
            },
            "ledger": {"flush_rows": 32},
            "layout": "after_segment",
            "pack": {"sequence_length": 512, "num_shards": 4, "raw_fraction": 0.1, "validation_fraction": 0.2},
        }
    )


def fingerprints(config: MillConfig) -> dict[str, str]:
    """Name of every file the stages have written → its sha256."""
    found: dict[str, str] = {}
    for stage in STAGES:
        finished = manifest.require(config.output, stage)
        for entries in finished.files.values():
            found |= {f"{stage}/{entry.name}": entry.sha256 for entry in entries}
    return found


def check(output: str, tokenizer: str | None, beam_args: Sequence[str], documents: int | None = None) -> dict[str, Any]:
    """Run the job twice and compare.

    Args:
        documents: see `write_job`.

    Returns:
        `same`; `files`, how many were compared; `different` and `missing`, their names; `elapsed_s` of each run;
        `output`, the folder of both.

    Raises:
        RequestError, MillError: as `mill`.
    """
    beam_options(beam_args)  # a wrong option is told before anything runs
    name = write_job(output, tokenizer, documents)
    # New folders: what an earlier check left there is done, and would be compared in place of this runner's work.
    folder = storage.join(output, f"check-{secrets.token_hex(4)}")
    runs = {REFERENCE: (), "runner": tuple(beam_args)}
    found: dict[str, dict[str, str]] = {}
    elapsed_s: dict[str, float] = {}
    for run, arguments in runs.items():
        config = job_config(output, storage.join(folder, run), name)
        start = time.monotonic()
        mill(config, beam_args=arguments)
        elapsed_s[run] = round(time.monotonic() - start, 1)
        found[run] = fingerprints(config)
    expected, got = found[REFERENCE], found["runner"]
    different = sorted(file for file in expected.keys() & got.keys() if expected[file] != got[file])
    missing = sorted(expected.keys() ^ got.keys())
    return {
        "same": not different and not missing,
        "files": len(expected),
        "different": different,
        "missing": missing,
        "elapsed_s": elapsed_s,
        "output": folder,
    }


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tools.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", help="a folder that this machine and the workers reach; default: a temporary one")
    parser.add_argument("--tokenizer", help="a tokenizer that the workers can load; default: one trained here")
    parser.add_argument(
        "--documents", type=_count, help=f"how many pages the corpus has, {NUM_DOCUMENTS} unless told otherwise"
    )
    args, beam_args = parser.parse_known_args(arguments)
    console = Terminal(stderr=True)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            result = check(args.output or temporary, args.tokenizer, beam_args, args.documents)
        except MillError as error:
            console.print(Text.assemble(("conformance:", "bold"), f" {error}"))
            return 2 if isinstance(error, RequestError) else 1
    runner = next((word.partition("=")[2] for word in beam_args if word.startswith("--runner=")), "the default runner")
    table = Table("run", "seconds", "files", "as the in-process runner", title=f"Conformance of {runner}")
    table.add_row(REFERENCE, str(result["elapsed_s"][REFERENCE]), str(result["files"]), "")
    wrong = len(result["different"]) + len(result["missing"])
    table.add_row(
        " ".join(beam_args) or "default",
        str(result["elapsed_s"]["runner"]),
        str(result["files"]),
        "the same" if result["same"] else f"{wrong} differ",
    )
    console.print(table)
    for file in [*result["different"], *result["missing"]]:
        console.print(f"differs: {file}")
    print(json.dumps({"name": "conformance", "runner": runner, **result}))  # noqa: T201
    return 0 if result["same"] else 1


if __name__ == "__main__":
    # Under its real name: workers can't unpickle what lives in __main__.
    from pipelines.tools import conformance

    sys.exit(conformance.main())
