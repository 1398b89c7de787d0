"""What a document is made of when a person reads it, and how its text is made harmless to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sharding.records.types import Candidate

FULL_COLOUR_NATS = 10.0
"""From here on a token has the strongest colour."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is coloured as one: a token, or several that share a character.

    Attributes:
        nats: surprisal. entropy: of the scorer's prediction. memory: under the n-gram memory, None without one.
        tokens: how many; their nats are added up.
        beyond: nats beyond the entropy, where those are what counts; else None.
    """

    text: str
    nats: float
    entropy: float
    memory: float | None = None
    tokens: int = 1
    beyond: float | None = None

    @property
    def measured(self) -> float:
        """What the measure of difficulty says, whatever is remembered."""
        return self.nats if self.beyond is None else self.beyond

    @property
    def difficulty(self) -> float:
        """What counts towards difficulty."""
        return self.measured if self.memory is None else min(self.measured, self.memory)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment with all its candidates; `tier` is None where no plan says."""

    index: int
    tier: str | None
    difficulty_nats: float
    num_tokens: int
    candidates: Sequence[Candidate]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A stretch of one segment; `opens` and `closes` say whether it is the segment's first and last."""

    segment: Segment
    units: Sequence[Unit]
    opens: bool
    closes: bool


@dataclass(frozen=True, kw_only=True)
class Thought:
    """A kept trace in its place; `before` and `after` are its delimiters, `tokens_lost` what was cut from its end."""

    candidate: Candidate
    before: str
    after: str
    tokens_lost: int = 0


@dataclass(frozen=True)
class Mark:
    """Something that is no text of the document: "cut" between two training sequences, or "end" with its delimiter."""

    kind: str
    text: str = ""


Block = Source | Thought | Mark


@dataclass(frozen=True)
class DocumentView:
    """A document laid out for a person.

    Attributes:
        fate: what became of it in the corpus, in words; "" when there is nothing to say.
        blocks: in the order of the corpus.
        source: the name of the source it came from, "" where a run has but one.
    """

    doc_id: str
    segments: Sequence[Segment]
    fate: str
    blocks: Sequence[Block]
    source: str = ""

    @property
    def num_tokens(self) -> int:
        return sum(segment.num_tokens for segment in self.segments)

    @property
    def thoughts(self) -> int:
        return sum(isinstance(block, Thought) for block in self.blocks)
