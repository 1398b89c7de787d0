"""How often a plan's forecast of the gain holds what the run then measures, after a pilot that explored.

    python -m benchmarks.intervals_gain [SEEDS]

For each seed a corpus of its own, half of whose documents are of a kind that thinking helps (see `built_in_gain`), with
noise as strong; rehearsal scorer and engine. It is scored, explored with 60 segments, planned, and run under the
policies adaptive and learned. Held is: the 90% interval of `held-out gain` that the plan gives for a tier has the mean
that the account of the run gives for it. Also: how often the interval of the frontier holds the gain that is built in,
that of its null 0; and what share of learned's segments are of the kind that thinking helps. The last line is one JSON
object with the figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.built_in_gain import GAIN_NATS, WORD
from benchmarks.machine import conclude
from pipelines.config import MillConfig
from pipelines.plan import make_plan
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.records.families import REQUESTS
from sharding.records.types import Request
from sharding.storage import manifest, read_records

SEEDS = 20
DOCUMENTS = 100
TRIED = 60
POLICIES = ("adaptive", "learned")


def corpus(seed: int, documents: int = DOCUMENTS) -> list[dict[str, str]]:
    """Half of the documents are puzzles; of one to eight segments each."""
    random = np.random.default_rng(seed)
    kinds = (f"A {WORD} of {{0}} and {{1}}, which is {{2}}. ", "A table of {0} and {1}, that says {2}. ")
    return [
        {
            "id": f"{seed}-{i}",
            "text": "".join(
                kinds[i % 2].format(*random.integers(0, 10_000, 3)) for _ in range(int(random.integers(4, 40)))
            ),
        }
        for i in range(documents)
    ]


def config_of(folder: Path, tokenizer: str, policy: str, samples: int = 2) -> MillConfig:
    """A run over `folder/source.jsonl`."""
    tree: dict[str, Any] = {
        "source": {"path": str(folder / "source.jsonl"), "id_field": "id"},
        "output": str(folder / "out"),
        "tokenizer": tokenizer,
        "difficulty": {"scorer": "rehearsal", "segment_tokens": 64},
        "models": {"pretend": {"engine": "rehearsal", "name": "pretend"}},
        "budget": {
            "policy": policy,
            "thinking_tokens_per_source_token": 0.4,
            "tiers": [
                {"name": "skip"},
                {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 48},
                {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 128, "samples": samples},
            ],
        },
        "select": {"value": "benchmarks.built_in_gain:BuiltInGain"},
        "pack": {"sequence_length": 512, "num_shards": 1},
    }
    return from_mapping(tree)


def held(interval: dict[str, float], truth: float) -> bool:
    """Whether an interval holds it."""
    return interval["low"] <= truth <= interval["high"]


def trial(folder: Path, tokenizer: str, seed: int) -> dict[str, Any]:
    """One corpus: by name whether an interval held, and the share of learned's segments that gain."""
    lines = [json.dumps(document) for document in corpus(seed)]
    (folder / "source.jsonl").write_text("\n".join(lines), encoding="utf-8")
    first = config_of(folder, tokenizer, POLICIES[0])
    mill(first, stages=["score"])
    found: dict[str, Any] = {}
    for policy in POLICIES:
        config = config_of(folder, tokenizer, policy)
        explore = policy == POLICIES[0]
        plan = make_plan(config, pilot=TRIED * explore, explore=explore, say=lambda _: None)
        mill(config, stages=["augment", "select"], replace=True)
        account = manifest.require(config.output, "select").facts["account"]
        measured = {row["tier"]: row["gains"]["heldout"]["mean"] for row in account if "gains" in row}
        for tier in plan["augment"]["tiers"]:
            if tier["gain_nats"] is not None and tier["name"] in measured:
                found[f"{policy}.{tier['name']}"] = held(tier["gain_nats"], measured[tier["name"]])
        if explore:
            share = _share_of_puzzles(config, "score")
            for tier in plan["frontier"]["tiers"]:
                found[f"frontier.{tier['name']}"] = held(tier["gain_nats"], share * GAIN_NATS[tier["name"]])
                found[f"null.{tier['name']}"] = held(tier["null_nats"], 0.0)
    found["puzzles"] = _share_of_puzzles(config_of(folder, tokenizer, "learned"), "augment")
    return found


def _share_of_puzzles(config: MillConfig, stage: str) -> float:
    """The share of a stage's segments that are of puzzles: of those that were scored, or asked for."""
    made = manifest.require(config.output, stage)
    if stage == "augment":
        urls, columns = manifest.file_urls(config.output, made, REQUESTS.name), ["doc_id"]
        names = [request.doc_id for url in urls for request in read_records(url, Request, columns)]
    else:
        from sharding.records.types import ScoredSegment

        urls = manifest.file_urls(config.output, made, "segments")
        names = [segment.doc_id for url in urls for segment in read_records(url, ScoredSegment, ["doc_id"])]
    return float(np.mean([int(name.rpartition("-")[2]) % 2 == 0 for name in names]))


def tokenizer_in(folder: Path) -> str:
    """A byte-level tokenizer, trained here."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    made.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}), encoding="utf-8")
    return str(folder)


def main(seeds: int = SEEDS) -> None:
    console = Console()
    trials = []
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_in(Path(scratch) / "tokenizer")
        for seed in range(seeds):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            trials.append(trial(folder, tokenizer, seed))
            console.print(f"{seed}: {trials[-1]}", highlight=False)
    table = Table("interval", "held", "of", title="Forecasts of the gain after an exploring pilot")
    figures: dict[str, float] = {}
    for name in sorted({name for one in trials for name in one if name != "puzzles"}):
        own = [one[name] for one in trials if name in one]
        table.add_row(name, f"{np.mean(own):.0%}", str(len(own)))
        figures[f"held_{name}"] = float(np.mean(own))
    forecasts = [one[n] for one in trials for n in one if n.startswith(POLICIES)]
    figures["held_forecasts"] = float(np.mean(forecasts))
    figures["learned_on_puzzles"] = float(np.mean([one["puzzles"] for one in trials]))
    console.print(table)
    conclude(console, "intervals_gain", figures, ("numpy", "apache-beam"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
