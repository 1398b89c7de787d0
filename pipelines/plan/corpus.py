"""The corpus of a plan: documents that stand for all, and what follows if chance had drawn others. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from difficulty.budget.histogram import KEY_BITS, DifficultyHistogram, KeyCounts, difficulty_keys
from pipelines.plan.chance import resamplings
from sharding.records.types import ScoredSegment
from sharding.storage.manifest import Manifest

_HASH_BINS = 256


class SampledDocument(NamedTuple):
    """A document, or a piece of one, that stands for others.

    Attributes:
        segments: scored.
        text_bytes: of those segments.
        group: the range or part it was read from.
        size: about how many segments so much text has.
        weight: how many of its kind it stands for, but for a factor that all share.
        chance: with which it was drawn.
        share: of its document.
    """

    segments: tuple[ScoredSegment, ...]
    text_bytes: int
    group: int
    size: float = 1.0
    weight: float = 1.0
    chance: float = 0.0
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of the corpus.

    Attributes:
        scored: the manifest of the scored parts; None where a sample of the source stands for them.
        sample: the documents that were looked at.
        text_bytes: of the whole source, about; 0 for scored parts.
        size: of the whole source, in the unit of the sample's sizes; 0 for scored parts.
        complete: the sample is the whole corpus.
        whole_groups: every range or part was read, so that only the choice of documents is left to chance.
        scoring_tokens_per_second: as the sample was scored here, or the whole by the score stage.
        scoring_start_s: what it took here to load the scorer.
        notes: what the reader should know of all this.
    """

    scored: Manifest | None
    sample: tuple[SampledDocument, ...]
    text_bytes: float
    size: float
    complete: bool
    whole_groups: bool
    scoring_tokens_per_second: float | None
    notes: tuple[str, ...]
    scoring_start_s: float = 0.0

    def corpus(self, multiplicity: np.ndarray) -> Corpus:
        """The corpus, if each of the sample counted so much: (documents,) float64, not all 0.

        Segments are in proportion to sizes and tokens to bytes, of which the whole is known.
        """
        if self.scored is not None:
            counts = self.scored.counts
            histogram = DifficultyHistogram.from_json(self.scored.facts["histogram"])
            return Corpus(histogram, counts["documents"], counts["segments"], counts["source_tokens"])
        sampled = self._sampled
        weights = multiplicity * sampled.weights
        stands_for = np.ones_like(weights) if self.complete else weights * (self.size / (weights @ sampled.sizes))
        of_segments = np.repeat(stands_for, sampled.segments)
        tokens_per_byte = (weights @ sampled.tokens) / (weights @ sampled.text_bytes)
        return Corpus(
            scaled_histogram(sampled.difficulty_nats, of_segments),
            float(stands_for @ sampled.shares),
            float(of_segments.sum()),
            float(sampled.tokens.sum() if self.complete else tokens_per_byte * self.text_bytes),
        )

    def resamplings(self, random: np.random.Generator) -> np.ndarray:
        """How much each of the sample counts in each draw: (1 + DRAWS, documents), see `chance.resamplings`.

        Where the ranges were a choice they are drawn anew, each with what was chosen in it: that is the larger part.
        """
        chances = np.array([document.chance for document in self.sample])
        groups = np.array([document.group for document in self.sample])
        if self.complete:
            return resamplings(groups, np.ones_like(chances), random)
        if self.whole_groups or len(np.unique(groups)) == 1:
            return resamplings(np.arange(len(self.sample)), chances, random)
        return resamplings(groups, np.zeros_like(chances), random)

    @cached_property
    def _sampled(self) -> _Arrays:
        return _Arrays(
            weights=np.array([document.weight for document in self.sample]),
            sizes=np.array([document.size for document in self.sample]),
            shares=np.array([document.share for document in self.sample]),
            text_bytes=np.array([document.text_bytes for document in self.sample], np.float64),
            tokens=np.array([sum(len(s.input_ids) for s in d.segments) for d in self.sample], np.float64),
            segments=np.array([len(document.segments) for document in self.sample]),
            difficulty_nats=np.array([s.difficulty_nats for document in self.sample for s in document.segments]),
        )


class _Arrays(NamedTuple):
    """A sample by columns: one entry a document, of the last one a segment."""

    weights: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray
    text_bytes: np.ndarray
    tokens: np.ndarray
    segments: np.ndarray
    difficulty_nats: np.ndarray


class Corpus(NamedTuple):
    """Difficulty and size of a corpus; as counted, or as estimated."""

    histogram: DifficultyHistogram
    documents: float
    segments: float
    source_tokens: float


def scaled_histogram(difficulty_nats: np.ndarray, weights: np.ndarray) -> DifficultyHistogram:
    """A histogram in which each segment stands for as many as its weight says.

    Args:
        difficulty_nats: (n,) float64.
        weights: (n,) float64, not negative; their sum is the number of segments, rounded.
    """
    order = np.argsort(difficulty_nats, kind="stable")
    # Rounding the running sum and not each weight keeps the total.
    counts = np.diff(np.rint(np.cumsum(weights[order])), prepend=0).astype(np.int64)
    there = counts > 0
    by_difficulty, by_hash = KeyCounts(), KeyCounts(KEY_BITS - _HASH_BINS.bit_length() + 1)
    by_difficulty.add_bins(difficulty_keys(difficulty_nats[order][there]), counts[there])
    # Hashes are uniform, whatever the segments.
    total = int(counts.sum())
    edges = np.arange(_HASH_BINS + 1) * total // _HASH_BINS
    dealt = np.diff(edges)
    by_hash.add_bins(np.flatnonzero(dealt), dealt[dealt > 0])
    return DifficultyHistogram(by_difficulty, by_hash)
