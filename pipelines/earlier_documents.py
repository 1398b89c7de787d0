"""The documents that are in a corpus before a delivery joins it, for the steps that look for copies: see `Score`."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam

from sharding.beam.joins import JoinParts
from sharding.beam.part_join import JoinedDocument, Parts
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.laying_out import cluster_of
from sharding.records.families import NEAR_COPIES, SEGMENTS
from sharding.records.types import Document
from sharding.sources.duplicates import EARLIER_SOURCE
from sharding.storage import manifest


class EarlierDocuments(beam.PTransform):
    """The documents of outputs, as they were scored, in the source `EARLIER_SOURCE`; each with its cluster.

    Args:
        outputs: folders whose score stage has finished.
        tokenizer: name of the training tokenizer, which spells the texts.
    """

    def __init__(self, outputs: Sequence[str], tokenizer: str) -> None:
        super().__init__()
        scored = [(output, manifest.require(output, "score")) for output in outputs]
        self._parts = [
            (Parts.of(output, made, SEGMENTS, ("input_ids",)), Parts.of(output, made, NEAR_COPIES))
            for output, made in scored
        ]
        self._tokenizer = tokenizer

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        each = [root | f"Delivery {number}" >> JoinParts(*parts) for number, parts in enumerate(self._parts)]
        together = tuple(each) | "Together" >> beam.Flatten()
        return together | "Texts" >> beam.Map(_document, self._tokenizer).with_output_types(Document)


def _document(found: JoinedDocument, tokenizer: str) -> Document:
    doc_id = found.scored.doc_id
    return Document(
        doc_id=doc_id,
        text=load_tokenizer(tokenizer).decode(found.scored.input_ids),
        origin=doc_id,
        source=EARLIER_SOURCE,
        cluster=cluster_of(found),
    )
