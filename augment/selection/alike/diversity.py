"""Diversity: how often kept thoughts begin alike, have one shape, or are near-copies of each other. Pure.

A generator that has found a template fills it in for every document; each thought looks fine by itself, and no gate
that judges one trace can see it. So the corpus as a whole is looked at, through a sample of bounded size: the thoughts
of lowest hash, the same whatever the order in which they come, and all of them where there are no more.

    kept thoughts ─► DiversitySample (mergeable) ─► openings, shapes, near-copies ─► account, card, a caution
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.common_words import COMMON
from augment.selection.words import words_of
from sharding import minhash
from sharding.config import STRICT
from sharding.hashing import Purpose, hash64
from sharding.records.base import Record
from sharding.records.types import Candidate

SAMPLE_THOUGHTS = 4096
"""Thoughts that are looked at. A share of them has a standard error of at most 0.8 in 100."""

OPENING_WORDS = 4
SHAPE_WORDS = 24
"""Words of a thought that its opening and its shape are made of; in scripts without spaces characters."""

NEAR_COPY = 0.8
"""The resemblance from which on two thoughts are near-copies."""

HIGHEST_RANK = 1 << 63
"""Above every rank."""

MIN_THOUGHTS = 50
"""Of fewer thoughts a share says nothing."""

_SHOWN = 5
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiversityConfig:
    """Shares of a tier's kept thoughts above which a run ends with a caution; they decide nothing else."""

    max_opening_share: float = Field(
        default=0.3, ge=0, le=1, description="Share that may begin with the same four words; 1: any."
    )
    max_shape_share: float = Field(
        default=0.1, ge=0, le=1, description="Share whose beginnings may have one shape, content words aside; 1: any."
    )
    max_near_copy_share: float = Field(
        default=0.1, ge=0, le=1, description="Share that may be near-copies of another one; 1: any."
    )


class SampledThought(Record, frozen=True, kw_only=True, eq=False):
    """A kept thought in the sample.

    Attributes:
        rank: a hash of what it is, in [0, 2^63); the lowest are looked at.
        opening: its first words.
        shape: see `shape_of`.
        signature: (128,) uint32, from `sharding.minhash`.
    """

    rank: int
    tier: str
    opening: str
    shape: str
    signature: np.ndarray


class DiversitySample:
    """The thoughts of lowest rank among those it was given, and how many these were. Mergeable; of bounded size.

    Args:
        size: of the sample.
    """

    def __init__(self, size: int = SAMPLE_THOUGHTS) -> None:
        self.size, self.thoughts, self._cut = size, 0, HIGHEST_RANK
        self._sampled: list[SampledThought] = []

    def add(self, candidate: Candidate) -> None:
        """Take a kept candidate in, if its rank is low enough; only then is it looked at."""
        self.thoughts += 1
        rank = rank_of(candidate)
        if rank < self._cut:
            words = words_of(candidate.text)
            self._take(
                SampledThought(
                    rank=rank,
                    tier=candidate.tier,
                    opening=" ".join(words[:OPENING_WORDS]),
                    shape=shape_of(words),
                    signature=minhash.signature(words),
                )
            )

    def merge(self, other: DiversitySample) -> None:
        """Take another sample in."""
        self.thoughts += other.thoughts
        for thought in other._sampled:
            self._take(thought)

    def sampled(self) -> list[SampledThought]:
        """The sample, by rank."""
        return sorted(self._sampled, key=lambda thought: thought.rank)[: self.size]

    def _take(self, thought: SampledThought) -> None:
        self._sampled.append(thought)
        if len(self._sampled) >= 2 * self.size:
            self._sampled = self.sampled()
            self._cut = self._sampled[-1].rank


def rank_of(candidate: Candidate) -> int:
    """What thoughts are sampled by, and which of many alike are kept by: a hash of segment and key."""
    return hash64(Purpose.DIVERSITY, 0, f"{candidate.segment_id}/{candidate.key}") >> 1  # Beam's integers have a sign


def shape_of(words: Sequence[str]) -> str:
    """The skeleton of a thought's beginning: its words of function, with "_" for runs of others and "0" for numbers.

    Args:
        words: of the thought, from `words_of`.
    """
    shape: list[str] = []
    for word in words[:SHAPE_WORDS]:
        kept = "0" if word[0].isdigit() else word if word in COMMON or len(word) < 3 else "_"
        if kept != "_" or not shape or shape[-1] != "_":
            shape.append(kept)
    return " ".join(shape)


def measure(thoughts: int, sampled: Sequence[SampledThought]) -> dict[str, Any]:
    """The account of diversity, for manifest and card.

    Args:
        thoughts: how many were kept.
        sampled: the sample of them, by rank.

    Returns:
        `thoughts`, `sampled`; of `openings` and `shapes` how many different ones the sample has and the most frequent
        with their shares; of `near_copies` the share of the sample that resembles another of it by `NEAR_COPY` or more,
        and `per_thought`, the near-copies that a thought has in the whole corpus on average, as the pairs of the sample
        tell it; and by `tiers` the largest share of an opening and of a shape, and the share of near-copies.
    """
    fellows = near_copies([thought.signature for thought in sampled])
    pairs = len(sampled) * (len(sampled) - 1)
    return {
        "thoughts": thoughts,
        "sampled": len(sampled),
        "openings": _frequent(thought.opening for thought in sampled),
        "shapes": _frequent(thought.shape for thought in sampled),
        "near_copies": {
            "share": _share(np.count_nonzero(fellows), len(sampled)),
            "per_thought": round(float(fellows.sum()) / pairs * (thoughts - 1), 4) if pairs else 0.0,
        },
        "tiers": dict(_by_tier(sampled, fellows)),
    }


def near_copies(signatures: Sequence[np.ndarray]) -> np.ndarray:
    """How many others each text resembles by `NEAR_COPY` or more: (num_texts,) int64, from their signatures."""
    met: dict[int, list[int]] = {}
    for number, signature in enumerate(signatures):
        for band in minhash.bands(signature):
            met.setdefault(band, []).append(number)
    fellows: list[set[int]] = [set() for _ in signatures]
    for numbers in met.values():
        if len(numbers) > 1:
            for number in numbers:
                fellows[number].update(numbers)
    stacked = np.stack(signatures) if signatures else np.zeros((0, minhash.NUM_PERMUTATIONS), np.uint32)
    found = np.zeros(len(signatures), np.int64)
    for number, others in enumerate(fellows):
        if others:
            alike = np.mean(stacked[sorted(others)] == stacked[number], axis=1) >= NEAR_COPY
            found[number] = np.count_nonzero(alike) - 1  # itself is among them
    return found


def cautions(diversity: Mapping[str, Any] | None, config: DiversityConfig) -> Iterator[str]:
    """What to tell of tiers whose thoughts are too much alike.

    Args:
        diversity: from `measure`; None tells nothing.
        config: `select.diversity`.
    """
    for tier, found in (diversity or {}).get("tiers", {}).items():
        if found["sampled"] < MIN_THOUGHTS:
            continue
        of = f"of the kept thoughts of tier {tier}"
        way_out = "vary budget.tiers.N.prompt or raise sampling.temperature"
        if found["opening_share"] > config.max_opening_share:
            yield f"{found['opening_share']:.0%} {of} begin with {found['opening']!r}: {way_out}"
        if found["shape_share"] > config.max_shape_share:
            shape = f'have one shape, "{found["shape"]}"'
            yield f"{found['shape_share']:.0%} {of} {shape}: {way_out}, or set select.repeats"
        if found["near_copy_share"] > config.max_near_copy_share:
            share = found["near_copy_share"]
            yield f"{share:.0%} {of} are near-copies of another one: {way_out}, or set select.repeats"


def _by_tier(sampled: Sequence[SampledThought], fellows: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
    for tier in sorted({thought.tier for thought in sampled}):
        own = [number for number, thought in enumerate(sampled) if thought.tier == tier]
        (opening, begun), (shape, shaped) = (
            min(Counter(getattr(sampled[number], of) for number in own).items(), key=lambda item: (-item[1], item[0]))
            for of in ("opening", "shape")
        )
        yield (
            tier,
            {
                "sampled": len(own),
                "opening": opening[:_SHOWN_CHARACTERS],
                "opening_share": _share(begun, len(own)),
                "shape": shape[:_SHOWN_CHARACTERS],
                "shape_share": _share(shaped, len(own)),
                "near_copy_share": _share(np.count_nonzero(fellows[own]), len(own)),
            },
        )


def _frequent(texts: Iterable[str]) -> dict[str, Any]:
    counts = Counter(texts)
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    shares = [{"text": text[:_SHOWN_CHARACTERS], "share": _share(count, counts.total())} for text, count in top]
    return {"distinct": len(counts), "top": shares}


def _share(part: int | np.integer, whole: int) -> float:
    return round(int(part) / whole, 4) if whole else 0.0
