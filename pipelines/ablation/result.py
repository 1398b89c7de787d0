"""`ablation.json`: all that an ablation came to, for the card, the report and whoever reads it later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from pipelines.ablation.curves import Curve
from pipelines.ablation.verdict import Verdict
from sharding import storage
from sharding.storage import manifest
from sharding.storage.json_files import Number, read_json
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

MAX_BYTES = 64 << 20


class ArmTrained(msgspec.Struct, frozen=True, kw_only=True):
    """What the students of an arm were trained on.

    Attributes:
        arm: its name.
        output: its folder.
        packed: digest of its pack manifest.
        tokens: training tokens of each student, padding counted.
        epochs: how often they saw the arm.
        source_tokens, thought_tokens: in the arm's train and validation shards.
    """

    arm: str
    output: str
    packed: str
    tokens: int
    epochs: Number
    source_tokens: int
    thought_tokens: int


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the value of a trace foretells what training on it does.

    Attributes:
        arm: whose traces and student.
        traces, documents: how many.
        spearman: rank correlation of the traces' gains with what a step of training on each took from the loss on
            held-out text.
        low, high: a 95% interval over documents; None of too few.
        null: the same correlation with the gains dealt out anew, the 95% range of it: what chance brings.
    """

    arm: str
    traces: int
    documents: int
    spearman: Number
    low: Number | None
    high: Number | None
    null: tuple[Number, Number]


class Dose(msgspec.Struct, frozen=True, kw_only=True):
    """How much thinking pays: see `pipelines.ablation.dose`.

    Attributes:
        doses: thought tokens for each source token, by arm, ascending.
        scores: mean score at the end, by arm.
        monotone: whether no larger dose has a lower mean than a smaller one.
        enough: the dose beyond which more no longer pays; None where that lies beyond the largest.
        low, high: its 95% interval over seeds; None: at the smallest or beyond the largest dose, or of one seed.
        slope: what a thought token for each source token adds below it.
    """

    doses: dict[str, Number]
    scores: dict[str, Number]
    monotone: bool
    enough: Number | None
    low: Number | None
    high: Number | None
    slope: Number


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """An ablation.

    Attributes:
        model: the student in words.
        parameters: how many it has.
        baseline: the arm that others are compared with.
        arms: what each was trained on, in the order of the config.
        curves: of each arm and seed.
        verdict: tokens to the target.
        dose: where there are arms of several doses.
        influence: where it was asked for.
        scored: digest of the score manifest that the arms share.
        rehearsal: a rehearsal scorer or engine made an arm.
    """

    model: str
    parameters: int
    baseline: str
    arms: Annotated[list[ArmTrained], msgspec.Meta(max_length=1000)]
    curves: Annotated[list[Curve], msgspec.Meta(max_length=100_000)]
    verdict: Verdict
    scored: str
    dose: Dose | None = None
    influence: Influence | None = None
    rehearsal: bool = False

    @property
    def seeds(self) -> list[int]:
        """Of the students of each arm."""
        return sorted({curve.seed for curve in self.curves})


def read(output: str) -> Ablation | None:
    """The ablation of an output, None where there is none.

    Raises:
        MillError: the file is not one of this version.
    """
    url = Output(output).ablation
    return read_json(url, Ablation, "an ablation", MAX_BYTES) if storage.exists(url) else None


def of_corpus(output: str, stages: Mapping[str, Manifest]) -> Ablation | None:
    """The ablation of an output where it is about the corpus that is there now, be it as an arm or as their source.

    Args:
        output: the output.
        stages: its manifests.

    Raises:
        MillError: as `read`.
    """
    found = read(output)
    if found is None or found.scored != manifest.digest(stages["score"]):
        return None
    arms = [arm for arm in found.arms if arm.output.rstrip("/") == output.rstrip("/")]
    if any(arm.packed != manifest.digest(stages["pack"]) for arm in arms):
        return None
    return found


def write(output: str, made: Ablation) -> None:
    """Write `ablation.json`, over an older one."""
    storage.write_json(Output(output).ablation, msgspec.to_builtins(made))
