"""Control arms: corpora for an ablation, of one source, one budget and one ledger, with equal training tokens.

    score, once ─► raw: packed without thoughts ─► its number of sequences
                   uniform, adaptive, rephrase: augment, select, pack, cut to that number ─► arms.json

Every arm is an output of its own under OUTPUT/arms, made by the four stages as any other run: `verify`, `status`, the
card and the exports work on it. What differs between two arms is what `ARMS` says and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.run import mill
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from pipelines.stage import Did

RAW = "raw"
ARMS = {
    RAW: "the source alone",
    "uniform": "the budget dealt out by lot",
    "adaptive": "the budget spent by difficulty",
    "rephrase": "as adaptive, with every prompt replaced by one that asks to rephrase",
}
"""The arms and what they are, in the order in which they are made."""

REPHRASE_PROMPT = "rephrase"
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
    arms: Sequence[str] = tuple(ARMS),
    *,
    beam_args: Sequence[str] = (),
    replace: bool = False,
    on_stage: Callable[[str, str, Manifest | None, Did | None], None] = lambda arm, stage, manifest, did: None,
) -> dict[str, ArmResult]:
    """Make the arms that aren't done, and write OUTPUT/arms/arms.json.

    Args:
        config: the run whose arms these are; its output is scored, and not packed.
        arms: names of `ARMS`; raw is always made, since it says how long the others are.
        beam_args: Beam options.
        replace: make stages again that another config has made.
        on_stage: as `mill`'s, with the name of the arm before ("" for the scores that all share).

    Returns:
        Name of each arm → what it came to.

    Raises:
        RequestError: an arm is not known, or the request was wrong otherwise.
        MillError: a stage failed, or an arm is shorter than the raw one.
    """
    for name in arms:
        if name not in ARMS:
            raise RequestError(f"arms: {name!r} is not one of {', '.join(ARMS)}")

    def make(name: str, arm: MillConfig, **stages: Any) -> dict[str, Manifest]:
        return mill(arm, beam_args=beam_args, replace=replace, on_stage=partial(on_stage, name), **stages)

    wanted = [name for name in ARMS if name == RAW or name in arms]
    arm_config(config, wanted[-1])  # a mistake shows before the first arm is made
    if config.scored is None:
        make("", config, stages=("score",))
    results: dict[str, ArmResult] = {}
    for name in wanted:
        arm = arm_config(config, name, results[RAW].sequences if name != RAW else None)
        results[name] = result_of(arm, make(name, arm))
        if results[name].sequences != results[RAW].sequences:
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
    budget = tree["budget"]
    if name == RAW:
        skip = next((tier.name for tier in config.budget.tiers if tier.skips), "skip")
        budget |= {"policy": "fixed", "fixed_tier": skip, "tiers": [{"name": skip}]}
    else:
        budget |= {"policy": "uniform" if name == "uniform" else "adaptive", "fixed_tier": None}
    if name == "rephrase":
        for tier in budget["tiers"]:
            tier["prompt"] = tier["prompt"] and REPHRASE_PROMPT
    if max_rows is not None:
        tree["pack"]["max_rows"] = dict(max_rows)
    return yaml_config.from_mapping(tree, f"arm {name}")


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
