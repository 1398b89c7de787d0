"""What contexts cost: tokens of prompts with contractions and without, and an index of passages at 100,000 segments.

Called by `benchmarks.recipes`. Texts are made up of words whose frequencies fall as those of a language do.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from augment.contexts.passage_index import StoredIndex, build_shard, load_index
from augment.contexts.passages import Passage, passages_of, runs_of
from augment.engines.config import ModelConfig, SamplingConfig
from augment.requests.closing import ClosingConfig
from augment.requests.contexts import Contexts
from augment.requests.contraction import as_long_as_contractions
from augment.requests.planner import TracePlanner
from augment.requests.tiers import CONTRACTION, FULL, ContractionRequest, TierRequest
from augment.selection.words import words_of
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request, ScoredSegment
from sharding.storage import write_json

SEGMENT_TOKENS, CONTRACTION_TOKENS = 512, 256
PAGES = (4, 16, 128)
"""Segments of the documents whose prompts are measured."""

SEGMENTS, SEGMENTS_PER_DOCUMENT, WORDS_PER_SEGMENT = 100_000, 5, 150
VOCABULARY, EXPONENT = 100_000, 1.05
QUERIES, QUERY_SPANS, SPAN_WORDS, PASSAGES = 300, 8, 4, 4


def prompt_figures(model: str) -> dict[str, float]:
    """Tokens for a segment, on average over documents of so many segments, all of which think.

    `full_N`: of its prompt with the document before it; `contraction_N`: with a contraction of it, as long as allowed;
    `contracting_N`: of the prompts by which that was made; what those wrote is CONTRACTION_TOKENS more at most.
    """
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(" ".join(_words(np.random.default_rng(0), max(PAGES) * SEGMENT_TOKENS)))
    figures: dict[str, float] = {}
    for pages in PAGES:
        segments = [_segment(n, pages, ids[n * SEGMENT_TOKENS : (n + 1) * SEGMENT_TOKENS]) for n in range(pages)]
        for context in (FULL, CONTRACTION):
            planner = _planner(model, context)
            contractions = as_long_as_contractions(planner, segments, tokenizer)
            found = planner.requests(segments, _AllOfOne(), Contexts(contractions=contractions))
            lengths = [request.prompt_tokens for request in found if isinstance(request, Request)]
            figures[f"{context}_{pages}"] = statistics.fmean(lengths)
        builder = planner.builder("m", "contract", ("contraction", "words"))
        texts = [tokenizer.decode(segment.input_ids) for segment in segments]
        calls = [
            builder.build(
                text, max_tokens=CONTRACTION_TOKENS, fillings={"contraction": before, "words": "150"}
            ).token_ids
            for text, before in zip(texts[:-1], ["", *contractions], strict=False)
        ]
        figures[f"contracting_{pages}"] = sum(map(len, calls)) / pages
    return figures


def index_figures(segments: int = SEGMENTS) -> dict[str, float]:
    """How fast an index of one shard is built, by one process, and asked, with the own document left out.

    `_cpu` is processor time, which says more where the machine is busy with something else too.
    """
    random = np.random.default_rng(1)
    documents = segments // SEGMENTS_PER_DOCUMENT
    texts = [" ".join(_words(random, SEGMENTS_PER_DOCUMENT * WORDS_PER_SEGMENT)) for _ in range(documents)]
    with tempfile.TemporaryDirectory() as folder:
        url, archive = str(Path(folder) / "index.json"), Path(folder) / "passages-0.zip"
        began, began_cpu = time.perf_counter(), time.process_time()
        shard = build_shard(str(archive), _passages(texts))
        build_s, build_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        write_json(url, msgspec.to_builtins(StoredIndex(shard.digest, [shard])))
        index = load_index(url, shard.digest)
        times, cpu_times = [], []
        for number in random.integers(0, documents, QUERIES).tolist():
            words = texts[number].split()
            starts = random.integers(0, len(words) - SPAN_WORDS, QUERY_SPANS).tolist()
            spans = [" ".join(words[start : start + SPAN_WORDS]) for start in starts]
            own = runs_of(words_of(texts[number]))
            began, began_cpu = time.perf_counter(), time.thread_time()
            index.find(spans, f"d{number:08d}", own, PASSAGES)
            times.append(time.perf_counter() - began)
            cpu_times.append(time.thread_time() - began_cpu)
        return {
            "segments": documents * SEGMENTS_PER_DOCUMENT,
            "passages": shard.passages,
            "index_bytes": archive.stat().st_size,
            "build_docs_per_second": documents / build_s,
            "build_segments_per_second": documents * SEGMENTS_PER_DOCUMENT / build_s,
            "build_docs_per_cpu_second": documents / build_cpu_s,
            "query_cpu_ms_median": 1000 * statistics.median(cpu_times),
            "query_ms_median": 1000 * statistics.median(times),
            "query_ms_p95": 1000 * float(np.quantile(times, 0.95)),
        }


def _passages(texts: Sequence[str]) -> Iterator[Passage]:
    for number, text in enumerate(texts):
        yield from passages_of(f"d{number:08d}", text)


def _words(random: np.random.Generator, count: int) -> list[str]:
    """Words drawn by a power law over a vocabulary."""
    ranks = np.searchsorted(_CUMULATIVE, random.random(count)).clip(0, VOCABULARY - 1)
    return [_SPELLED[rank] for rank in ranks.tolist()]


_CUMULATIVE = np.cumsum(np.arange(1, VOCABULARY + 1) ** -EXPONENT)
_CUMULATIVE /= _CUMULATIVE[-1]
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_SPELLED = [
    _SYLLABLES[n % 70] + _SYLLABLES[n // 70 % 70] + (_SYLLABLES[n // 4900] if n >= 4900 else "")
    for n in range(VOCABULARY)
]


class _AllOfOne:
    """All segments get the one tier, and are shown whole."""

    def tiers(self, segments: Sequence[ScoredSegment]) -> list[int]:
        return [0] * len(segments)

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        return len(segment.input_ids)

    def focus(self, segment: ScoredSegment, text: str) -> list[str]:
        return []


def _planner(model: str, context: str) -> TracePlanner:
    tier: dict[str, Any] = {"tier": "t", "model": "m", "prompt": "expert", "samples": 1, "max_tokens": 256}
    asked = TierRequest(**tier, min_tokens=0, expected_tokens=256.0, context=(context,))
    planner = TracePlanner(
        tiers=(asked,),
        models={"m": ModelConfig(engine="rehearsal", name="m", max_model_len=8192)},
        sampling=SamplingConfig(),
        closing=ClosingConfig(),
        tokenizer=model,
    )
    if context == FULL:
        return planner
    contraction = ContractionRequest(model="m", prompt="contract", max_tokens=CONTRACTION_TOKENS)
    return dataclasses.replace(planner, contraction=contraction)


def _segment(number: int, of: int, ids: np.ndarray) -> ScoredSegment:
    nats = np.zeros(len(ids), np.float16)
    return ScoredSegment(
        doc_id="d",
        segment_index=number,
        num_segments=of,
        token_start=number * SEGMENT_TOKENS,
        input_ids=ids,
        surprisal_nats=nats,
        entropy_nats=nats,
        memory_nats=nats[:0],
        difficulty_nats=1.0,
    )
