"""The step of the score stage that leaves out who was taken down (`pipelines.tombstones`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipelines.tombstones import removed_counts, removed_from
from sharding.beam.counts import COUNTS
from sharding.records.types import Document


class LeaveOutRemoved(beam.PTransform):
    """Documents → `documents` that were not taken down, and `counts` of those that were.

    Args:
        output: the run's output folder, whose tombstones are read by the workers.
    """

    def __init__(self, output: str) -> None:
        super().__init__()
        self._output = output

    def expand(self, documents: beam.PCollection) -> Any:
        sorted_out = documents | beam.ParDo(_LeaveOutFn(self._output)).with_outputs(COUNTS, main="documents")
        sorted_out["documents"].element_type = Document
        return sorted_out


class _LeaveOutFn(beam.DoFn):
    def __init__(self, output: str) -> None:
        self._output = output

    def setup(self) -> None:
        self._is_removed = removed_from(self._output)

    def process(self, document: Document) -> Iterator[Any]:
        if not self._is_removed(document.doc_id):
            yield document
        else:
            yield beam.pvalue.TaggedOutput(COUNTS, removed_counts(document.source))
