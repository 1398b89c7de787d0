"""Beam transforms of the augment package: requests for segments, what the ledger lacks, generating it, choosing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints import KV, List, Tuple
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from augment import registry
from augment.dispatch import FeedingConfig
from augment.gates import GatesConfig, make_gates
from augment.generation import TracePlanner
from augment.ledger import LedgerWriter, read_part
from augment.selection import candidate_counts, select_candidates
from augment.tickets import Completed, Failure, Result
from sharding import shard_io
from sharding.records import Candidate, LedgerRow, Quarantined, Request, ScoredSegment, sample_key
from sharding.tokenizer import load_tokenizer
from sharding.transforms import GroupRecords

FAILED = "failed"
COUNTS = "counts"

SEGMENT_COLUMNS = ("doc_id", "segment_index", "input_ids", "surprisal_nats", "memory_nats", "difficulty_nats")

TierOf = Callable[[str, float], int]
FocusOf = Callable[[ScoredSegment, str], Sequence[str]]

MissingSamples = Tuple[Request, List[int]]
"""A request and the indices of its samples that have to be generated."""


class MakeRequests(beam.PTransform):
    """The requests of all segments whose tier thinks, from the scored parts.

    Args:
        urls: the scored parts; each holds whole documents, so that a prompt can show what precedes its segment.
        planner: makes the requests.
        tier_of, focus_of: see `TracePlanner.requests`.

    Returns:
        `requests`, and `failed`: Quarantined segments that the generator's tokenizer can't spell.
    """

    def __init__(self, urls: Sequence[str], planner: TracePlanner, tier_of: TierOf, focus_of: FocusOf) -> None:
        super().__init__()
        self._urls, self._planner, self._tier_of, self._focus_of = sorted(urls), planner, tier_of, focus_of

    def expand(self, pipeline: beam.Pipeline) -> Any:
        outputs = (
            pipeline
            | "Scored parts" >> beam.Create(self._urls, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Documents" >> beam.FlatMap(shard_io.read_groups, ScoredSegment, "doc_id", SEGMENT_COLUMNS)
            | "Plan"
            >> beam.ParDo(_RequestFn(self._planner, self._tier_of, self._focus_of)).with_outputs(
                FAILED, main="requests"
            )
        )
        outputs["requests"].element_type = Request
        outputs[FAILED].element_type = Quarantined
        return outputs


class _RequestFn(beam.DoFn):
    def __init__(self, planner: TracePlanner, tier_of: TierOf, focus_of: FocusOf) -> None:
        self._planner, self._tier_of, self._focus_of = planner, tier_of, focus_of

    def process(self, document: tuple[str, list[ScoredSegment]]) -> Iterator[Any]:
        for outcome in self._planner.requests(document[1], self._tier_of, self._focus_of):
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
    """

    def expand(self, pcolls: dict[str, beam.PCollection]) -> Any:
        outputs = (
            pcolls
            | "Join" >> GroupRecords(requests=Request, rows=LedgerRow)
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


@dataclass(frozen=True, kw_only=True)
class LedgerTarget:
    """Where finished generations go, and when: see `LedgerWriter`."""

    url: str
    flush_rows: int
    flush_seconds: float


class GenerateTraces(beam.PTransform):
    """Generates the missing samples with one model; every finished one goes to the ledger at once.

    Carries the model's accelerator as a resource hint.

    Returns:
        `counts`, and `failed`: Quarantined requests, each given up alone.
    """

    def __init__(self, planner: TracePlanner, model_name: str, feeding: FeedingConfig, ledger: LedgerTarget) -> None:
        super().__init__()
        self._planner, self._model_name, self._feeding, self._ledger = planner, model_name, feeding, ledger

    def expand(self, missing: beam.PCollection) -> Any:
        generate = beam.ParDo(_GenerateFn(self._planner, self._model_name, self._feeding, self._ledger))
        accelerator = self._planner.models[self._model_name].accelerator
        if accelerator is not None:
            generate = generate.with_resource_hints(accelerator=accelerator)
        outputs = missing | generate.with_outputs(FAILED, main=COUNTS)
        outputs[FAILED].element_type = Quarantined
        return outputs


class _GenerateFn(beam.DoFn):
    """One bundle is one ticket at the process's feeder; its results are durable when the bundle ends."""

    def __init__(self, planner: TracePlanner, model_name: str, feeding: FeedingConfig, ledger: LedgerTarget) -> None:
        self._planner, self._model_name, self._feeding, self._ledger = planner, model_name, feeding, ledger

    def start_bundle(self) -> None:
        self._feeder = registry.acquire(self._planner.models[self._model_name], self._feeding)
        self._writer = _ledger_writer(self._ledger)
        self._bundle = self._feeder.ticket(on_result=self._keep)

    def process(self, element: tuple[Request, list[int]]) -> Iterator[Any]:
        request, missing = element
        for sample in missing:
            key = sample_key(request.request_key, sample)
            self._bundle.submit(self._planner.generation_request(request, key), (request, sample))
        yield from _outcomes(self._bundle.take())

    def finish_bundle(self) -> Iterator[Any]:
        try:
            # Listed first: what is emitted must be durable.
            outcomes = list(_outcomes(self._bundle.drain()))
            self._writer.flush()
        finally:
            registry.release(self._feeder)
        for outcome in outcomes:
            tagged = isinstance(outcome, beam.pvalue.TaggedOutput)
            value = WindowedValue(outcome.value if tagged else outcome, MIN_TIMESTAMP, [GlobalWindow()])
            yield beam.pvalue.TaggedOutput(outcome.tag, value) if tagged else value

    def _keep(self, result: Result) -> None:
        if isinstance(result, Completed):
            self._writer.add(self._planner.ledger_row(result))


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


_writers: dict[LedgerTarget, LedgerWriter] = {}
_writers_lock = threading.Lock()


def _ledger_writer(target: LedgerTarget) -> LedgerWriter:
    """This process's writer for a ledger, shared by its bundles, so that parts fill up."""
    with _writers_lock:
        if target not in _writers:
            _writers[target] = LedgerWriter(
                target.url, flush_rows=target.flush_rows, flush_seconds=target.flush_seconds
            )
        return _writers[target]


class SelectCandidates(beam.PTransform):
    """Requests joined with their ledger rows → `candidates`, kept and rejected, and `counts`.

    Args:
        gates: the `select.gates` section.
        tokenizer: name of the training tokenizer.
    """

    def __init__(self, gates: GatesConfig, tokenizer: str) -> None:
        super().__init__()
        self._gates, self._tokenizer = gates, tokenizer

    def expand(self, joined: beam.PCollection) -> Any:
        outputs = joined | "Choose" >> beam.ParDo(_SelectFn(self._gates, self._tokenizer)).with_outputs(
            COUNTS, main="candidates"
        )
        outputs["candidates"].element_type = Candidate
        return outputs


class _SelectFn(beam.DoFn):
    def __init__(self, gates: GatesConfig, tokenizer: str) -> None:
        self._gates_config, self._tokenizer_name = gates, tokenizer

    def setup(self) -> None:
        self._gates = make_gates(self._gates_config)
        self._tokenizer = load_tokenizer(self._tokenizer_name)

    def process(self, group: tuple[str, Mapping[str, list[Any]]]) -> Iterator[Any]:
        _, joined = group
        for request in joined["requests"]:
            candidates = select_candidates(request, joined["rows"], self._tokenizer, self._gates)
            yield from candidates
            yield beam.pvalue.TaggedOutput(COUNTS, candidate_counts(request, candidates))
