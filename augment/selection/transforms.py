"""Beam transforms of selection: candidates made, judged, compared with controls, and chosen among."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.typehints import KV

from augment.selection.account import account_counts
from augment.selection.candidates import Control, JudgedSegment, make_candidates
from augment.selection.config import SelectConfig
from augment.selection.controls import controls_of, lowest_ranks
from augment.selection.judging import CONTAMINATED, DocumentJudge
from augment.selection.keeping import choose
from augment.selection.values.protocol import NatsAfter
from augment.selection.valuing import make_value, valued
from sharding import tally
from sharding.beam.coders import carry_as_records
from sharding.beam.counts import COUNTS
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate, ContaminatedDocument

carry_as_records(JudgedSegment, Control)


class MakeCandidates(beam.PTransform):
    """Requests joined with their ledger rows → `candidates`, not judged yet, and `counts`.

    Args:
        tokenizer: name of the training tokenizer.
    """

    def __init__(self, tokenizer: str) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def expand(self, joined: beam.PCollection) -> Any:
        outputs = joined | beam.FlatMap(_candidates, self._tokenizer).with_outputs(COUNTS, main="candidates")
        outputs["candidates"].element_type = Candidate
        return outputs


def _candidates(group: tuple[str, Mapping[str, list[Any]]], tokenizer: str) -> Iterator[Any]:
    _, joined = group
    for request in joined["requests"]:
        candidates = make_candidates(request, joined["rows"], load_tokenizer(tokenizer))
        yield from candidates
        missing = request.samples - len(candidates)
        yield beam.pvalue.TaggedOutput(COUNTS, {"requested": request.samples, "missing": missing})


class JudgeCandidates(beam.PTransform):
    """Documents' segments joined with their candidates → `judged` segments, and `contaminated` documents.

    Args:
        config: the `select` section.
        tokenizer: name of the training tokenizer.
        valued_tiers: tiers whose candidates are to be valued.
    """

    def __init__(self, config: SelectConfig, tokenizer: str, valued_tiers: Sequence[str]) -> None:
        super().__init__()
        self._config, self._tokenizer, self._valued_tiers = config, tokenizer, frozenset(valued_tiers)

    def expand(self, documents: beam.PCollection) -> Any:
        outputs = documents | beam.ParDo(_JudgeFn(self._config, self._tokenizer, self._valued_tiers)).with_outputs(
            CONTAMINATED, main="judged"
        )
        outputs["judged"].element_type = JudgedSegment
        outputs[CONTAMINATED].element_type = ContaminatedDocument
        return outputs


class _JudgeFn(beam.DoFn):
    def __init__(self, config: SelectConfig, tokenizer: str, valued_tiers: frozenset[str]) -> None:
        self._config, self._tokenizer_name, self._valued_tiers = config, tokenizer, valued_tiers

    def setup(self) -> None:
        self._judge = DocumentJudge(self._config, load_tokenizer(self._tokenizer_name), self._valued_tiers)

    def process(self, document: tuple[str, Mapping[str, list[Any]]]) -> Iterator[Any]:
        _, joined = document
        for outcome in self._judge.judge(joined["segments"], joined["candidates"]):
            is_segment = isinstance(outcome, JudgedSegment)
            yield outcome if is_segment else beam.pvalue.TaggedOutput(CONTAMINATED, outcome)


class PickControls(beam.PTransform):
    """Judged segments → (tier, list of `Control`): the traces that others are compared with."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def expand(self, judged: beam.PCollection) -> beam.PCollection:
        return (
            judged
            | "Traces" >> beam.FlatMap(controls_of).with_output_types(KV[str, Control])
            | "Pool" >> beam.CombinePerKey(_ControlPoolCombineFn(self._size))
        )


class _ControlPoolCombineFn(beam.CombineFn):
    """The `size` controls of lowest rank: the same whatever the order they come in."""

    def __init__(self, size: int) -> None:
        self._size = size

    def create_accumulator(self) -> list[Control]:
        return []

    def add_input(self, accumulator: list[Control], control: Control) -> list[Control]:
        return lowest_ranks([*accumulator, control], self._size)

    def merge_accumulators(self, accumulators: Iterable[list[Control]]) -> list[Control]:
        return lowest_ranks([control for pool in accumulators for control in pool], self._size)

    def extract_output(self, accumulator: list[Control]) -> list[Control]:
        return accumulator


class ChooseCandidates(beam.PTransform):
    """Judged segments → `candidates`, kept and rejected, and `counts`.

    Args:
        config: the `select` section.
        nats_after: asks the scorer; loads it when first called.
        threshold_nats: surprisal above which a token is hard.
        controls: collection of (tier, list of `Control`).
    """

    def __init__(
        self, config: SelectConfig, nats_after: NatsAfter, threshold_nats: float, controls: beam.PCollection
    ) -> None:
        super().__init__()
        self._choose, self._controls = _ChooseFn(config, nats_after, threshold_nats), controls

    def expand(self, judged: beam.PCollection) -> Any:
        outputs = judged | beam.ParDo(self._choose, beam.pvalue.AsDict(self._controls)).with_outputs(
            COUNTS, main="candidates"
        )
        outputs["candidates"].element_type = Candidate
        return outputs


class _ChooseFn(beam.DoFn):
    def __init__(self, config: SelectConfig, nats_after: NatsAfter, threshold_nats: float) -> None:
        self._config, self._nats_after, self._threshold_nats = config, nats_after, threshold_nats

    def setup(self) -> None:
        self._value = make_value(self._config, self._nats_after, self._threshold_nats)

    def process(self, segment: JudgedSegment, controls: Mapping[str, list[Control]]) -> Iterator[Any]:
        candidates = choose(valued(segment, self._config, self._value, controls.get(segment.tier, ())), self._config)
        tally.add(segments=1, candidates=len(candidates), kept=sum(candidate.kept for candidate in candidates))
        yield from candidates
        yield beam.pvalue.TaggedOutput(COUNTS, account_counts(candidates))
