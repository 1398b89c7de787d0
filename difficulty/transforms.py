"""Beam transforms of the difficulty package: documents in, scored segments and a histogram of difficulty out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from difficulty.config import DifficultyConfig
from difficulty.histogram import DifficultyHistogram
from difficulty.scorers import Scorer, make_scorer
from difficulty.scoring import score_segments
from sharding.records import Document, Quarantined, ScoredSegment
from sharding.tokenizer import TextTokenizer, UnencodableText, load_tokenizer

BATCH_BYTES = 256 << 10
"""Documents are scored together up to this many bytes of text, so that the scorer can sort them by length."""

QUARANTINED = "quarantined"

_shared_scorer = Shared()


class ScoreDocuments(beam.PTransform):
    """Tokenizes, cuts and scores documents.

    Args:
        config: the `difficulty` section.
        tokenizer: name of the training tokenizer.

    Returns:
        The collections `segments` (ScoredSegment) and `quarantined` (Quarantined: text the tokenizer can't spell).
    """

    def __init__(self, config: DifficultyConfig, tokenizer: str) -> None:
        super().__init__()
        self._config, self._tokenizer = config, tokenizer

    def expand(self, documents: beam.PCollection) -> Any:
        outputs = documents | beam.ParDo(_ScoreFn(self._config, self._tokenizer)).with_outputs(
            QUARANTINED, main="segments"
        )
        outputs["segments"].element_type = ScoredSegment
        outputs[QUARANTINED].element_type = Quarantined
        return outputs


class _ScoreFn(beam.DoFn):
    def __init__(self, config: DifficultyConfig, tokenizer: str) -> None:
        self._config, self._tokenizer_name = config, tokenizer

    def setup(self) -> None:
        self._tokenizer: TextTokenizer = load_tokenizer(self._tokenizer_name)
        self._scorer: Scorer = _shared_scorer.acquire(lambda: make_scorer(self._config), tag=self._config)

    def start_bundle(self) -> None:
        self._waiting: list[Document] = []
        self._waiting_bytes = 0

    def process(self, document: Document) -> Iterator[Any]:
        self._waiting.append(document)
        self._waiting_bytes += len(document.text)
        if self._waiting_bytes >= BATCH_BYTES:
            yield from self._score()

    def finish_bundle(self) -> Iterator[Any]:
        for output in self._score():
            tagged = isinstance(output, beam.pvalue.TaggedOutput)
            value = WindowedValue(output.value if tagged else output, MIN_TIMESTAMP, [GlobalWindow()])
            yield beam.pvalue.TaggedOutput(output.tag, value) if tagged else value

    def _score(self) -> Iterator[Any]:
        documents, self._waiting, self._waiting_bytes = self._waiting, [], 0
        encoded = []
        for document in documents:
            try:
                encoded.append((document, self._tokenizer.encode(document.text)))
            except UnencodableText as error:
                yield beam.pvalue.TaggedOutput(QUARANTINED, _refused(document, error))
        yield from score_segments(encoded, self._tokenizer, self._scorer, self._config)


def _refused(document: Document, error: UnencodableText) -> Quarantined:
    return Quarantined(
        stage="score",
        origin=document.origin,
        doc_id=document.doc_id,
        reason=error.reason,
        detail=str(error),
        excerpt=document.text[:400].encode(errors="backslashreplace").decode(),
    )


class DifficultyHistogramCombineFn(beam.CombineFn):
    """The histogram of the difficulty mass of segments: all the global state that the budget needs."""

    def create_accumulator(self) -> DifficultyHistogram:
        return DifficultyHistogram()

    def add_input(self, histogram: DifficultyHistogram, segment: ScoredSegment) -> DifficultyHistogram:
        histogram.add(segment.segment_id, segment.difficulty_nats)
        return histogram

    def merge_accumulators(self, histograms: Iterable[DifficultyHistogram]) -> DifficultyHistogram:
        merged = DifficultyHistogram()
        for histogram in histograms:
            merged = merged.merge(histogram)
        return merged

    def extract_output(self, histogram: DifficultyHistogram) -> DifficultyHistogram:
        return histogram
