"""What a tier asks for, and what is decided of segments before they are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from augment.recipes.protocol import RecipeRequest
from sharding.records.types import ScoredSegment
from sharding.search.config import SearchServerConfig

FULL, CONTRACTION, RETRIEVED = "full", "contraction", "retrieved"
"""What a prompt may show beside its segment: as much of the document before it as fits, a contraction of all of that,
passages from elsewhere."""

PASSAGE_CHARACTERS = 1000
"""A passage has so many at most, about 250 tokens of English."""

MOST_PASSAGES = 8
"""With more of them there would be no room for anything else that a prompt shows."""

CONTRACTIONS = "contractions"
"""What stands beside a document that was contracted: of it up to and with each segment, from the first."""


@dataclass(frozen=True, kw_only=True)
class ContractionRequest:
    """How documents are contracted: by which model and prompt, to how many of its tokens at most."""

    model: str
    prompt: str
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class TierRequest:
    """What a tier asks for each of its segments.

    Attributes:
        recipe: of several calls; None: a generation is one call.
        max_tokens, expected_tokens: of a generation; of a recipe, of all calls of a run together.
        context: what its prompts show beside the segment.
        passages: how many passages from elsewhere, where they show such.
    """

    tier: str
    model: str
    prompt: str
    samples: int
    max_tokens: int
    min_tokens: int
    expected_tokens: float
    recipe: RecipeRequest | None = None
    context: tuple[str, ...] = (FULL,)
    passages: int = 0


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """Which index passages are found in: where its `index.json` is, its digest, and what server keeps it, if any."""

    url: str
    digest: str
    server: SearchServerConfig | None = None


class SegmentChoices(Protocol):
    """What is decided of segments before they are asked about, which this package knows nothing of."""

    def tiers(self, segments: Sequence[ScoredSegment]) -> Sequence[int]:
        """Index of the tier of each, in the order of the config."""

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        """How many of its tokens the prompt may show, from its start; 0: nothing to think about, and no request."""

    def focus(self, segment: ScoredSegment, text: str) -> Sequence[str]:
        """The hardest spans of a segment of this text, the hardest first; for prompts that name them."""
