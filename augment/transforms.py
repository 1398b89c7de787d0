"""Beam transforms of the augment stage: requests for segments, and generating what the ledger lacks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.typehints import KV

from augment.contexts.finding import contexts_of
from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation
from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.recipe_runs import Asked, Counted, Ended, Outcome, Pending, RecipeRuns
from augment.feeding.tickets import Completed, Failure, Partial, Result
from augment.feeding.worker import TooManyFailures, Worker, WorkOrder, begin_bundle
from augment.ledger.partial import as_partial
from augment.ledger.transforms import MissingSamples, decode_missing, encode_missing
from augment.requests.calls import RecipePlanner
from augment.requests.continuing import generation_of
from augment.requests.planner import TracePlanner
from augment.requests.tiers import CONTRACTIONS, SegmentChoices
from sharding.beam.counts import COUNTS
from sharding.beam.part_join import JoinedDocument
from sharding.beam.shuffle import GroupBytes, PutElementsAside, at_bundle_end, shuffle_folder
from sharding.errors import MillError
from sharding.records.types import LedgerRow, Quarantined, Request, sample_key

FAILED = "failed"

SEGMENT_COLUMNS = ("input_ids", "surprisal_nats", "entropy_nats", "memory_nats", "difficulty_nats")
"""What `MakeRequests` looks at."""


class MakeRequests(beam.PTransform):
    """Scored documents → the requests of all segments whose tier thinks.

    Args:
        planner: makes the requests.
        choices: what was decided of the segments.

    Returns:
        `requests`, and `failed`: Quarantined segments that the generator's tokenizer can't spell.
    """

    def __init__(self, planner: TracePlanner, choices: SegmentChoices) -> None:
        super().__init__()
        self._plan = _RequestFn(planner, choices)

    def expand(self, documents: beam.PCollection) -> Any:
        outputs = documents | beam.ParDo(self._plan).with_outputs(FAILED, main="requests")
        outputs["requests"].element_type = Request
        outputs[FAILED].element_type = Quarantined
        return outputs


class _RequestFn(beam.DoFn):
    def __init__(self, planner: TracePlanner, choices: SegmentChoices) -> None:
        self._planner, self._choices = planner, choices

    def process(self, document: JoinedDocument) -> Iterator[Any]:
        segments = list(document.scored.segments())
        contexts = contexts_of(self._planner, segments, document.beside.get(CONTRACTIONS, ()))
        for outcome in self._planner.requests(segments, self._choices, contexts):
            yield outcome if isinstance(outcome, Request) else beam.pvalue.TaggedOutput(FAILED, outcome)


class GenerateMissing(beam.PTransform):
    """Generates the samples that the ledger lacks, each with its request's model; a finished one goes there at once.

    A branch for each model, which carries the model's accelerator as a resource hint. On the local runner, whose
    shuffles are files, requests come to it document by document, unless `feeding.prefix_groups` is off: those of one
    document begin alike, and are to meet at an engine however long the run is.

    Args:
        planner: the models, and what turns requests into generations.
        feeding: the section of the config.
        order: the run.
        num_partitions: see `sharding.beam.shuffle.GroupBytes`.

    Returns:
        `counts`, and `failed`: Quarantined requests, each given up alone.
    """

    def __init__(
        self, planner: TracePlanner, feeding: FeedingConfig, order: WorkOrder, num_partitions: int = 1
    ) -> None:
        super().__init__()
        self._planner, self._feeding, self._order, self._num_partitions = planner, feeding, order, num_partitions

    def expand(self, missing: beam.PCollection) -> dict[str, beam.PCollection]:
        models = self._planner.models
        made = []
        for name, model in models.items():
            of_model = missing | f"For {name}" >> beam.Filter(
                lambda element, name=name: element[0].model == name
            ).with_output_types(MissingSamples)
            if self._goes_by_document(missing, model):
                by_document = ByDocument(self._num_partitions, model.resource_hints)
                of_model = of_model | f"Generate with {name}, by document" >> by_document
            elif len(models) > 1:  # each with workers of its own, so that none of them begins where requests are made
                aside = PutElementsAside(MissingSamples, encode_missing, decode_missing, model.resource_hints)
                of_model = of_model | f"Generate with {name}, put aside" >> aside
            made.append(of_model | f"Generate with {name}" >> self._with_model(name, model.resource_hints))
        for outputs in made:
            outputs[FAILED].element_type = Quarantined
        return {
            tag: [outputs[tag] for outputs in made] | f"All {tag}" >> beam.Flatten(pipeline=missing.pipeline)
            for tag in (COUNTS, FAILED)
        }

    def _goes_by_document(self, missing: beam.PCollection, model: ModelConfig) -> bool:
        wanted = self._feeding.prefix_groups and model.engine_args.get("enable_prefix_caching") is not False
        return wanted and shuffle_folder(missing.pipeline.options) is not None

    def _with_model(self, name: str, hints: Mapping[str, str]) -> beam.PTransform:
        generate = beam.ParDo(_GenerateFn(self._planner, name, self._feeding, self._order))
        return generate.with_resource_hints(**hints).with_outputs(FAILED, main=COUNTS)


class ByDocument(beam.PTransform):
    """`MissingSamples` as they are, those of one document one behind the other.

    Args:
        num_partitions: see `sharding.beam.shuffle.GroupBytes`.
        hints: of the step that takes them.
    """

    def __init__(self, num_partitions: int, hints: Mapping[str, str]) -> None:
        super().__init__()
        self._num_partitions, self._hints = num_partitions, dict(hints)

    def expand(self, missing: beam.PCollection) -> beam.PCollection:
        keyed = missing | "As bytes" >> beam.Map(_with_document).with_output_types(KV[str, bytes])
        grouped = keyed | "Meet" >> GroupBytes(self._num_partitions, self._hints)
        one_by_one = beam.FlatMapTuple(_one_by_one).with_output_types(MissingSamples)
        return grouped | "One by one" >> one_by_one.with_resource_hints(**self._hints)


def _with_document(element: tuple[Request, list[int]]) -> tuple[str, bytes]:
    return element[0].doc_id, encode_missing(element)


def _one_by_one(_: str, values: Iterable[bytes]) -> Iterator[tuple[Request, list[int]]]:
    yield from map(decode_missing, values)


class _GenerateFn(beam.DoFn):
    """One bundle is one ticket at the process's feeder; its results are durable when the bundle ends."""

    def __init__(self, planner: TracePlanner, model_name: str, feeding: FeedingConfig, order: WorkOrder) -> None:
        self._planner, self._model_name, self._feeding, self._order = planner, model_name, feeding, order
        self._at_work = False

    def start_bundle(self) -> None:
        self._worker = begin_bundle(self._order)
        self._feeders: dict[str, Feeder] = {}
        self._at_work = True
        recipes = RecipePlanner(self._planner)
        self._bundle = self._feeder(self._model_name).ticket(_LedgerSink(self._planner, recipes, self._worker))
        self._runs = RecipeRuns(recipes, self._worker)

    def _feeder(self, model_name: str) -> Feeder:
        """The feeder of a model: the bundle's own, or one that a recipe's step names."""
        if model_name not in self._feeders:
            model = self._planner.model(model_name)
            found = registry.acquire(model, self._feeding, job=self._order.run_id, name=model_name)
            found.lengths.begin_with(self._order.lengths)
            self._feeders[model_name] = found
        return self._feeders[model_name]

    def _of_recipe(self, outcome: Outcome) -> Iterator[Any]:
        if isinstance(outcome, Asked):
            begun = _begun(outcome.pending.run.request, outcome.planned.key)
            feeder = self._feeder(outcome.model)
            self._bundle.submit(outcome.planned.generation, outcome.pending, feeder, begun=begun)
        else:
            yield from _of_recipe(outcome)

    def process(self, element: tuple[Request, list[int]]) -> Iterator[Any]:
        request, missing = element
        try:
            for sample in missing:
                key = sample_key(request.request_key, sample)
                tokens = self._worker.finished.tokens(key)
                if tokens is not None:
                    yield _made_before(request, sample, tokens) | _count_if("empty", self._worker.is_empty(key))
                    continue
                if self._planner.tier(request.tier).recipe is not None:
                    for outcome in self._runs.begin(request, sample):
                        yield from self._of_recipe(outcome)
                else:
                    asked = self._planner.generation_request(request, key)
                    self._bundle.submit(asked, (request, sample), begun=_begun(request, key))
            yield from self._outcomes(self._bundle.take())
            self._worker.check_failures()
        except MillError as error:
            self._give_up(error)
            raise

    def finish_bundle(self) -> Iterator[Any]:
        outcomes: list[Any] = []
        try:
            for result in self._bundle.drain():
                outcomes += self._outcomes([result])
                self._worker.check_failures()
            self._worker.flush()
        except MillError as error:
            self._give_up(error)
            raise
        self._leave()
        # Only now: what is emitted must be durable.
        yield from map(at_bundle_end, outcomes)

    def _outcomes(self, results: Iterable[Result]) -> Iterator[Any]:
        for result in results:
            if isinstance(result.context, Pending):
                for outcome in self._runs.take(result):
                    yield from self._of_recipe(outcome)
            else:
                yield from _outcomes([result])

    def _give_up(self, error: MillError) -> None:
        """Keep what was paid for."""
        if isinstance(error, TooManyFailures):
            for feeder in self._feeders.values():
                feeder.close(error)  # pays for no more; whoever shares the engine fails with the same error
        with contextlib.suppress(MillError):
            self._worker.flush()
        self._leave()

    def teardown(self) -> None:
        self._leave()  # after a bundle that failed elsewhere

    def _leave(self) -> None:
        if self._at_work:
            self._at_work = False
            for feeder in self._feeders.values():
                registry.release(feeder)
            self._worker.end()


class _LedgerSink:
    """Takes the results of a bundle to the ledger."""

    def __init__(self, planner: TracePlanner, recipes: RecipePlanner, worker: Worker) -> None:
        self._planner, self._recipes, self._worker = planner, recipes, worker

    def keep(self, result: Result | Partial) -> None:
        if isinstance(result, Partial):
            self._worker.keep_partial(as_partial(self._row(result)))
        elif isinstance(result, Completed):
            self._worker.keep(self._row(result))
        elif not isinstance(result.context, Pending):  # one of a recipe's is noted when its run hears of it
            self._worker.note_failure(result)

    def _row(self, result: Completed | Partial) -> LedgerRow:
        if isinstance(result.context, Pending):
            return result.context.row(self._recipes, result)
        request, sample = result.context
        return self._planner.ledger_row(
            request, sample, result.generation, wall_s=result.wall_s, finished_at=result.finished_at
        )


def _begun(request: Request, key: str) -> Generation | None:
    """What there is of a generation that was interrupted."""
    row = next((row for row in request.begun if row.key == key), None)
    return None if row is None else generation_of(row)


def _of_recipe(outcome: Counted | Ended) -> Iterator[Any]:
    if isinstance(outcome, Counted):
        yield {"thought_tokens_found" if outcome.found else "thought_tokens_now": outcome.tokens}
    elif outcome.row is None:
        yield from _failed(outcome.request, outcome.key, outcome.error, outcome.may_pass)
    else:
        yield (
            {"generated": 1}
            | _count_if("empty", not outcome.row.text.strip())
            | _count_if("continued", outcome.row.continued > 0)
        )


def _failed(request: Request, key: str, error: str, may_pass: bool) -> Iterator[Any]:
    yield beam.pvalue.TaggedOutput(
        FAILED,
        Quarantined(
            stage="augment",
            origin=key,
            doc_id=request.doc_id,
            reason="generation_failed",
            detail=f"model {request.model}, segment {request.segment_id}: {error}",
        ),
    )
    yield {"failed": 1} | _count_if("failed_for_good", not may_pass)


def _outcomes(results: Iterable[Result]) -> Iterator[Any]:
    for result in results:
        if isinstance(result, Failure):
            yield from _failed(result.context[0], result.key, result.error, result.may_pass)
        else:
            generation, found = result.generation, result.found_tokens
            yield (
                {"generated": 1, "thought_tokens_now": generation.paid_tokens - found}
                | ({"thought_tokens_found": found} if found else {})
                | _count_if("empty", not generation.text.strip())
                | _count_if("continued", generation.continued > 0)
            )


def _made_before(request: Request, sample: int, tokens: int) -> dict[str, int]:
    """The counts of what an earlier attempt of this run has made: those of that attempt, however often it is tried.

    The run has not paid for the tokens that it found: of a recipe's calls, and of what was begun before.
    """
    before = (*request.known, *request.begun)
    found = min(tokens, sum(row.thought_tokens for row in before if row.sample == sample))
    return {"generated": 1, "thought_tokens_now": tokens - found} | ({"thought_tokens_found": found} if found else {})


def _count_if(name: str, holds: bool) -> dict[str, int]:
    return {name: 1} if holds else {}
