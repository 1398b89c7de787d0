"""Beam transforms over all traces of a corpus: what they repeat too often, and how diverse the kept ones are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
from apache_beam.typehints import KV

from augment.selection.alike.diversity import DiversitySample, SampledThought, measure
from augment.selection.alike.repeats import RepeatsConfig, cut_of, lowest, offers
from sharding.beam.coders import carry_as_records
from sharding.records.types import Candidate

carry_as_records(SampledThought)


class FindRepeats(beam.PTransform):
    """Judged segments → (reason, {number: cut}) of what candidates repeat too often: see `alike.repeats`.

    Args:
        config: `select.repeats`; None: nothing is shuffled.
    """

    def __init__(self, config: RepeatsConfig | None) -> None:
        super().__init__()
        self._limits = config.limits if config is not None else {}

    def expand(self, judged: beam.PCollection) -> beam.PCollection:
        found = [
            judged
            | f"Offer {reason}" >> beam.FlatMap(offers, reason).with_output_types(KV[int, int])
            | f"First {reason}" >> beam.CombinePerKey(_LowestCombineFn(limit))
            | f"Exceeded {reason}" >> beam.Filter(_is_exceeded)
            | f"Cuts {reason}" >> beam.combiners.ToDict()
            | f"Of {reason}" >> beam.Map(_named, reason)
            for reason, limit in self._limits.items()
        ]
        return found | beam.Flatten() if found else judged.pipeline | "None" >> beam.Create([])


class _LowestCombineFn(beam.CombineFn):
    """The cut of ranks: the highest that stays where `at_most` do; None where all stay."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most

    def create_accumulator(self) -> list[int]:
        return []

    def add_input(self, accumulator: list[int], rank: int) -> list[int]:
        return lowest([*accumulator, rank], self._at_most)

    def merge_accumulators(self, accumulators: Iterable[list[int]]) -> list[int]:
        return lowest((rank for ranks in accumulators for rank in ranks), self._at_most)

    def extract_output(self, accumulator: list[int]) -> int | None:
        return cut_of(accumulator, self._at_most)


def _is_exceeded(found: tuple[int, int | None]) -> bool:
    return found[1] is not None


def _named(cuts: dict[int, int], reason: str) -> tuple[str, dict[int, int]]:
    return reason, cuts


class MeasureDiversity(beam.PTransform):
    """Kept candidates → the account of their diversity, one JSON value: see `alike.diversity`."""

    def expand(self, kept: beam.PCollection) -> beam.PCollection:
        return kept | beam.CombineGlobally(_DiversityCombineFn())


class _DiversityCombineFn(beam.CombineFn):
    def create_accumulator(self) -> DiversitySample:
        return DiversitySample()

    def add_input(self, accumulator: DiversitySample, candidate: Candidate) -> DiversitySample:
        accumulator.add(candidate)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[DiversitySample]) -> DiversitySample:
        merged = DiversitySample()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: DiversitySample) -> dict[str, Any]:
        return measure(accumulator.thoughts, accumulator.sampled())
