"""Beam transforms of selection: candidates made, judged, compared with controls, and chosen among."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV

from augment.ledger.reading import collapse_duplicates
from augment.recipes.judging import is_verdict
from augment.selection.account import account_counts
from augment.selection.account_parts import trim_counts
from augment.selection.alike.repeats import Cuts, without_repeats
from augment.selection.candidates import AskedSegment, Control, JudgedSegment, StepText, make_candidates, steps_of
from augment.selection.config import SelectConfig
from augment.selection.controls import controls_of, lowest_ranks
from augment.selection.grading import Grader, Grading
from augment.selection.judging import CONTAMINATED, Judge, document_hash
from augment.selection.keeping import choose
from augment.selection.shuffling import shuffled
from augment.selection.values import needs_controls
from augment.selection.valuing import AskScorer, Valuer
from augment.selection.verdict import ABSENT
from sharding import records, tally
from sharding.beam.coders import carry_as_records
from sharding.beam.counts import COUNTS
from sharding.beam.part_join import JoinedDocument
from sharding.beam.shuffle import GroupPartitions, PutRecordsAside, at_bundle_end
from sharding.hashing import partition_of
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate, ContaminatedDocument

REJECTED = "rejected"

carry_as_records(AskedSegment, JudgedSegment, Control, StepText)


class AskSegments(beam.PTransform):
    """Documents joined with their requests → `asked`: (request key, AskedSegment); and `contaminated` documents.

    Args:
        config: the `select` section.
        tokenizer: name of the training tokenizer.
        valued_tiers: tiers whose candidates are to be valued.
    """

    def __init__(self, config: SelectConfig, tokenizer: str, valued_tiers: Sequence[str]) -> None:
        super().__init__()
        self._ask = _AskFn(config, tokenizer, valued_tiers)

    def expand(self, documents: beam.PCollection) -> Any:
        outputs = documents | beam.ParDo(self._ask).with_outputs(CONTAMINATED, main="asked")
        outputs["asked"].element_type = KV[str, AskedSegment]
        outputs[CONTAMINATED].element_type = ContaminatedDocument
        return outputs


class _WithJudgeFn(beam.DoFn):
    def __init__(self, config: SelectConfig, tokenizer: str, valued_tiers: Sequence[str] = ()) -> None:
        self._config, self._tokenizer_name, self._valued_tiers = config, tokenizer, frozenset(valued_tiers)

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._tokenizer_name)
        self._judge = Judge(self._config, self._tokenizer, self._valued_tiers)


class _AskFn(_WithJudgeFn):
    def process(self, document: JoinedDocument) -> Iterator[Any]:
        scored = document.scored
        if (contaminated := self._judge.contaminated(scored.doc_id, scored.input_ids)) is not None:
            yield beam.pvalue.TaggedOutput(CONTAMINATED, contaminated)
        requests = document.beside["requests"]
        content = document_hash(scored.input_ids) if requests else ""
        for request in requests:
            start = int(scored.segment_starts[request.segment_index])
            yield request.request_key, self._judge.ask(request, content, scored.input_ids, start)


class JudgeCandidates(beam.PTransform):
    """Asked segments joined with their ledger rows → `judged` segments, those with a candidate, and `counts`.

    Args:
        config: the `select` section.
        tokenizer: name of the training tokenizer.
    """

    def __init__(self, config: SelectConfig, tokenizer: str) -> None:
        super().__init__()
        self._judge = _JudgeFn(config, tokenizer)

    def expand(self, joined: beam.PCollection) -> Any:
        outputs = joined | beam.ParDo(self._judge).with_outputs(COUNTS, main="judged")
        outputs["judged"].element_type = JudgedSegment
        return outputs


class _JudgeFn(_WithJudgeFn):
    def process(self, group: tuple[str, Mapping[str, list[Any]]]) -> Iterator[Any]:
        _, joined = group
        absent = 0  # of the samples of the request, which segments of one text share
        for asked in joined["asked"]:
            candidates = make_candidates(asked.request, joined["rows"], self._tokenizer)
            shortened = 0
            if candidates:
                judged = self._judge.judge(asked, candidates, steps_of(asked.request, joined["rows"]))
                if verdicts := [row for row in joined["rows"] if is_verdict(row.step)]:
                    judged = msgspec.structs.replace(judged, known=collapse_duplicates(verdicts))
                pairs = zip(candidates, judged.candidates, strict=True)
                shortened = sum(before.text != after.text for before, after in pairs)
                yield judged
            wanted = asked.request.samples
            absent = max(absent, wanted - len(candidates))
            counts = {"requested": wanted, "missing": wanted - len(candidates)}
            yield beam.pvalue.TaggedOutput(COUNTS, counts | ({"openings_left_out": shortened} if shortened else {}))
        if absent:
            yield beam.pvalue.TaggedOutput(COUNTS, {ABSENT: absent})


class GradeCandidates(beam.PTransform):
    """Judged segments → `graded` ones, whose candidates have a judge's grades, and `counts`.

    Args:
        grading: who judges; None: nobody, and segments go on as they are.
    """

    def __init__(self, grading: Grading | None) -> None:
        super().__init__()
        self._grading = grading

    def expand(self, judged: beam.PCollection) -> Any:
        if self._grading is None:
            return {"graded": judged, COUNTS: judged.pipeline | "No grades" >> beam.Create([])}
        grade = beam.ParDo(_GradeFn(self._grading))
        grade = grade.with_resource_hints(**self._grading.planner.models[self._grading.judge.model].resource_hints)
        outputs = judged | grade.with_outputs(COUNTS, main="graded")
        outputs["graded"].element_type = JudgedSegment
        return outputs


class _GradeFn(beam.DoFn):
    """One bundle is one ticket at the judge's feeder."""

    def __init__(self, grading: Grading) -> None:
        self._grading = grading
        self._grader: Grader | None = None

    def start_bundle(self) -> None:
        self._grader = Grader(self._grading)
        self._grader.begin()

    def process(self, segment: JudgedSegment) -> Iterator[Any]:
        assert self._grader is not None
        yield from map(_tagged, self._grader.take(segment))

    def finish_bundle(self) -> Iterator[Any]:
        assert self._grader is not None
        outcomes = list(map(_tagged, self._grader.finish()))
        self._leave()
        yield from map(at_bundle_end, outcomes)

    def teardown(self) -> None:
        self._leave()  # after a bundle that failed

    def _leave(self) -> None:
        if self._grader is not None:
            self._grader.leave()
            self._grader = None


def _tagged(outcome: JudgedSegment | dict[str, int]) -> Any:
    return outcome if isinstance(outcome, JudgedSegment) else beam.pvalue.TaggedOutput(COUNTS, outcome)


class PickControls(beam.PTransform):
    """Judged segments → (tier, list of `Control`): the traces that others are compared with.

    Args:
        size: so many for each tier; 0: none, and nothing is shuffled.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def expand(self, judged: beam.PCollection) -> beam.PCollection:
        if not self._size:
            return judged.pipeline | "None" >> beam.Create([])
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
    """Judged segments → their candidates, `kept` and `rejected`, and `counts`.

    Args:
        config: the `select` section.
        tokenizer: name of the training tokenizer.
        ask: asks the scorer; loads it when first called.
        threshold_nats: surprisal above which a token is hard.
        controls: collection of (tier, list of `Control`).
        repeats: collection of (reason, cuts), from `FindRepeats`.
    """

    def __init__(
        self,
        config: SelectConfig,
        tokenizer: str,
        ask: AskScorer,
        threshold_nats: float,
        controls: beam.PCollection,
        repeats: beam.PCollection,
    ) -> None:
        super().__init__()
        self._choose = _ChooseFn(config, tokenizer, ask, threshold_nats)
        self._beside = beam.pvalue.AsDict(controls), beam.pvalue.AsDict(repeats)
        self._waits = config.repeats is not None or needs_controls(config.value_name)  # for what comes of all segments

    def expand(self, judged: beam.PCollection) -> Any:
        if self._waits:
            judged = judged | "Put aside" >> PutRecordsAside(JudgedSegment)
        outputs = judged | beam.ParDo(self._choose, *self._beside).with_outputs(COUNTS, REJECTED, main="kept")
        outputs["kept"].element_type = outputs[REJECTED].element_type = Candidate
        return outputs


class _ChooseFn(beam.DoFn):
    def __init__(self, config: SelectConfig, tokenizer: str, ask: AskScorer, threshold_nats: float) -> None:
        self._config, self._tokenizer_name = config, tokenizer
        self._ask, self._threshold_nats = ask, threshold_nats
        self._reasons = tuple(config.repeats.limits) if config.repeats is not None else ()

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._tokenizer_name)
        self._valuer = Valuer(self._config, self._ask, self._threshold_nats)

    def process(
        self, segment: JudgedSegment, controls: Mapping[str, list[Control]], repeats: Mapping[str, Cuts]
    ) -> Iterator[Any]:
        # In the order of the config's limits, which a side input doesn't keep.
        cuts = {reason: repeats[reason] for reason in self._reasons if reason in repeats}
        segment = without_repeats(segment, cuts) if cuts else segment
        valued = self._valuer.valued(segment, controls.get(segment.tier, ()))
        candidates = choose(valued.candidates, self._config)
        tally.add(segments=1, candidates=len(candidates), kept=sum(candidate.kept for candidate in candidates))
        yield beam.pvalue.TaggedOutput(COUNTS, account_counts(candidates, valued))
        for candidate in candidates:
            if not candidate.kept:
                yield beam.pvalue.TaggedOutput(REJECTED, candidate)
            elif (cut := self._valuer.trimmed(segment, candidate)) is None:
                yield candidate
            else:
                kept = msgspec.structs.replace(candidate, text=cut.text, input_ids=self._tokenizer.encode(cut.text))
                yield kept
                counts = trim_counts(candidate, len(kept.input_ids), cut, valued.document)
                yield beam.pvalue.TaggedOutput(COUNTS, counts)


class ShuffleTraces(beam.PTransform):
    """Kept candidates → the same, each with the trace of another document: see `augment.selection.shuffling`.

    Args:
        num_groups: traces are shuffled within so many groups of documents, one of which is held in memory at a time;
            0: they stay where they are.
    """

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self._num_groups = num_groups

    def expand(self, kept: beam.PCollection) -> beam.PCollection:
        if not self._num_groups:
            return kept
        return (
            kept
            | "To groups" >> beam.Map(self._grouped).with_output_types(KV[int, bytes])
            | "Group" >> GroupPartitions()
            | "Rotate" >> beam.FlatMapTuple(_shuffled).with_output_types(Candidate)
        )

    def _grouped(self, candidate: Candidate) -> tuple[int, bytes]:
        return partition_of(candidate.doc_id, self._num_groups), records.encode(candidate)


def _shuffled(group: int, values: Iterable[bytes]) -> Iterator[Candidate]:
    yield from shuffled(records.decode(Candidate, value) for value in values)
