"""What an arm came to, and the arms beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from rich.table import Table

from pipelines.config import MillConfig
from sharding.storage.manifest import Manifest

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
