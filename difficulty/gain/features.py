"""What a scored segment's own record says of it: numbers, kind of text, source. Pure numpy; no text, no tokenizer.

The kind of a text is where its tokens lie along a few directions of the *unlabelled* corpus: the leading singular
vectors of its weighted token counts (latent semantic analysis: Deerwester et al. 1990). A corpus has thousands of
segments without a measured gain, so they can find what kinds there are, and the few with one need only tell the kinds
apart. Token ids serve as words, so any language works and nothing is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from difficulty.surprisal import token_difficulty_nats
from sharding.records.types import ScoredSegment

DIRECTIONS = 16
"""Directions of the corpus's tokens that tell kinds of text apart."""

VOCABULARY = 4096
"""Tokens that are counted, those of the most segments first: rarer ones can't be placed by a few thousand segments."""

SOURCES = 64
"""Sources told apart, the most frequent first; others are taken for the average."""

MOST_DEVIATIONS = 4.0
"""Numbers further from the corpus's mean are taken to be this far: nothing is learned about them."""

NUMBERS = (
    "entropy per nat",
    "log difficulty",
    "mean nats",
    "mean entropy",
    "nats minus entropy",
    "share that memory covers",
    "log length",
    "words usual in the corpus",
)
"""The numbers of a segment, in the order of their columns. The first has a group to itself: where the scorer was as
surprised as it expected to be, the text may be noise, and no thought helps with that."""

GROUPS = (
    "difficulty",
    "level",
    "entropy",
    "numbers",
    "kind",
    "source",
    "entropy and difficulty",
    "numbers and difficulty",
    "kind and difficulty",
    "source and difficulty",
)
"""The groups of columns of `FeatureMap.rows`, in order: each has a variance of its own."""


_MOST_PER_NAT = 3.0


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """From a scored segment to a row of features; fitted to a corpus once, the same for ever after.

    Attributes:
        mean_difficulty_nats: of the corpus; difficulty is counted in it.
        most_difficulty: largest of the corpus, in means; terms with difficulty don't reach beyond it.
        centres, scales: (numbers,) float64, mean and standard deviation of the numbers over the corpus.
        tokens: (vocabulary,) uint32, ascending ids of the tokens that are counted.
        weights: (vocabulary,) float32, ln of segments per segment that has the token.
        directions: (vocabulary, directions) float16, orthogonal columns.
        kind_centres: (directions,) float64, the corpus's mean; `kind_scale`: its root mean square distance from it.
        sources: names of the sources told apart.
    """

    mean_difficulty_nats: float
    most_difficulty: float
    centres: np.ndarray
    scales: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray
    directions: np.ndarray
    kind_centres: np.ndarray
    kind_scale: float
    sources: tuple[str, ...]

    @cached_property
    def groups(self) -> np.ndarray:
        """(columns,) int64, the place in `GROUPS` of each column."""
        plain = [1, len(self.centres) - 1, self.directions.shape[1], len(self.sources)]
        return np.repeat(np.arange(len(GROUPS)), [1, 1, *plain, *plain])

    @cached_property
    def _places(self) -> np.ndarray:
        """(largest id + 2,) int64: the place of each token among those counted, -1 for others."""
        places = np.full(int(self.tokens[-1]) + 2 if len(self.tokens) else 1, -1, np.int64)
        places[self.tokens] = np.arange(len(self.tokens))
        return places

    @cached_property
    def _projection(self) -> np.ndarray:
        return self.directions.astype(np.float64)

    def rows(self, segments: Sequence[ScoredSegment]) -> np.ndarray:
        """(n, columns) float64, without NaN; a row depends on its own segment alone, to the last bit."""
        difficulty = np.array([segment.difficulty_nats for segment in segments]) / self.mean_difficulty_nats
        kinds, usual = self._kinds(segments)
        numbers = np.column_stack([raw_numbers(segments), usual])
        numbers = np.clip((numbers - self.centres) / self.scales, -MOST_DEVIATIONS, MOST_DEVIATIONS)
        numbers[:, 1:] /= np.sqrt(len(NUMBERS) - 1)  # all together as far apart as kinds are
        names = np.array([segment.source for segment in segments], dtype=object)
        sources = np.array([names == source for source in self.sources], np.float64).reshape(-1, len(segments)).T
        plain = np.column_stack([numbers, kinds, sources])
        within = np.minimum(difficulty, self.most_difficulty)[:, None]
        return np.column_stack([difficulty, np.ones(len(segments)), plain, plain * within])

    def _kinds(self, segments: Sequence[ScoredSegment]) -> tuple[np.ndarray, np.ndarray]:
        """(n, directions) where the texts lie, and (n,) how much of them the directions hold, from 0 to 1."""
        placed = np.zeros((len(segments), self.directions.shape[1]))
        for row, segment in enumerate(segments):
            places = self._places[np.minimum(segment.input_ids, len(self._places) - 1)]
            counts = np.bincount(places[places >= 0], minlength=0)
            there = counts.nonzero()[0]
            values = np.log1p(counts[there]) * self.weights[there]
            length = float(np.sqrt(np.dot(values, values)))
            if length > 0:
                placed[row] = values @ self._projection[there] / length
        usual = np.sqrt((placed**2).sum(axis=1))
        return (placed - self.kind_centres) / self.kind_scale, usual


def raw_numbers(segments: Sequence[ScoredSegment]) -> np.ndarray:
    """(n, numbers - 1) float64: all of `NUMBERS` but the last."""
    return np.array([_numbers(segment) for segment in segments]).reshape(len(segments), len(NUMBERS) - 1)


def _numbers(segment: ScoredSegment) -> tuple[float, ...]:
    length = max(len(segment.input_ids), 1)
    nats = float(segment.surprisal_nats.sum(dtype=np.float64)) / length
    entropy = float(segment.entropy_nats.sum(dtype=np.float64)) / length
    covered = 0.0
    if len(segment.memory_nats):
        own = token_difficulty_nats(segment.surprisal_nats, segment.entropy_nats, segment.memory_nats, "surprisal")
        covered = float(np.count_nonzero(own < segment.surprisal_nats)) / length
    per_nat = min(entropy / nats, _MOST_PER_NAT) if nats > 0 else 1.0
    mass = float(np.log1p(segment.difficulty_nats))
    return per_nat, mass, nats, entropy, nats - entropy, covered, float(np.log(length))


def fit_features(corpus: Sequence[ScoredSegment]) -> FeatureMap:
    """The features that tell these segments apart; no gain is looked at.

    Args:
        corpus: segments drawn at random from the corpus, at least one; a few thousand are enough.
    """
    difficulty = np.array([segment.difficulty_nats for segment in corpus])
    mean = float(difficulty.mean()) or 1.0
    tokens, weights, directions = _directions(corpus)
    named = Counter(segment.source for segment in corpus if segment.source)
    sources = tuple(sorted(sorted(named, key=lambda name: (-named[name], name))[:SOURCES]))
    bare = FeatureMap(
        mean_difficulty_nats=mean,
        most_difficulty=float(difficulty.max()) / mean,
        centres=np.zeros(len(NUMBERS)),
        scales=np.ones(len(NUMBERS)),
        tokens=tokens,
        weights=weights,
        directions=directions,
        kind_centres=np.zeros(directions.shape[1]),
        kind_scale=1.0,
        sources=sources if len(sources) > 1 else (),
    )
    placed, usual = bare._kinds(corpus)
    numbers = np.column_stack([raw_numbers(corpus), usual])
    scales = numbers.std(axis=0)
    spread = float(np.sqrt(placed.var(axis=0).sum()))
    fields = {name: getattr(bare, name) for name in bare.__dataclass_fields__}
    return FeatureMap(
        **fields
        | {
            "centres": numbers.mean(axis=0),
            "scales": np.where(scales > 1e-9, scales, 1.0),
            "kind_centres": placed.mean(axis=0),
            "kind_scale": spread if spread > 1e-9 else 1.0,
        }
    )


def _directions(corpus: Sequence[ScoredSegment]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens that are counted, the weight of each, and the corpus's directions over them."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    found = [np.unique(segment.input_ids, return_counts=True) for segment in corpus]
    ids, frequency = np.unique(np.concatenate([ids for ids, _ in found]), return_counts=True)
    # What is in one segment tells nothing of others, and what is in all tells none apart.
    telling = (frequency > 1) & (frequency < len(corpus))
    ids, frequency = ids[telling], frequency[telling]
    chosen = np.sort(np.argsort(-frequency, kind="stable")[:VOCABULARY])
    tokens, weights = ids[chosen].astype(np.uint32), np.log(len(corpus) / frequency[chosen]).astype(np.float32)
    wanted = min(DIRECTIONS, len(tokens) - 1, len(corpus) - 1)
    if wanted < 1:
        return tokens[:0], weights[:0], np.zeros((0, 0), np.float16)
    indptr, columns, values = [0], [], []
    for own, counts in found:
        places = np.searchsorted(tokens, own)
        there = (places < len(tokens)) & (tokens[np.minimum(places, len(tokens) - 1)] == own)
        value = np.log1p(counts[there]) * weights[places[there]]
        length = np.sqrt(np.dot(value, value))
        columns.append(places[there])
        values.append(value / length if length > 0 else value)
        indptr.append(indptr[-1] + len(value))
    matrix = csr_array((np.concatenate(values), np.concatenate(columns), indptr), shape=(len(corpus), len(tokens)))
    _, _, right = svds(matrix, k=wanted, v0=np.ones(min(matrix.shape)), random_state=0)
    right = right[::-1].T  # the strongest first
    right = right * np.sign(right[np.abs(right).argmax(axis=0), np.arange(wanted)])
    return tokens, weights, right.astype(np.float16)
