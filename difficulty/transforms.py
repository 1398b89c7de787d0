"""Beam transforms of the difficulty package: documents in, scored segments and a histogram of difficulty out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.typehints import KV
from apache_beam.utils.shared import Shared

from difficulty.budget.histogram import DifficultyHistogram
from difficulty.config import DifficultyConfig
from difficulty.memory.counting import MemoryConfig, NgramCounts, join_ranges, merge_range, starting_level
from difficulty.memory.table import NgramMemory
from difficulty.scorers import make_scorer
from difficulty.scorers.protocol import Scorer
from difficulty.scoring import score_whole_documents
from sharding.beam.shuffle import GroupPartitions, PutRecordsAside, at_bundle_end
from sharding.models.tokenizer import TextTokenizer, UnencodableText, load_tokenizer
from sharding.records.types import Document, Quarantined, ScoredDocument, segment_id

BATCH_BYTES = 256 << 10
"""Documents are scored together up to this many bytes of text, so that the scorer can sort them by length."""

QUARANTINED = "quarantined"

_shared_scorer = Shared()


def shared_scorer(config: DifficultyConfig) -> Scorer:
    """The scorer of a config, loaded once per worker process; a later stage's too."""
    return _shared_scorer.acquire(lambda: make_scorer(config), tag=config)


class ScoreDocuments(beam.PTransform):
    """Tokenizes, cuts and scores documents.

    Args:
        config: the `difficulty` section.
        tokenizer: name of the training tokenizer.
        memory_url: singleton collection of the URL of the n-gram memory, "" for none.

    Returns:
        The collections `scored` (ScoredDocument) and `quarantined` (Quarantined: text the tokenizer can't spell).
    """

    def __init__(self, config: DifficultyConfig, tokenizer: str, memory_url: beam.PCollection) -> None:
        super().__init__()
        self._config, self._tokenizer, self._memory_url = config, tokenizer, memory_url

    def expand(self, documents: beam.PCollection) -> Any:
        if self._config.memory is not None:  # which is counted in these documents first
            documents = documents | "Put aside" >> PutRecordsAside(Document)
        outputs = documents | beam.ParDo(
            _ScoreFn(self._config, self._tokenizer), beam.pvalue.AsSingleton(self._memory_url)
        ).with_outputs(QUARANTINED, main="scored")
        outputs["scored"].element_type = ScoredDocument
        outputs[QUARANTINED].element_type = Quarantined
        return outputs


class _ScoreFn(beam.DoFn):
    def __init__(self, config: DifficultyConfig, tokenizer: str) -> None:
        self._config, self._tokenizer_name = config, tokenizer

    def setup(self) -> None:
        self._tokenizer: TextTokenizer = load_tokenizer(self._tokenizer_name)
        self._scorer = shared_scorer(self._config)

    def start_bundle(self) -> None:
        self._waiting: list[Document] = []
        self._waiting_bytes = 0
        self._tokenized: tuple[list[Document], Callable[[], list[np.ndarray]]] | None = None
        self._memory: NgramMemory | None = None
        # One batch is tokenized while the one before it is scored, unless the two would only wait for each other.
        self._thread = None if self._tokenizer.is_quick else ThreadPoolExecutor(1)

    def process(self, document: Document, memory_url: str) -> Iterator[Any]:
        self._memory = _load_memory(memory_url, self._tokenizer_name)
        self._waiting.append(document)
        self._waiting_bytes += len(document.text.encode(errors="surrogatepass"))
        if self._waiting_bytes >= BATCH_BYTES:
            yield from self._advance()

    def finish_bundle(self) -> Iterator[Any]:
        with self._thread or contextlib.nullcontext():
            yield from map(at_bundle_end, (*self._advance(), *self._advance()))

    def _advance(self) -> Iterator[Any]:
        """Has the waiting documents tokenized and scores those before them."""
        tokenized, self._tokenized = self._tokenized, None
        if self._waiting:
            texts = [document.text for document in self._waiting]
            self._tokenized = (self._waiting, self._encode(texts))
            self._waiting, self._waiting_bytes = [], 0
        if tokenized is not None:
            yield from self._score(*tokenized)

    def _encode(self, texts: list[str]) -> Callable[[], list[np.ndarray]]:
        """What gives the tokens of some texts, once they are needed."""
        encode = partial(self._tokenizer.encode_batch, texts)
        return encode if self._thread is None else self._thread.submit(encode).result

    def _score(self, documents: list[Document], tokens: Callable[[], list[np.ndarray]]) -> Iterator[Any]:
        try:
            encoded = list(zip(documents, tokens(), strict=True))
        except UnencodableText:
            # One of them: one by one, to set it apart.
            encoded = []
            for document in documents:
                try:
                    encoded.append((document, self._tokenizer.encode(document.text)))
                except UnencodableText as error:
                    yield beam.pvalue.TaggedOutput(QUARANTINED, _refused(document, error))
        yield from score_whole_documents(encoded, self._tokenizer, self._scorer, self._config, self._memory)


def _refused(document: Document, error: UnencodableText) -> Quarantined:
    return Quarantined(
        stage="score",
        origin=document.origin,
        doc_id=document.doc_id,
        reason=error.reason,
        detail=str(error),
        excerpt=document.text[:400].encode(errors="backslashreplace").decode(),
    )


@lru_cache(maxsize=1)
def _load_memory(url: str, tokenizer: str) -> NgramMemory | None:
    return NgramMemory.load(url, load_tokenizer(tokenizer)) if url else None


class CountNgrams(beam.PTransform):
    """Documents → the URL of their n-gram memory, once it is stored.

    Args:
        config: order and size.
        tokenizer: name of the training tokenizer.
        url: where the memory goes.
        corpus_tokens: about how many tokens the corpus has; all counts that are merged have to start alike.
    """

    def __init__(self, config: MemoryConfig, tokenizer: str, url: str, corpus_tokens: float) -> None:
        super().__init__()
        self._config, self._tokenizer, self._url = config, tokenizer, url
        self._min_level = starting_level(config, corpus_tokens)

    def expand(self, documents: beam.PCollection) -> beam.PCollection:
        # Where there are no documents there is a memory all the same.
        nothing = next(NgramCounts(self._config, self._min_level).ranges())
        none = documents.pipeline | "None" >> beam.Create([nothing], reshuffle=False).with_output_types(KV[int, bytes])
        counted = (
            documents
            | "Tokenize" >> beam.ParDo(_TokenizeFn(self._tokenizer))
            | "Count" >> beam.ParDo(_CountFn(self._config, self._min_level)).with_output_types(KV[int, bytes])
        )
        return (
            (counted, none)
            | "Ranges" >> GroupPartitions()
            | "Merge" >> beam.MapTuple(partial(_merged, self._config)).with_output_types(KV[int, bytes])
            | "All ranges" >> GroupPartitions()
            | "Store" >> beam.MapTuple(partial(_store_memory, self._config, self._url, self._tokenizer))
        )


class _TokenizeFn(beam.DoFn):
    def __init__(self, tokenizer: str) -> None:
        self._tokenizer_name = tokenizer

    def process(self, document: Document) -> Iterator[tuple[str, np.ndarray]]:
        # Text that can't be encoded goes to quarantine where it is scored.
        with contextlib.suppress(UnencodableText):
            yield document.doc_id, load_tokenizer(self._tokenizer_name).encode(document.text)


class _CountFn(beam.DoFn):
    """(doc_id, token ids) of a bundle → their n-grams by ranges."""

    def __init__(self, config: MemoryConfig, min_level: int) -> None:
        self._config, self._min_level = config, min_level

    def start_bundle(self) -> None:
        self._counts = NgramCounts(self._config, self._min_level)

    def process(self, document: tuple[str, np.ndarray]) -> None:
        self._counts.add(*document)

    def finish_bundle(self) -> Iterator[Any]:
        counts = self._counts
        del self._counts  # which may be a fifth of a gigabyte
        yield from map(at_bundle_end, counts.ranges())


def _merged(config: MemoryConfig, _: int, pieces: Iterable[bytes]) -> tuple[int, bytes]:
    return 0, merge_range(config, pieces)


def _store_memory(config: MemoryConfig, url: str, tokenizer: str, _: int, pieces: Iterable[bytes]) -> str:
    counts = join_ranges(config, pieces)
    NgramMemory.from_counts(counts, load_tokenizer(tokenizer).fingerprint).save(url)
    _load_memory.cache_clear()  # this process may have read what an earlier run stored under the same name
    return url


class DifficultyHistogramCombineFn(beam.CombineFn):
    """The histogram of the difficulty mass of segments: all the global state that the budget needs."""

    def create_accumulator(self) -> DifficultyHistogram:
        return DifficultyHistogram()

    def add_input(self, histogram: DifficultyHistogram, document: ScoredDocument) -> DifficultyHistogram:
        for index, nats in enumerate(document.segment_difficulty_nats.tolist()):
            histogram.add(segment_id(document.doc_id, index), nats)
        return histogram

    def merge_accumulators(self, histograms: Iterable[DifficultyHistogram]) -> DifficultyHistogram:
        merged = DifficultyHistogram()
        for histogram in histograms:
            merged = merged.merge(histogram)
        return merged

    def extract_output(self, histogram: DifficultyHistogram) -> DifficultyHistogram:
        return histogram
