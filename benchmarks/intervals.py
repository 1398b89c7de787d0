"""How often a plan's 90% intervals hold the truth: shares and lengths from a pilot, and tier splits from a sample.

    python -m benchmarks.intervals

Shares: the truth is the share of all of a tier's traces, of which a pilot has seen n; the least and the mean over
shares of 0.02 to 0.98, with segments of their own documents and with documents of unequal numbers of segments that are
alike. Lengths: traces with a heavy tail up to a cap. Tier splits: corpora of two kinds with heavy tails, of 2,000
documents each, of which a plan scores n pieces; each is drawn anew for every interval. The last line is one JSON object
with the figures.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import conclude
from difficulty.budget.allocation import Allocation
from pipelines.config import MillConfig
from pipelines.joints import allocation_of
from pipelines.plan import chance
from pipelines.plan.allocations import plans_of
from pipelines.plan.corpus import Evidence, SampledDocument, scaled_histogram
from pipelines.plan.pieces import BYTES_PER_TOKEN, Piece, choose_pieces, size_of
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError
from sharding.records.types import Document, ScoredSegment

MEASURED = (4, 8, 16, 64)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
ALL_TRACES = 100_000
ALIKE = 0.3
SAMPLED = (16, 64, 256)
CORPUS_DOCUMENTS = 2_000
TRIALS = 100
SPLIT_TRIALS = 60
CAP_TOKENS = 2_048
TRACES = 2_000
SEGMENT_TOKENS = 256
_BLOCK = 16  # characters that say where they stand
_PLACES = "".join(f"{place:0{_BLOCK - 1}} " for place in range(2_000_000 // _BLOCK))


def holds(found: dict[str, float], truth: float) -> bool:
    """Whether an interval holds it."""
    return found["low"] - 1e-9 <= truth <= found["high"] + 1e-9


# --- what a pilot says ------------------------------------------------------------------------------------------------


def documents_of(random: np.random.Generator, num_segments: int) -> np.ndarray:
    """(num_segments,) documents with a few segments each, some with many."""
    sizes = np.ceil(random.lognormal(0.5, 0.9, num_segments)).astype(int)
    return np.repeat(np.arange(num_segments), sizes)[:num_segments]


def share_coverage(num_segments: int, share: float) -> float:
    """The chance that the interval of a share holds it, each segment of its own document: exact, over all counts."""
    counts = range(num_segments + 1)
    chances = (math.comb(num_segments, k) * share**k * (1 - share) ** (num_segments - k) for k in counts)
    return sum(c for k, c in zip(counts, chances, strict=True) if holds(_share_interval(k, num_segments), share))


@functools.cache
def _share_interval(count: int, num_segments: int) -> dict[str, float]:
    return _interval_of_share(np.arange(num_segments) < count, np.arange(num_segments), np.random.default_rng(count))


def _interval_of_share(passed: np.ndarray, documents: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    totals = np.full(1 + chance.DRAWS, float(ALL_TRACES))
    return chance.estimate(chance.total(passed.astype(float), documents, totals, random, least=0, most=1) / totals)


def share_coverage_in_documents(num_segments: int, share: float, trials: int, seed: int) -> float:
    """The same by simulation, where segments of a document are alike: their correlation is `ALIKE`."""
    random = np.random.default_rng([seed, num_segments, int(share * 1000)])
    odds = (1 - ALIKE) / ALIKE
    held = 0
    for _ in range(trials):
        documents = documents_of(random, num_segments)
        own = random.beta(share * odds, (1 - share) * odds, num_segments)
        passed = random.random(num_segments) < own[documents]
        held += holds(_interval_of_share(passed, documents, random), share)
    return held / trials


def heavy_lengths(random: np.random.Generator) -> np.ndarray:
    """Lognormal up to the cap, which a tenth of them reach."""
    return np.minimum(np.ceil(random.lognormal(6.0, 1.2, TRACES)), CAP_TOKENS)


def lengths_with_loops(random: np.random.Generator) -> np.ndarray:
    """Short ones, but for one in twenty that goes on to the cap."""
    return np.where(random.random(TRACES) < 0.05, CAP_TOKENS, random.normal(300, 60, TRACES))


LENGTHS = {"heavy": heavy_lengths, "loops": lengths_with_loops}


def length_coverage(kind: str, num_segments: int, trials: int, seed: int) -> tuple[float, float]:
    """How often the interval of thinking tokens holds what all traces come to, and its median width against that."""
    random = np.random.default_rng([seed, num_segments])
    held, widths = 0, []
    for _ in range(trials):
        lengths = LENGTHS[kind](random)
        truth = float(lengths.sum())
        totals = np.full(1 + chance.DRAWS, float(len(lengths)))
        own = np.arange(num_segments)
        found = chance.total(lengths[:num_segments], own, totals, random, least=0, most=CAP_TOKENS)
        interval = chance.estimate(found)
        held += holds(interval, truth)
        widths.append((interval["high"] - interval["low"]) / truth)
    return held / trials, float(np.median(widths))


# --- what a sample says -----------------------------------------------------------------------------------------------


class SimulatedCorpus(NamedTuple):
    """Documents by their tokens, bytes, and the difficulty of each of their segments."""

    tokens: np.ndarray
    text_bytes: np.ndarray
    difficulty_nats: list[np.ndarray]


def web_pages(random: np.random.Generator, num_documents: int) -> SimulatedCorpus:
    """Lognormal lengths, from a line to a book; lognormal difficulty, and segments of a page are alike."""
    tokens = np.clip(random.lognormal(6.3, 1.5, num_documents), 20, 4e5).astype(int)
    level = random.normal(-1.0, 0.8, num_documents)
    return _corpus(random, tokens, lambda i, n: np.exp(level[i] + random.normal(0, 0.7, n)))


def notes_and_dumps(random: np.random.Generator, num_documents: int) -> SimulatedCorpus:
    """Pareto lengths: a few dumps hold much of it, and are easier the longer they are; difficulty comes in bursts."""
    tokens = np.minimum(150 * (1 + random.pareto(1.2, num_documents)), 3e5).astype(int)
    level = random.normal(0, 0.6, num_documents) - 0.2 * np.log(tokens / 150)
    return _corpus(random, tokens, lambda i, n: 0.1 * np.exp(level[i]) * (1 + random.pareto(1.6, n)))


def _corpus(
    random: np.random.Generator, tokens: np.ndarray, nats_per_token: Callable[[int, int], np.ndarray]
) -> SimulatedCorpus:
    difficulty = []
    for number, length in enumerate(tokens.tolist()):
        lengths = _segment_tokens(length)
        difficulty.append(lengths * np.minimum(nats_per_token(number, len(lengths)), 10.0))
    text_bytes = np.minimum(tokens * random.lognormal(np.log(BYTES_PER_TOKEN), 0.15, len(tokens)), len(_PLACES))
    return SimulatedCorpus(tokens, text_bytes.astype(int), difficulty)


def _segment_tokens(length: int) -> np.ndarray:
    return np.array([*[SEGMENT_TOKENS] * ((length - 1) // SEGMENT_TOKENS), (length - 1) % SEGMENT_TOKENS + 1])


KINDS = {"web pages": web_pages, "notes and dumps": notes_and_dumps}


def plan_config() -> MillConfig:
    """A run with a tier that few segments reach."""
    tiers: list[dict[str, Any]] = [
        {"name": "skip"},
        {"name": "brief", "model": "m", "prompt": "brief", "max_tokens": 256},
        {"name": "deep", "model": "m", "prompt": "expert", "max_tokens": 2048, "samples": 2},
    ]
    return from_mapping(
        {
            "source": {"path": "in.jsonl"},
            "output": "out",
            "tokenizer": "t",
            "difficulty": {"scorer": "rehearsal", "segment_tokens": SEGMENT_TOKENS},
            "models": {"m": {"engine": "rehearsal", "name": "m"}},
            "budget": {"thinking_tokens_per_source_token": 1.0, "tiers": tiers},
            "pack": {"sequence_length": 4096, "num_shards": 1},
        }
    )


def sample(corpus: SimulatedCorpus, wanted: int, seed: int) -> Evidence:
    """What a plan would know of it."""
    documents = [
        (Document(doc_id=str(i), text=_PLACES[:length], origin=f"{seed}:{i}"), 0)
        for i, length in enumerate(corpus.text_bytes.tolist())
    ]
    pieces, size = choose_pieces(documents, wanted, SEGMENT_TOKENS)
    return Evidence(
        scored=None,
        sample=tuple(_scored(corpus, piece) for piece in pieces),
        text_bytes=float(corpus.text_bytes.sum()),
        size=size,
        complete=False,
        whole_groups=True,
        scoring_tokens_per_second=None,
        notes=(),
    )


def _scored(corpus: SimulatedCorpus, piece: Piece) -> SampledDocument:
    """The piece's segments, as far as they are counted."""
    number = int(piece.document.doc_id)
    lengths = _segment_tokens(int(corpus.tokens[number]))
    bytes_per_token = piece.document_bytes / corpus.tokens[number]
    ends = np.cumsum(lengths) * bytes_per_token
    text = piece.document.text
    start = 0 if piece.is_first else (int(text.split(" ")[1]) * _BLOCK - text.index(" ") - 1)
    # Edges are dropped as the product drops them: a segment counts that begins and ends in the piece.
    inside = np.flatnonzero((ends - lengths * bytes_per_token >= start - 1) & (ends <= start + len(text) + 1))
    inside = inside if len(inside) else np.array([np.searchsorted(ends, start)])
    text_bytes = float(lengths[inside].sum() * bytes_per_token)
    size = size_of(text_bytes, SEGMENT_TOKENS)
    return SampledDocument(
        segments=tuple(_segment(str(number), i, lengths[i], corpus.difficulty_nats[number][i]) for i in inside),
        text_bytes=int(text_bytes),
        group=0,
        size=size,
        weight=piece.size / size / piece.chance,
        chance=piece.chance,
        share=text_bytes / piece.document_bytes,
    )


def _segment(doc_id: str, index: int, tokens: int, difficulty_nats: float) -> ScoredSegment:
    none = np.empty(0, np.float16)
    return ScoredSegment(
        doc_id=doc_id,
        segment_index=int(index),
        num_segments=1,
        token_start=0,
        input_ids=np.zeros(tokens, np.uint16),
        surprisal_nats=none,
        entropy_nats=none,
        memory_nats=none,
        difficulty_nats=float(difficulty_nats),
    )


def split_intervals(
    config: MillConfig, kind: str, wanted: int, trials: int, seed: int, num_documents: int = CORPUS_DOCUMENTS
) -> Iterator[dict[str, tuple[bool, float]]]:
    """For each corpus: by tier, and for all segments, whether the interval held, and its width against the truth."""
    for trial in range(trials):
        random = np.random.default_rng([seed, trial, wanted])
        corpus = KINDS[kind](random, num_documents)
        difficulty = np.concatenate(corpus.difficulty_nats)
        whole = scaled_histogram(difficulty, np.ones(len(difficulty)))
        truth = allocation_of(config, whole, int(corpus.tokens.sum()))
        evidence = sample(corpus, wanted, trial)
        try:
            corpora, plans, _ = plans_of(config, evidence, evidence.resamplings(random))
        except RequestError:  # the plan is refused, and says so
            continue
        yield {
            **{tier.name: _judged(plans, number, tier.segments) for number, tier in enumerate(truth.tiers)},
            "segments": _of(np.array([c.segments for c in corpora]), len(difficulty)),
            "tokens": _of(np.array([c.source_tokens for c in corpora]), float(corpus.tokens.sum())),
        }


def _judged(plans: list[Allocation], number: int, truth: float) -> tuple[bool, float]:
    return _of(np.array([plan.tiers[number].segments for plan in plans]), truth)


def _of(values: np.ndarray, truth: float) -> tuple[bool, float]:
    found = chance.estimate(values, resampled=True)
    return holds(found, truth), (found["high"] - found["low"]) / max(truth, 1.0)


def main(trials: int = TRIALS, split_trials: int = SPLIT_TRIALS) -> None:
    console = Console()
    figures: dict[str, float] = {}
    table = Table("segments", "own documents: least, mean", "few documents: least, mean", title="Shares of a pilot")
    for measured in MEASURED:
        found = [
            [share_coverage(measured, share) for share in SHARES],
            [share_coverage_in_documents(measured, share, trials, 1) for share in SHARES],
        ]
        table.add_row(str(measured), *(f"{min(f):.1%}, {np.mean(f):.1%}" for f in found))
        figures[f"share_least_n{measured}"] = min(found[0])
        figures[f"share_mean_n{measured}"] = float(np.mean(found[0]))
        figures[f"share_least_in_documents_n{measured}"] = min(found[1])
    console.print(table)

    table = Table("segments", *LENGTHS, title="Thinking tokens of a pilot: coverage, and median width")
    for measured in MEASURED:
        lengths = {kind: length_coverage(kind, measured, trials, 2) for kind in LENGTHS}
        table.add_row(str(measured), *(f"{held:.1%}, {width:.0%}" for held, width in lengths.values()))
        figures |= {f"lengths_{kind}_n{measured}": held for kind, (held, _) in lengths.items()}
    console.print(table)

    config = plan_config()
    columns = ("skip", "brief", "deep", "segments", "tokens")
    table = Table("corpus", "sampled", *columns, title="Tier splits of a sample: coverage, and median width")
    for kind in KINDS:
        for wanted in SAMPLED:
            rows = list(split_intervals(config, kind, wanted, split_trials, 3))
            held = {name: float(np.mean([row[name][0] for row in rows])) for name in columns}
            width = {name: float(np.median([row[name][1] for row in rows])) for name in columns}
            table.add_row(kind, str(wanted), *(f"{held[name]:.1%}, {width[name]:.0%}" for name in columns))
            for name in ("skip", "brief", "deep"):
                figures[f"{kind.replace(' ', '_')}_{name}_n{wanted}"] = held[name]
    console.print(table)
    conclude(console, "intervals", figures, ("numpy",))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
