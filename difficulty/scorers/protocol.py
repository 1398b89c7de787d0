"""What every scorer fulfils, and what scorers share.

A scorer works in its own tokenization and knows nothing of the training tokens; `score_documents` runs it and moves
the nats over. `make_scorer` builds the one that the config asks for, `describe_scorer` names it without loading it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from difficulty.scorers.reading import NatsAfter
from difficulty.surprisal import align_nats


@dataclass(frozen=True)
class TokenScores:
    """The scores of one text, token by token.

    Attributes:
        byte_ends: (num_tokens,) int64, where each token ends in the text's UTF-8 bytes.
        surprisal_nats: (num_tokens,) float32, -ln p of each token given those before it.
        entropy_nats: (num_tokens,) float32, entropy of the prediction that the token was drawn from.
    """

    byte_ends: np.ndarray
    surprisal_nats: np.ndarray
    entropy_nats: np.ndarray


class Scorer(Protocol):
    """What scores texts. Loaded once per process; `score` may be called many times."""

    @property
    def name(self) -> str:
        """The scorer's name in the config."""

    @property
    def rehearsal(self) -> bool:
        """Whether its scores mean nothing, and whatever they touch is not for training."""

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        """Scores of each text, independent (to float tolerance) of the other texts and their order."""

    def nats_after(
        self, prefixes: Sequence[str], text: str, skipped: int, *, prefix_tokens: int, context_tokens: int | None = None
    ) -> NatsAfter:
        """What some prefixes do for a text: the nats of its tokens after each. Each prefix with the text is one window.

        Args:
            prefixes: read before the text, with a blank line between; "" for nothing at all.
            text: what is read after each prefix.
            skipped: characters at the front of the text whose tokens are read but not given; a token that reaches over
                that place is not given either.
            prefix_tokens: the longest that a prefix of this kind may be. Where that, the text and the window don't go
                together, the front of the skipped tokens is left out, all but `reading.MIN_FRONT_TOKENS`; after every
                prefix the same. What then is still longer than the window has no nats.
            context_tokens: the window, in tokens of the scorer; None: as long as the model can read.

        Raises:
            RequestError: the model can't read so many tokens at once.
        """


def score_documents(scorer: Scorer, texts: Sequence[str], target_byte_ends: Sequence[np.ndarray]) -> list[TokenScores]:
    """Scores of the training tokens of several texts.

    Args:
        texts: the texts; give several at once, so that the scorer can fill its batches.
        target_byte_ends: for each text (num_tokens,) int64, where each training token ends in its UTF-8 bytes
            (`TextTokenizer.byte_ends`).

    Returns:
        For each text the scores of its training tokens; a text's total of nats is the scorer's. Where scorer and
        training tokenizer cut the text alike, its scores come through unchanged.

    Raises:
        UnencodableText: the scorer's tokenizer can't read one of the texts.
    """
    scored = scorer.score(texts)
    return [_aligned(scores, ends) for scores, ends in zip(scored, target_byte_ends, strict=True)]


def _aligned(scores: TokenScores, target_byte_ends: np.ndarray) -> TokenScores:
    def move(nats: np.ndarray) -> np.ndarray:
        return align_nats(scores.byte_ends, nats, target_byte_ends).astype(np.float32)

    return TokenScores(target_byte_ends, move(scores.surprisal_nats), move(scores.entropy_nats))
