"""Beam transforms of contexts: documents get the contractions that their prompts show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV

from augment.contexts.contractor import Contracted, Contractor
from augment.feeding.config import FeedingConfig
from augment.feeding.worker import WorkOrder
from augment.ledger.reading import collapse_duplicates
from augment.recipes.contracting import CONTRACTION_STEP
from augment.requests.contraction import contracted_segments, contraction_request, contractions_wanted
from augment.requests.planner import TracePlanner
from augment.requests.tiers import CONTRACTIONS, SegmentChoices
from sharding import records
from sharding.beam.counts import COUNTS
from sharding.beam.joins import GroupRecords
from sharding.beam.part_join import JoinedDocument
from sharding.beam.shuffle import PutElementsAside, at_bundle_end
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import LedgerRow, ScoredDocument

_LONG = "long"


class ContractDocuments(beam.PTransform):
    """Documents get the contractions that their prompts show, found in the ledger or made.

    Takes {"documents": JoinedDocument, "rows": (request key, LedgerRow)}; gives `documents`, those that need any with
    their contractions beside them as `CONTRACTIONS`, and `counts`. Where no tier shows one, they go on as they are.

    Args:
        planner: what the tiers ask for.
        choices: what was decided of the segments.
        feeding: the section of the config.
        order: the run.
        num_partitions: see `sharding.beam.shuffle.GroupBytes`.
    """

    def __init__(
        self,
        planner: TracePlanner,
        choices: SegmentChoices,
        feeding: FeedingConfig,
        order: WorkOrder,
        num_partitions: int,
    ) -> None:
        super().__init__()
        self._planner, self._choices, self._feeding, self._order = planner, choices, feeding, order
        self._num_partitions = num_partitions

    def expand(self, pcolls: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        documents = pcolls["documents"]
        if self._planner.contraction is None:
            return {"documents": documents, COUNTS: documents.pipeline | "None" >> beam.Create([])}
        sort_out = beam.ParDo(_SortOutFn(self._planner, self._choices))
        sorted_out = documents | "Which" >> sort_out.with_outputs(_LONG, main="others")
        sorted_out["others"].element_type = JoinedDocument
        sorted_out[_LONG].element_type = KV[str, ScoredDocument]
        rows = pcolls["rows"] | "Calls" >> beam.Filter(_is_contraction).with_output_types(KV[str, LedgerRow])
        grouped = {"documents": sorted_out[_LONG], "rows": rows} | "Join" >> GroupRecords(
            self._num_partitions, documents=ScoredDocument, rows=LedgerRow
        )
        contract = beam.ParDo(_ContractFn(self._planner, self._choices, self._feeding, self._order))
        contract = contract.with_resource_hints(**self._planner.models[self._planner.contraction.model].resource_hints)
        contracted = grouped | "Contract" >> contract.with_outputs(COUNTS, main="documents")
        contracted["documents"].element_type = JoinedDocument
        together = PutElementsAside(JoinedDocument, _encode_contracted, _decode_contracted)
        both = (sorted_out["others"], contracted["documents"]) | "All" >> together
        return {"documents": both, COUNTS: contracted[COUNTS]}


def _encode_contracted(document: JoinedDocument) -> bytes:
    """A document with its contractions, and nothing else that is beside it, as bytes."""
    return msgspec.msgpack.encode((list(document.beside.get(CONTRACTIONS, ())), records.encode(document.scored)))


def _decode_contracted(data: bytes) -> JoinedDocument:
    contractions, scored = _contracted_decoder.decode(data)
    return JoinedDocument(records.decode(ScoredDocument, scored), {CONTRACTIONS: contractions} if contractions else {})


_contracted_decoder = msgspec.msgpack.Decoder(tuple[list[str], bytes])


def _is_contraction(row: tuple[str, LedgerRow]) -> bool:
    return row[1].step == CONTRACTION_STEP


class _SortOutFn(beam.DoFn):
    def __init__(self, planner: TracePlanner, choices: SegmentChoices) -> None:
        self._planner, self._choices = planner, choices

    def process(self, document: JoinedDocument) -> Iterator[Any]:
        segments = list(document.scored.segments())
        if contractions_wanted(self._planner, segments, self._choices):
            key = contraction_request(self._planner, segments).request_key
            yield beam.pvalue.TaggedOutput(_LONG, (key, document.scored))
        else:
            yield document


class _ContractFn(beam.DoFn):
    """One bundle is one ticket at the feeder of the model that contracts."""

    def __init__(
        self, planner: TracePlanner, choices: SegmentChoices, feeding: FeedingConfig, order: WorkOrder
    ) -> None:
        self._planner, self._choices, self._feeding, self._order = planner, choices, feeding, order
        self._contractor: Contractor[ScoredDocument] | None = None

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._planner.tokenizer)

    def start_bundle(self) -> None:
        self._contractor = Contractor(self._planner, self._feeding, self._order)
        self._contractor.begin()

    def process(self, group: tuple[str, Mapping[str, list[Any]]]) -> Iterator[Any]:
        assert self._contractor is not None
        _, joined = group
        known = collapse_duplicates(joined["rows"])
        for document in joined["documents"]:
            segments = list(document.segments())
            wanted = contractions_wanted(self._planner, segments, self._choices)
            texts = [self._tokenizer.decode(segment.input_ids) for segment in segments[:wanted]]
            request = contraction_request(self._planner, segments)
            try:
                for outcome in self._contractor.take(document, request, texts, known):
                    yield from self._told(outcome)
            except MillError as error:
                self._contractor.give_up(error)
                raise

    def finish_bundle(self) -> Iterator[Any]:
        assert self._contractor is not None
        try:
            outcomes = [told for outcome in self._contractor.finish() for told in self._told(outcome)]
        except MillError as error:
            self._contractor.give_up(error)
            raise
        self.teardown()
        # Only now: what is emitted must be durable.
        yield from map(at_bundle_end, outcomes)

    def teardown(self) -> None:
        if self._contractor is not None:
            self._contractor.leave()  # also after a bundle that failed elsewhere

    def _told(self, outcome: Contracted[ScoredDocument] | dict[str, int]) -> Iterator[Any]:
        if isinstance(outcome, dict):
            yield beam.pvalue.TaggedOutput(COUNTS, outcome)
            return
        document, made = outcome.subject, outcome.contractions
        if outcome.error:
            places = contracted_segments(self._planner, list(document.segments()), self._choices)
            without = sum(place > len(made) for place in places)
            yield beam.pvalue.TaggedOutput(COUNTS, {"contractions_failed": 1, "segments_without_contraction": without})
        yield JoinedDocument(document, {CONTRACTIONS: list(made)})
