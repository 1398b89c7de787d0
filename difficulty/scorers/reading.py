"""Reading a text after a prefix: what a row holds, and what is left out where it would not fit. Shared by the scorers.

Prefix, text and the tokens that are given their nats stand in one window, or there are no nats. Where the window is too
short, the front of the text goes, by a rule that looks at nothing but sizes known beforehand: it is the same for every
prefix, and never what a single prefix turned out to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sharding.errors import RequestError
from sharding.models.tokenizer import TextTokenizer

SEPARATOR = "\n\n"
"""Between a prefix and a text: blank lines disturb a language model less than any tag it has never seen."""

MIN_FRONT_TOKENS = 64
"""So much of the text before the tokens that are given is always read: without it they would be another text."""

_NEAR_CHARACTERS = 32  # of what follows: enough to tell how what precedes it is cut


@dataclass(frozen=True)
class NatsAfter:
    """What some prefixes do for a text.

    Attributes:
        nats: (prefixes, tokens) float32, surprisal of the tokens that are given, after each prefix; NaN throughout
            where prefix and text are longer than one window.
        cut_tokens: how many tokens at the front of the text were not read, after any prefix.
    """

    nats: np.ndarray
    cut_tokens: int


@dataclass(frozen=True)
class Rows:
    """The rows that are read for some prefixes.

    Attributes:
        ids: token ids of each row, prefix and text; None where they are longer than the window.
        given: how many tokens at each row's end are given.
        cut_tokens: see `NatsAfter`.
    """

    ids: list[np.ndarray | None]
    given: int
    cut_tokens: int

    @property
    def fitting(self) -> list[int]:
        """The numbers of the rows that can be read."""
        return [number for number, ids in enumerate(self.ids) if ids is not None]

    def gathered(self, nats: Sequence[np.ndarray] | np.ndarray) -> NatsAfter:
        """The answer, from (given,) nats of each of the rows that can be read."""
        found = np.full((len(self.ids), self.given), np.nan, np.float32)
        if self.fitting and self.given:
            found[self.fitting] = nats
        return NatsAfter(found, self.cut_tokens)


def rows_after(
    tokenizer: TextTokenizer,
    prefixes: Sequence[str],
    text: str,
    skipped: int,
    *,
    prefix_tokens: int,
    context_tokens: int | None,
) -> Rows:
    """The rows of `Scorer.nats_after`, whose arguments these are; context_tokens None: any length can be read."""
    ids = tokenizer.encode_for_scoring(text)
    front = first_token_after(tokenizer.byte_ends(ids), len(text[:skipped].encode()))
    given = len(ids) - front
    read = front_tokens(front, given, prefix_tokens, context_tokens)
    ids = ids[front - read :]
    before = [_encode_before(tokenizer, prefix + SEPARATOR, text) if prefix else ids[:0] for prefix in prefixes]
    rows = [
        np.concatenate([prefix, ids]) if context_tokens is None or len(prefix) + len(ids) <= context_tokens else None
        for prefix in before
    ]
    return Rows(rows, given, front - read)


def front_tokens(front: int, given: int, prefix_tokens: int, context_tokens: int | None) -> int:
    """How many of the `front` tokens before the given ones are read: all, or what the longest prefix leaves room for.

    Args:
        front, given: tokens of the text.
        prefix_tokens: the longest that a prefix is meant to be.
        context_tokens: of the window; None: any length can be read.
    """
    if context_tokens is None:
        return front
    return min(front, max(context_tokens - given - prefix_tokens, MIN_FRONT_TOKENS))


def window_of(context_tokens: int | None, longest_tokens: int | None, model: str | None) -> int | None:
    """The window asked for, or what the model can read at once; None where neither is known.

    Raises:
        RequestError: the model can't read so much.
    """
    if context_tokens is None:
        return longest_tokens
    if longest_tokens is not None and context_tokens > longest_tokens:
        raise RequestError(
            f"select.gain.context_tokens: {context_tokens}: the scorer {model!r} reads at most {longest_tokens} tokens "
            "at once; leave it out for as many as that"
        )
    return context_tokens


def first_token_after(byte_ends: np.ndarray, skipped_bytes: int) -> int:
    """Index of the first token that begins at or after so many bytes."""
    return int(np.searchsorted(np.concatenate([[0], byte_ends[:-1]]), skipped_bytes)) if len(byte_ends) else 0


def _encode_before(tokenizer: TextTokenizer, prefix: str, text: str) -> np.ndarray:
    """The prefix as tokens, cut as it is in front of the text: white space is often cut by what follows it."""
    size_bytes = len(prefix.encode())
    ids = tokenizer.encode_for_scoring(prefix + text[:_NEAR_CHARACTERS])
    ids = ids[: np.searchsorted(tokenizer.byte_ends(ids), size_bytes, side="right")]
    covered_bytes = int(tokenizer.byte_ends(ids)[-1]) if len(ids) else 0
    return ids if covered_bytes == size_bytes else tokenizer.encode_for_scoring(prefix)
