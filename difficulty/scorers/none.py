"""No scorer: every token 0 nats. For corpora whose thoughts, if any, hang on no difficulty, such as control arms.

The config refuses it where nats decide something: an adaptive budget, traces that are valued, thoughts at hard spans.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.scorers.protocol import TokenScores
from difficulty.scorers.reading import NatsAfter, first_token_after


def make(config: DifficultyConfig) -> "NoScorer":
    """The scorer; the rest of the config is no matter."""
    return NoScorer()


def describe(config: DifficultyConfig) -> dict[str, Any]:
    """What the manifest says of it."""
    return {"scorer": NoScorer.name, "measure": "none"}


class NoScorer:
    """Finds nothing hard. To it a text is one token."""

    name = "none"
    rehearsal = False

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        return [_nothing(text) for text in texts]

    def nats_after(
        self, prefixes: Sequence[str], text: str, skipped: int, *, prefix_tokens: int, context_tokens: int | None = None
    ) -> NatsAfter:
        scores = _nothing(text)
        first = first_token_after(scores.byte_ends, len(text[:skipped].encode()))
        return NatsAfter(np.zeros((len(prefixes), len(scores.byte_ends) - first), np.float32), cut_tokens=0)


def _nothing(text: str) -> TokenScores:
    byte_ends = np.array([len(text.encode())][: len(text)], np.int64)
    nats = np.zeros(len(byte_ends), np.float32)
    return TokenScores(byte_ends, nats, nats)
