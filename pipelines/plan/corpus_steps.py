"""One look at every scored segment: which steps from tier to tier it could take, at which expected gain for the cost.

scored parts ─► expected gain of each tier ─► steps, counted ─► stages/gain/steps.json

A few kilobytes for any corpus, the same on every runner, made once for a model and its costs.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from difficulty.budget.steps import GainSteps
from pipelines.beam_options import local_shuffle
from pipelines.outcome import WriteOutcome, take_outcome
from pipelines.plan.expected_gain import GAIN_COLUMNS, ExpectedGain
from pipelines.running import run_pipeline
from sharding import hashing, storage
from sharding.beam.joins import JoinParts
from sharding.beam.part_join import JoinedDocument, Parts
from sharding.errors import MillError
from sharding.records.families import SEGMENTS
from sharding.storage import manifest
from sharding.storage.json_files import read_json
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

COLUMNS = ("input_ids", "surprisal_nats", "memory_nats", "difficulty_nats", *GAIN_COLUMNS)
"""What the model of gain looks at."""


class _Stored(msgspec.Struct):
    """The file."""

    made_from: str
    steps: dict[str, Any]


def corpus_steps(expected: ExpectedGain, scored: Manifest, options: PipelineOptions, scored_in: str) -> GainSteps:
    """The steps of the corpus: as an earlier look left them, or by a pipeline over the scored parts.

    Args:
        expected: what the run goes by; the steps are left in its output.
        scored: the manifest of the scored parts.
        options: of the pipeline.
        scored_in: the output whose manifest that is.

    Raises:
        MillError: the pipeline failed.
    """
    at = Output(expected.config.output)
    made_from = hashing.fingerprint([manifest.digest(scored), expected.digest])
    if (found := _read(at.steps, made_from)) is not None:
        return found
    url = at.outcome("gain", secrets.token_hex(8))
    with local_shuffle(options, at.shuffle("gain")):
        pipeline = beam.Pipeline(options=options)
        documents = pipeline | "Documents" >> JoinParts(Parts.of(scored_in, scored, SEGMENTS, COLUMNS))
        steps = documents | "Count steps" >> beam.CombineGlobally(_GainStepsCombineFn(expected))
        as_json = steps | "As JSON" >> beam.Map(GainSteps.to_json)
        counts = steps | "Count segments" >> beam.Map(lambda steps: {"segments": steps.num_segments})
        pipeline | "Outcome" >> WriteOutcome(url, {}, (counts,), {"steps": as_json})
        run_pipeline(pipeline, "gain")
    outcome = take_outcome(url)
    if outcome.counts["segments"] != scored.counts["segments"]:
        raise MillError(
            f"gain: {outcome.counts['segments']:,} segments were looked at, and {scored.counts['segments']:,} were "
            "scored: run `thoughtmill verify` on the output"
        )
    made = GainSteps.from_json(outcome.facts["steps"])
    storage.write_json(at.steps, msgspec.to_builtins(_Stored(made_from, made.to_json())))
    return made


def _read(url: str, made_from: str) -> GainSteps | None:
    """What an earlier look left, None where it was at other segments, by another model, or can't be read."""
    if not storage.exists(url):
        return None
    try:
        found = read_json(url, _Stored, "the steps of a corpus")
        return GainSteps.from_json(found.steps) if found.made_from == made_from else None
    except MillError:
        return None  # another look costs little


class _GainStepsCombineFn(beam.CombineFn):
    """The steps of documents. A document is asked about at once, as it is where its requests are made."""

    def __init__(self, expected: ExpectedGain) -> None:
        self._gains, self._costs = expected.gains, expected.costs

    def create_accumulator(self) -> GainSteps:
        return GainSteps(self._costs)

    def add_input(self, steps: GainSteps, document: JoinedDocument) -> GainSteps:
        gains, deviations = self._gains.expected(list(document.scored.segments()))
        steps.add(gains, deviations, document.scored.segment_difficulty_nats)
        return steps

    def merge_accumulators(self, parts: Iterable[GainSteps]) -> GainSteps:
        merged = self.create_accumulator()
        for steps in parts:
            merged = merged.merge(steps)
        return merged

    def extract_output(self, steps: GainSteps) -> GainSteps:
        return steps
