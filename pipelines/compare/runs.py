"""The runs that are compared: what the report gathers of each, its configuration, and a short name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines import report
from pipelines.report.configuration import effective, flat
from pipelines.report.facts import Facts
from pipelines.terminal import counted
from sharding.errors import MillError, RequestError
from sharding.storage.manifest import Manifest

MAX_RUNS = 6
"""Side by side more than these can't be read."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the runs.

    Attributes:
        name: the end of its path by which it differs from the others.
        stages: its manifests as they are; those of `facts` have lost their secrets.
        config: dotted key → value, without secrets.
    """

    name: str
    output: str
    stages: Mapping[str, Manifest | None]
    facts: Facts
    config: Mapping[str, str]

    @property
    def number(self) -> Mapping[str, Mapping[str, int]]:
        """Stage → its counts; empty where it hasn't finished."""
        return {name: stage.counts if stage else {} for name, stage in self.facts.stages.items()}


def read_runs(outputs: Sequence[str]) -> list[Run]:
    """The runs of some outputs, in their order.

    Raises:
        RequestError: fewer than two, more than `MAX_RUNS`, or one twice.
        MillError: one holds no scored run, or a file can't be read.
    """
    if not 2 <= len(outputs) <= MAX_RUNS:
        raise RequestError(f"compare: {counted(len(outputs), 'output')}; 2 to {MAX_RUNS} can be laid side by side")
    names = short_names(outputs)
    runs = []
    for output, name in zip(outputs, names, strict=True):
        stages = report.read_stages(output)
        if stages["score"] is None:
            raise MillError(f"compare: {output} holds no scored run: run `thoughtmill score CONFIG` first")
        facts = report.gather(output, stages)
        config = {
            key: value for key, value in flat(effective(output, stages)).items() if key.partition(".")[0] != "output"
        }
        runs.append(Run(name=name, output=output, stages=stages, facts=facts, config=config))
    return runs


def short_names(outputs: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    Raises:
        RequestError: two are the same.
    """
    parts = [output.rstrip("/").split("/") for output in outputs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(output for place, output in enumerate(outputs) if parts[place] in parts[:place])
    raise RequestError(f"compare: {twice} is named twice; name different outputs")
