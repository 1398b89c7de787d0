"""Excess loss: surprisal under the scorer beyond that under a stronger reference model (Rho-1, arXiv 2404.07965)."""

from collections.abc import Sequence

import numpy as np

from difficulty.scorers.protocol import Scorer, TokenScores
from difficulty.scorers.reading import NatsAfter
from difficulty.surprisal import align_nats


class ExcessLossScorer:
    """Difficulty as what the reference knows and the scorer doesn't: max(s_scorer - s_reference, 0), in nats.

    Its `surprisal_nats` are that excess, so a token is hard when the excess is above the threshold. What neither model
    can know (a hash, a serial number) has none. The entropy is the scorer's.
    """

    name = "causal_lm"

    def __init__(self, scorer: Scorer, reference: Scorer) -> None:
        self._scorer = scorer
        self._reference = reference
        self.rehearsal = scorer.rehearsal or reference.rehearsal

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        pairs = zip(self._scorer.score(texts), self._reference.score(texts), strict=True)
        return [_excess(scores, reference) for scores, reference in pairs]

    def nats_after(
        self, prefixes: Sequence[str], text: str, skipped: int, *, prefix_tokens: int, context_tokens: int | None = None
    ) -> NatsAfter:
        """Of the scorer alone: what a trace does for it is no matter of the reference."""
        return self._scorer.nats_after(
            prefixes, text, skipped, prefix_tokens=prefix_tokens, context_tokens=context_tokens
        )


def _excess(scores: TokenScores, reference: TokenScores) -> TokenScores:
    known = align_nats(reference.byte_ends, reference.surprisal_nats, scores.byte_ends)
    excess = np.maximum(scores.surprisal_nats - known, 0.0).astype(np.float32)
    return TokenScores(scores.byte_ends, excess, scores.entropy_nats)
