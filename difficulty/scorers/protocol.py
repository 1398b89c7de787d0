"""What every scorer fulfils, and what scorers share.

A scorer works in its own tokenization and knows nothing of the training tokens; `score_documents` runs it and moves
the nats over. `make_scorer` builds the one that the config asks for, `describe_scorer` names it without loading it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from difficulty.surprisal import align_nats

SEPARATOR = "\n\n"
"""Between a prefix and a text: blank lines disturb a language model less than any tag it has never seen."""


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

    def nats_after(self, prefixes: Sequence[str], text: str, skipped: int) -> np.ndarray:
        """What some prefixes do for a text: (prefixes, tokens) float32, surprisal of its tokens after each.

        Args:
            prefixes: read before the text, with a blank line between; "" for nothing at all. Where a prefix and the
                text are longer than the model reads, the end of the prefix stays, and of the text at least half a
                window; of the text the same for every prefix.
            text: what is read after each prefix.
            skipped: characters at the front of the text whose tokens are read but not given; a token that reaches over
                that place is not given either.
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


def nats_after_by_score(scorer: Scorer, prefixes: Sequence[str], text: str, skipped: int) -> np.ndarray:
    """`Scorer.nats_after` for scorers that can only score whole texts: each prefix with the text, cut by bytes."""
    [alone] = scorer.score([text])
    before = [f"{prefix}{SEPARATOR}" if prefix else "" for prefix in prefixes]
    wholes = [prefix + text for prefix in before]
    ends = []
    for prefix in before:
        length = len(prefix.encode())
        ends.append(np.concatenate([[length] if length else [], alone.byte_ends + length]).astype(np.int64))
    scored = score_documents(scorer, wholes, ends)
    first = first_token_after(alone.byte_ends, len(text[:skipped].encode()))
    num_tokens = len(alone.byte_ends) - first
    return np.stack([s.surprisal_nats[len(s.surprisal_nats) - num_tokens :] for s in scored]).astype(np.float32)


def first_token_after(byte_ends: np.ndarray, skipped_bytes: int) -> int:
    """Index of the first token that begins at or after so many bytes."""
    return int(np.searchsorted(np.concatenate([[0], byte_ends[:-1]]), skipped_bytes)) if len(byte_ends) else 0


def score_tokens(scorer: Scorer, text: str, target_byte_ends: np.ndarray) -> TokenScores:
    """`score_documents` for one text."""
    return score_documents(scorer, [text], [target_byte_ends])[0]


def _aligned(scores: TokenScores, target_byte_ends: np.ndarray) -> TokenScores:
    def move(nats: np.ndarray) -> np.ndarray:
        return align_nats(scores.byte_ends, nats, target_byte_ends).astype(np.float32)

    return TokenScores(target_byte_ends, move(scores.surprisal_nats), move(scores.entropy_nats))
