"""Simulated corpora whose gain is known, for `benchmarks/learned_budget.py`: real scored segments of made-up tokens.

Every corpus has eight kinds of text, told by 30% of a segment's tokens, six sources and heavy-tailed difficulty, none of
them tied to another. They differ in what a thought gains by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from difficulty.budget.tiers import TierConfig
from sharding.records.types import ScoredSegment

SEGMENT_TOKENS = 256
THRESHOLD_NATS = 2.0
KIND_SHARE = 0.3
KIND_GAINS = np.array([4.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
SOURCE_GAINS = np.array([3.0, 1.5, 1.0, 0.5, 0.0, 0.0])
VOCABULARY = 3_000
NOISE_SHARE = 0.2
HARDEST = 0.95  # quantile of difficulty that noise lies around
DEEPER = 1 / 3  # what a tier of four times the tokens gains beyond the smaller one, against that

ONE_TIER = (TierConfig(name="skip"), TierConfig(name="think", model="m", prompt="expert", max_tokens=1024))
THREE_TIERS = (
    TierConfig(name="skip"),
    TierConfig(name="brief", model="m", prompt="brief", max_tokens=256),
    TierConfig(name="deep", model="m", prompt="expert", max_tokens=1024),
    TierConfig(name="other", model="n", prompt="expert", max_tokens=1024),
)


class SimulatedCorpus(NamedTuple):
    """Segments with the truth about them.

    Attributes:
        tiers: what can be bought.
        segments: (n,).
        documents: (n,) int64; a document has four segments.
        gains: (n, thinking tiers) float64, what each tier brings, in nats.
        is_noise: (n,) bool.
    """

    tiers: tuple[TierConfig, ...]
    segments: list[ScoredSegment]
    documents: np.ndarray
    gains: np.ndarray
    is_noise: np.ndarray


class Drawn(NamedTuple):
    """What a corpus's gain is made from: (n,) difficulty in means, kind, source, and a generator for more."""

    difficulty: np.ndarray
    kinds: np.ndarray
    sources: np.ndarray


Truth = Callable[[Drawn], np.ndarray]

TRUTHS: dict[str, Truth] = {
    "difficulty": lambda drawn: drawn.difficulty,
    "source": lambda drawn: SOURCE_GAINS[drawn.sources],
    "kind": lambda drawn: KIND_GAINS[drawn.kinds],
    "kind and difficulty": lambda drawn: KIND_GAINS[drawn.kinds] * drawn.difficulty,
    "noise": lambda drawn: drawn.difficulty,
    "three tiers": lambda drawn: KIND_GAINS[drawn.kinds] * drawn.difficulty,
    "nothing": lambda drawn: np.zeros(len(drawn.kinds)),
}
"""What a thought gains, in nats; on average about 1."""


def simulate(name: str, num_segments: int, seed: int) -> SimulatedCorpus:
    """The corpus of that name."""
    random = np.random.default_rng([seed, num_segments, list(TRUTHS).index(name)])
    nats = random.lognormal(4.0, 0.7, num_segments)
    drawn = Drawn(
        nats / nats.mean(),
        random.integers(0, len(KIND_GAINS), num_segments),
        random.integers(0, len(SOURCE_GAINS), num_segments),
    )
    gains = TRUTHS[name](drawn)
    is_noise = random.random(num_segments) < (NOISE_SHARE if name == "noise" else 0.0)
    hardest = np.quantile(nats, HARDEST)
    nats = np.where(is_noise, hardest * random.lognormal(0.0, 0.3, num_segments), nats)
    gains = np.where(is_noise, 0.0, gains)
    popular = 1 / np.arange(1, VOCABULARY + 1)
    shared = np.cumsum(popular / popular.sum())
    orders = np.stack([random.permutation(VOCABULARY) for _ in KIND_GAINS])
    segments = []
    for number in range(num_segments):
        ranks = np.minimum(np.searchsorted(shared, random.random(SEGMENT_TOKENS)), VOCABULARY - 1)
        of_kind = random.random(SEGMENT_TOKENS) < KIND_SHARE
        ids = np.where(of_kind, orders[drawn.kinds[number]][ranks], ranks)
        if is_noise[number]:  # as base64: any token, and the scorer knows that it doesn't know
            ids = random.integers(0, VOCABULARY, SEGMENT_TOKENS)
        segments.append(
            _segment(random, number, ids, float(nats[number]), int(drawn.sources[number]), bool(is_noise[number]))
        )
    three = name == "three tiers"
    return SimulatedCorpus(
        tiers=THREE_TIERS if three else ONE_TIER,
        segments=segments,
        documents=np.arange(num_segments) // 4,
        # Of three tiers the last one takes as many tokens as the second and gains as little as the first.
        gains=gains[:, None] * (np.array([1.0, 1.0 + 3 * DEEPER, 1.0]) if three else np.ones(1)),
        is_noise=is_noise,
    )


def _segment(
    random: np.random.Generator, number: int, ids: np.ndarray, nats: float, source: int, is_noise: bool
) -> ScoredSegment:
    """Hard tokens as many as it takes for the difficulty; the scorer expects most of it, of noise all."""
    hard = random.random(SEGMENT_TOKENS) < 0.3
    hard[0] = True
    shares = random.exponential(1.0, SEGMENT_TOKENS) * hard
    surprisal = np.where(hard, THRESHOLD_NATS + nats * shares / shares.sum(), 2 * random.random(SEGMENT_TOKENS))
    entropy = surprisal * (1.0 if is_noise else random.normal(0.8, 0.05))
    return ScoredSegment(
        doc_id=f"document-{number // 4}",
        segment_index=number % 4,
        num_segments=4,
        token_start=number % 4 * SEGMENT_TOKENS,
        input_ids=ids.astype(np.uint16),
        surprisal_nats=surprisal.astype(np.float16),
        entropy_nats=entropy.astype(np.float16),
        memory_nats=np.zeros(0, np.float16),
        difficulty_nats=nats,
        source=f"source-{source}",
    )
