"""Beam transforms of the augment package: requests for segments, what the ledger lacks, generating it, choosing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.typehints import KV, List, Tuple

from augment import registry
from augment.account import account_counts
from augment.controls import Control, controls_of, lowest_ranks
from augment.dispatch import FeedingConfig
from augment.generation import TracePlanner
from augment.judging import DocumentJudge
from augment.ledger import read_part
from augment.selection import SelectConfig, decide, make_candidates, make_value
from augment.tickets import Completed, Failure, Result
from augment.values import NatsAfter
from augment.work import TooManyFailures, WorkOrder, begin_bundle
from sharding import shard_io, tally
from sharding.errors import MillError
from sharding.records import (
    Candidate,
    ContaminatedDocument,
    JudgedSegment,
    LedgerRow,
    Quarantined,
    Request,
    ScoredSegment,
    sample_key,
)
from sharding.shuffle import at_bundle_end
from sharding.tokenizer import load_tokenizer
from sharding.transforms import GroupRecords

FAILED = "failed"
COUNTS = "counts"
CONTAMINATED = "contaminated"

SEGMENT_COLUMNS = (
    "doc_id",
    "segment_index",
    "num_segments",
    "input_ids",
    "surprisal_nats",
    "memory_nats",
    "difficulty_nats",
)

TierOf = Callable[[str, float], int]
ShownOf = Callable[[ScoredSegment, str], int]
FocusOf = Callable[[ScoredSegment, str], Sequence[str]]

MissingSamples = Tuple[Request, List[int]]
"""A request and the indices of its samples that have to be generated."""


class MakeRequests(beam.PTransform):
    """The requests of all segments whose tier thinks, from the scored parts.

    Args:
        urls: the scored parts; each holds whole documents, so that a prompt can show what precedes its segment.
        planner: makes the requests.
        tier_of, shown_of, focus_of: see `TracePlanner.requests`.

    Returns:
        `requests`, and `failed`: Quarantined segments that the generator's tokenizer can't spell.
    """

    def __init__(
        self, urls: Sequence[str], planner: TracePlanner, *, tier_of: TierOf, shown_of: ShownOf, focus_of: FocusOf
    ) -> None:
        super().__init__()
        self._urls, self._planner = sorted(urls), planner
        self._tier_of, self._shown_of, self._focus_of = tier_of, shown_of, focus_of

    def expand(self, pipeline: beam.Pipeline) -> Any:
        outputs = (
            pipeline
            | "Scored parts" >> beam.Create(self._urls, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Documents" >> beam.FlatMap(shard_io.read_groups, ScoredSegment, "doc_id", SEGMENT_COLUMNS)
            | "Plan"
            >> beam.ParDo(_RequestFn(self._planner, self._tier_of, self._shown_of, self._focus_of)).with_outputs(
                FAILED, main="requests"
            )
        )
        outputs["requests"].element_type = Request
        outputs[FAILED].element_type = Quarantined
        return outputs


class _RequestFn(beam.DoFn):
    def __init__(self, planner: TracePlanner, tier_of: TierOf, shown_of: ShownOf, focus_of: FocusOf) -> None:
        self._planner = planner
        self._tier_of, self._shown_of, self._focus_of = tier_of, shown_of, focus_of

    def process(self, document: tuple[str, list[ScoredSegment]]) -> Iterator[Any]:
        for outcome in self._planner.requests(document[1], self._tier_of, self._shown_of, self._focus_of):
            yield outcome if isinstance(outcome, Request) else beam.pvalue.TaggedOutput(FAILED, outcome)


class ReadLedger(beam.PTransform):
    """The rows of the ledger, by request key; a part that can't be read is left out, and its rows are made again.

    Args:
        urls: the parts, from `ledger_parts`.
        columns: the columns wanted; all when absent.
    """

    def __init__(self, urls: Sequence[str], columns: Sequence[str] | None = None) -> None:
        super().__init__()
        self._urls, self._columns = sorted(urls), columns

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Parts" >> beam.Create(self._urls, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_rows_of_part, self._columns).with_output_types(KV[str, LedgerRow])
        )


def _rows_of_part(url: str, columns: Sequence[str] | None) -> Iterator[tuple[str, LedgerRow]]:
    for row in read_part(url, columns) or ():
        yield row.request_key, row


class FindMissing(beam.PTransform):
    """Joins requests with the ledger: `requests`, the samples still to be generated, and `counts`.

    Requests with one key, from segments with one text, become one. Takes {"requests": Request, "rows": LedgerRow},
    both keyed by request key.

    Args:
        num_partitions: see `sharding.shuffle.GroupBytes`.
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__()
        self._num_partitions = num_partitions

    def expand(self, pcolls: dict[str, beam.PCollection]) -> Any:
        outputs = (
            pcolls
            | "Join" >> GroupRecords(self._num_partitions, requests=Request, rows=LedgerRow)
            | "Missing" >> beam.FlatMap(missing_samples).with_outputs(COUNTS, main="requests")
        )
        outputs["requests"].element_type = MissingSamples
        return outputs


def missing_samples(group: tuple[str, dict[str, list[Any]]]) -> Iterator[Any]:
    """The samples of one request key that the ledger lacks; nothing for rows that nobody asks for."""
    requests: list[Request] = group[1]["requests"]
    if not requests:
        return
    request = min(requests, key=lambda r: (r.doc_id, r.segment_index))
    samples = max(r.samples for r in requests)
    tokens = {row.sample: row.thought_tokens for row in group[1]["rows"] if row.sample < samples}
    missing = [sample for sample in range(samples) if sample not in tokens]
    if missing:
        yield request, missing
    yield beam.pvalue.TaggedOutput(
        COUNTS, {"generations": samples, "found": len(tokens), "thought_tokens_found": sum(tokens.values())}
    )


class GenerateTraces(beam.PTransform):
    """Generates the missing samples with one model; every finished one goes to the ledger at once.

    Carries the model's accelerator as a resource hint.

    Args:
        planner: the models, and what turns requests into generations.
        model_name: which of the models.
        feeding: the section of the config.
        order: the run.

    Returns:
        `counts`, and `failed`: Quarantined requests, each given up alone.
    """

    def __init__(self, planner: TracePlanner, model_name: str, feeding: FeedingConfig, order: WorkOrder) -> None:
        super().__init__()
        self._planner, self._model_name, self._feeding, self._order = planner, model_name, feeding, order

    def expand(self, missing: beam.PCollection) -> Any:
        generate = beam.ParDo(_GenerateFn(self._planner, self._model_name, self._feeding, self._order))
        accelerator = self._planner.models[self._model_name].accelerator
        if accelerator is not None:
            generate = generate.with_resource_hints(accelerator=accelerator)
        outputs = missing | generate.with_outputs(FAILED, main=COUNTS)
        outputs[FAILED].element_type = Quarantined
        return outputs


def generate_with_each(
    missing: beam.PCollection, planner: TracePlanner, feeding: FeedingConfig, order: WorkOrder
) -> list[Any]:
    """What `GenerateTraces` gives for each of the planner's models, on its own missing samples."""
    return [
        missing
        | f"For {name}"
        >> beam.Filter(lambda element, name=name: element[0].model == name).with_output_types(MissingSamples)
        | f"Generate with {name}" >> GenerateTraces(planner, name, feeding, order)
        for name in planner.models
    ]


class _GenerateFn(beam.DoFn):
    """One bundle is one ticket at the process's feeder; its results are durable when the bundle ends."""

    def __init__(self, planner: TracePlanner, model_name: str, feeding: FeedingConfig, order: WorkOrder) -> None:
        self._planner, self._model_name, self._feeding, self._order = planner, model_name, feeding, order
        self._at_work = False

    def start_bundle(self) -> None:
        self._worker = begin_bundle(self._order)
        model = self._planner.models[self._model_name]
        self._feeder = registry.acquire(model, self._feeding, job=self._order.run_id)
        self._at_work = True
        self._bundle = self._feeder.ticket(on_result=self._keep)

    def process(self, element: tuple[Request, list[int]]) -> Iterator[Any]:
        request, missing = element
        try:
            for sample in missing:
                key = sample_key(request.request_key, sample)
                tokens = self._worker.finished.tokens(key)
                if tokens is not None:
                    yield {"found": 1, "thought_tokens_found": tokens}
                    continue
                self._bundle.submit(self._planner.generation_request(request, key), (request, sample))
            yield from _outcomes(self._bundle.take())
            self._worker.check_failures()
        except MillError as error:
            self._give_up(error)
            raise

    def finish_bundle(self) -> Iterator[Any]:
        outcomes: list[Any] = []
        try:
            for result in self._bundle.drain():
                outcomes += _outcomes([result])
                self._worker.check_failures()
            self._worker.flush()
        except MillError as error:
            self._give_up(error)
            raise
        self._leave()
        # Only now: what is emitted must be durable.
        yield from map(at_bundle_end, outcomes)

    def _give_up(self, error: MillError) -> None:
        """Keep what was paid for."""
        if isinstance(error, TooManyFailures):
            self._feeder.close(error)  # pays for no more; whoever shares the engine fails with the same error
        with contextlib.suppress(MillError):
            self._worker.flush()
        self._leave()

    def teardown(self) -> None:
        self._leave()  # after a bundle that failed elsewhere

    def _leave(self) -> None:
        if self._at_work:
            self._at_work = False
            registry.release(self._feeder)
            self._worker.end()

    def _keep(self, result: Result) -> None:
        if isinstance(result, Completed):
            self._worker.keep(self._planner.ledger_row(result))
        else:
            self._worker.note_failure(result)


def _outcomes(results: Iterable[Result]) -> Iterator[Any]:
    for result in results:
        if isinstance(result, Failure):
            request, _ = result.context
            yield beam.pvalue.TaggedOutput(
                FAILED,
                Quarantined(
                    stage="augment",
                    origin=result.key,
                    doc_id=request.doc_id,
                    reason="generation_failed",
                    detail=f"model {request.model}, segment {request.segment_id}: {result.error}",
                ),
            )
            yield {"failed": 1}
        else:
            yield {"generated": 1, "thought_tokens_now": len(result.generation.token_ids)}


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
    """Judged segments → (tier, `augment.controls.ControlPool`): the traces that others are compared with."""

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
        candidates = decide(segment, self._config, self._value, controls.get(segment.tier, ()))
        tally.add(segments=1, candidates=len(candidates), kept=sum(candidate.kept for candidate in candidates))
        yield from candidates
        yield beam.pvalue.TaggedOutput(COUNTS, account_counts(candidates))
