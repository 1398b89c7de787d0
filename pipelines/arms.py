"""Control arms: corpora for an ablation, of one source, one budget and one ledger, with equal training tokens.

    score, once ─► raw: packed without thoughts ─► its number of sequences
                   every other arm: augment, select, pack, cut to that number ─► arms.json

Every arm is an output of its own under OUTPUT/arms, made by the four stages as any other run: `verify`, `status`, the
card and the exports work on it. What differs between two arms is what `ARMS` says and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from difficulty.budget.histogram import DifficultyHistogram
from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.documents.reader import read_allocation
from pipelines.joints import allocation_of, prices
from pipelines.plan.learned import find_gain
from pipelines.run import mill
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from pipelines.stage import Did

RAW = "raw"
LEARNED = "learned"


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes:
        about: what it is.
        derive: (config as a mapping, the run's config) → nothing; makes the mapping, which has the policy adaptive,
            that of the arm.
        needs: arms that must be made before, since this one goes by what they came to.
    """

    about: str
    derive: Callable[[dict[str, Any], MillConfig], None] = lambda tree, config: None
    needs: tuple[str, ...] = ()


def _raw(tree: dict[str, Any], config: MillConfig) -> None:
    skip = _skipping(config)
    tree["budget"] |= {"policy": "fixed", "fixed_tier": skip, "tiers": [{"name": skip}]}


def _uniform(tree: dict[str, Any], config: MillConfig) -> None:
    tree["budget"] |= {"policy": "uniform"}


def _learned(tree: dict[str, Any], config: MillConfig) -> None:
    tree["budget"] |= {"policy": LEARNED}


def _rephrase(tree: dict[str, Any], config: MillConfig) -> None:
    for tier in tree["budget"]["tiers"]:
        tier["prompt"] = tier["prompt"] and REPHRASE_PROMPT


def _shuffled(tree: dict[str, Any], config: MillConfig) -> None:
    tree["select"] |= {"shuffle": True}


def _dose(share: float, tree: dict[str, Any], config: MillConfig) -> None:
    """A share of the budget, all of it for one tier: with several, a segment's tier would change with the dose."""
    number = config.budget.key.removeprefix("budget.")
    told = tree["budget"][number] * share
    tree["budget"][number] = max(1, round(told)) if number == "thinking_tokens" else told
    costs = {tier.name: tier.cost(config.budget.unit, prices(config)) for tier in config.budget.tiers}
    dearest = max(costs, key=lambda name: costs[name])
    tiers = [tier for tier in tree["budget"]["tiers"] if tier["name"] == dearest]
    tree["budget"]["tiers"] = [{"name": _skipping(config)}, *tiers]


def _skipping(config: MillConfig) -> str:
    return next((tier.name for tier in config.budget.tiers if tier.skips), "skip")


ARMS = {
    RAW: Arm("the source alone", _raw),
    "uniform": Arm("the budget dealt out by lot", _uniform),
    "adaptive": Arm("the budget spent by difficulty"),
    "rephrase": Arm("as adaptive, with every prompt replaced by one that asks to rephrase", _rephrase),
    LEARNED: Arm("the budget spent by the gain that a pilot leads to expect", _learned),
    "uniform_matched": Arm("as uniform, with as many thought tokens as adaptive", _uniform, ("uniform", "adaptive")),
    "shuffled": Arm("as adaptive, each trace replaced by that of another document", _shuffled),
    **{
        f"dose_{share:g}": Arm(
            f"{share:g} of the budget by difficulty, all for the dearest tier", partial(_dose, share)
        )
        for share in (0.25, 0.5, 1.0, 2.0)
    },
}
"""The arms, in the order in which they are made. One more is a line here."""

DEFAULT_ARMS = (RAW, "uniform", "adaptive", "rephrase")

REPHRASE_PROMPT = "rephrase"
MATCHED_WITHIN = 0.001
"""The thought tokens that uniform_matched is planned for are so near to adaptive's, as a share of these."""
_TRIALS = 60
SPLITS = ("train", "validation")


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm came to.

    Attributes:
        output: its folder.
        sequences: packed rows by split, padding rows not counted: equal in all arms.
        training_tokens: sequences times their length.
        source_tokens, thought_tokens, delimiter_tokens: in the sequences; the rest is padding.
        documents: that begin in the sequences, copies counted.
        generation_tokens: tokens of the generations that the arm asked for, found in the ledger or made.
        generations: how many they are.
        sequences_left_out: packed rows beyond those of the raw arm; source_tokens_left_out and
            thought_tokens_left_out are what was in them.
        rehearsal: not for training.
    """

    output: str
    sequences: dict[str, int]
    training_tokens: int
    documents: int
    source_tokens: int
    thought_tokens: int
    delimiter_tokens: int
    generation_tokens: int
    generations: int
    sequences_left_out: int
    source_tokens_left_out: int
    thought_tokens_left_out: int
    rehearsal: bool


def mill_arms(
    config: MillConfig,
    arms: Sequence[str] | None = None,
    *,
    beam_args: Sequence[str] = (),
    replace: bool = False,
    whole: bool = False,
    on_stage: Callable[[str, str, Manifest | None, Did | None], None] = lambda arm, stage, manifest, did: None,
) -> dict[str, ArmResult]:
    """Make the arms that aren't done, and write OUTPUT/arms/arms.json.

    Args:
        config: the run whose arms these are; its output is scored, and not packed.
        arms: names of `ARMS`; raw is always made, since it says how long the others are. None: `DEFAULT_ARMS`, and
            learned where a pilot has explored.
        beam_args: Beam options.
        replace: make stages again that another config has made.
        whole: leave every arm as long as it comes; by default all are cut to the sequences of raw.
        on_stage: as `mill`'s, with the name of the arm before ("" for the scores that all share).

    Returns:
        Name of each arm → what it came to.

    Raises:
        RequestError: an arm is not known, or the request was wrong otherwise.
        MillError: a stage failed, or an arm is shorter than the raw one.
    """
    for name in arms or ():
        if name not in ARMS:
            raise RequestError(f"arms: {name!r} is not one of {', '.join(ARMS)}")
    if arms is None:
        explored = find_gain(arm_config(config, LEARNED)) is not None
        arms = (*DEFAULT_ARMS, LEARNED) if explored else DEFAULT_ARMS

    def make(name: str, arm: MillConfig, **stages: Any) -> dict[str, Manifest]:
        return mill(arm, beam_args=beam_args, replace=replace, on_stage=partial(on_stage, name), **stages)

    needed = {RAW, *arms, *(other for name in arms for other in ARMS[name].needs)}
    wanted = [name for name in ARMS if name in needed]
    arm_config(config, wanted[-1])  # a mistake shows before the first arm is made
    if config.scored is None:
        make("", config, stages=("score",))
    results: dict[str, ArmResult] = {}
    for name in wanted:
        arm = arm_config(config, name, results[RAW].sequences if name != RAW and not whole else None)
        if name == "uniform_matched":
            arm = matched(arm, results["uniform"], results["adaptive"])
        results[name] = result_of(arm, make(name, arm))
        if not whole and results[name].sequences != results[RAW].sequences:
            raise MillError(
                f"arm {name}: {results[name].sequences} sequences, fewer than the {results[RAW].sequences} of the arm "
                f"{RAW}: too little thinking to compare; raise {config.budget.key}"
            )
    storage.write_json(
        Output(config.output).arms,
        {name: msgspec.to_builtins(result) for name, result in results.items()},
    )
    return results


def arm_config(config: MillConfig, name: str, max_rows: Mapping[str, int] | None = None) -> MillConfig:
    """The config of an arm.

    Args:
        config: the run whose arm it is.
        name: one of `ARMS`.
        max_rows: sequences of each split to cut it to; None: as the config says.

    Raises:
        RequestError: the config can't have this arm.
    """
    tree = yaml_config.to_mapping(config)
    tree["output"] = Output(config.output).arm(name)
    tree["scored"] = config.scored or config.output
    tree["ledger"]["path"] = config.ledger_url
    tree["card"]["name"] = f"{config.card.name}, arm {name}"
    tree["budget"] |= {"policy": "adaptive", "fixed_tier": None, "pilot_segments": None}
    ARMS[name].derive(tree, config)
    if max_rows is not None:
        tree["pack"]["max_rows"] = dict(max_rows)
    return yaml_config.from_mapping(tree, f"arm {name}")


def matched(arm: MillConfig, uniform: ArmResult, adaptive: ArmResult) -> MillConfig:
    """The config of a uniform arm whose budget is such that its corpus has as many thought tokens as the adaptive one.

    The uniform arm tells what a segment of each tier brings in thought tokens, whatever its difficulty; how many get
    each tier follows from the histogram of difficulty and the budget, which is tried.

    Args:
        arm: the config of a uniform arm.
        uniform, adaptive: what these arms came to.

    Raises:
        RequestError: no budget comes to as many.
    """
    selected, scored = (manifest.require(uniform.output, stage) for stage in ("select", "score"))
    plan = read_allocation(uniform.output, scored)
    assert plan is not None  # its augment stage has made it
    histogram = DifficultyHistogram.from_json(scored.facts["histogram"])
    wanted = adaptive.thought_tokens + adaptive.thought_tokens_left_out
    kept = {row["tier"]: row["kept_thought_tokens"] for row in selected.facts["account"]}
    # In the tokens of the corpus; the account counts those of the generator.
    spelled = (uniform.thought_tokens + uniform.thought_tokens_left_out) / max(1, sum(kept.values()))
    brings = {tier.name: spelled * kept.get(tier.name, 0) / tier.segments for tier in plan.tiers if tier.segments}
    number = arm.budget.key.removeprefix("budget.")
    budget = float(getattr(arm.budget, number))
    for _ in range(_TRIALS):
        tried = _with_budget(arm, number, budget)
        tiers = allocation_of(tried, histogram, scored.counts["source_tokens"]).tiers
        found = sum(tier.segments * brings.get(tier.name, 0.0) for tier in tiers)
        if not found or abs(found - wanted) <= MATCHED_WITHIN * wanted:
            break
        budget *= min(2.0, max(0.5, wanted / found))
    return tried


def _with_budget(arm: MillConfig, number: str, budget: float) -> MillConfig:
    tree = yaml_config.to_mapping(arm)
    tree["budget"][number] = max(1, round(budget)) if number == "thinking_tokens" else budget
    return yaml_config.from_mapping(tree, "arm uniform_matched")


def result_of(arm: MillConfig, stages: Mapping[str, Manifest]) -> ArmResult:
    """What an arm came to, from the manifests of its stages."""
    packed, augmented = stages["pack"].counts, stages["augment"].counts
    sequences = {split: packed.get(f"rows_{split}", 0) for split in SPLITS if f"documents_{split}" in packed}
    return ArmResult(
        output=arm.output,
        sequences=sequences,
        training_tokens=sum(sequences.values()) * arm.pack.sequence_length,
        documents=(
            packed["documents"]
            - packed["documents_empty"]
            + packed["document_copies"]
            - packed["rows_left_out_documents"]
        ),
        source_tokens=packed["tokens_source"],
        thought_tokens=packed["tokens_thought"],
        delimiter_tokens=packed["tokens_delimiter"],
        generation_tokens=augmented["thought_tokens"],
        generations=augmented["generations"],
        sequences_left_out=packed["rows_left_out"],
        source_tokens_left_out=packed["rows_left_out_tokens_source"],
        thought_tokens_left_out=packed["rows_left_out_tokens_thought"],
        rehearsal=stages["pack"].rehearsal,
    )


def render(results: Mapping[str, ArmResult]) -> Table:
    """The arms beside each other, for a terminal."""
    columns: dict[str, Callable[[ArmResult], int]] = {
        "sequences": lambda arm: sum(arm.sequences.values()),
        "training tokens": lambda arm: arm.training_tokens,
        "documents": lambda arm: arm.documents,
        "source tokens": lambda arm: arm.source_tokens,
        "thought tokens": lambda arm: arm.thought_tokens,
        "generation tokens": lambda arm: arm.generation_tokens,
        "sequences left out": lambda arm: arm.sequences_left_out,
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", style="bold")
    for name in results:
        table.add_column(name, justify="right", overflow="fold")
    for what, value in columns.items():
        table.add_row(what, *(f"{value(arm):,}" for arm in results.values()))
    return table
