"""A scorer without a model, to rehearse a config: plausible nats from a hash of each word, fast and deterministic.

Its scores have the shape of a language model's (many easy tokens, a heavy tail) and no meaning; the score stage marks
what they touch as not for training.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.scorers.protocol import TokenScores
from difficulty.scorers.reading import NatsAfter, first_token_after, front_tokens
from sharding.hashing import text_number

_VERSION = 1
_MAX_NATS = 20.0
# A Weibull tail: median 1.2, mean 2.5 nats, about what small models show on prose.
_TAIL_SHAPE, _TAIL_SCALE_NATS = 0.7, 2.0
_SEPARATOR_SHARE = 0.3  # spaces and punctuation are easier than words
_PRIME = np.uint64(0x100000001B3)
_INVERSE_PRIME = np.uint64(pow(0x100000001B3, -1, 1 << 64))
_MIX = np.uint64(0x9E3779B97F4A7C15)

# What a byte is to the word cutter. A word carries the space before it, as in most vocabularies.
_WORD, _SPACE, _MARK, _WIDE_START, _INSIDE = range(5)


def _byte_classes() -> np.ndarray:
    classes = np.full(256, _MARK, np.uint8)
    classes[[*b" \t\n\r"]] = _SPACE
    classes[[byte for byte in range(128) if chr(byte).isalnum()]] = _WORD
    classes[0x80:0xC0] = _INSIDE
    classes[0xC0:0xE0] = _WORD  # letters with accents, Greek, Cyrillic, ...
    classes[0xE0:] = _WIDE_START  # Chinese, Japanese, emoji, ...: one token per character
    return classes


_CLASSES = _byte_classes()


def make(config: DifficultyConfig) -> "RehearsalScorer":
    """The scorer; the rest of the config is no matter."""
    return RehearsalScorer()


def describe(config: DifficultyConfig) -> dict[str, Any]:
    """What the manifest says of it."""
    return {"scorer": RehearsalScorer.name, "measure": "rehearsal", "version": _VERSION}


class RehearsalScorer:
    """Equal words get equal nats, wherever they stand; nothing else decides."""

    name = "rehearsal"
    rehearsal = True

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        return [_score(text.encode()) for text in texts]

    def nats_after(
        self, prefixes: Sequence[str], text: str, skipped: int, *, prefix_tokens: int, context_tokens: int | None = None
    ) -> NatsAfter:
        """Each token's nats, a little more or less by a hash of the prefix and the token's place."""
        alone = _score(text.encode())
        front = first_token_after(alone.byte_ends, len(text[:skipped].encode()))
        nats = alone.surprisal_nats[front:]
        read = front_tokens(front, len(nats), prefix_tokens, context_tokens)
        found = np.empty((len(prefixes), len(nats)), np.float32)
        for row, prefix in zip(found, prefixes, strict=True):
            noise = np.random.Generator(np.random.PCG64(text_number(prefix))).uniform(0.9, 1.1, len(nats))
            row[:] = nats * noise if prefix else nats
            size = len(_score(prefix.encode()).byte_ends) + read + len(nats)
            if context_tokens is not None and size > context_tokens:
                row[:] = np.nan
        return NatsAfter(found, front - read)


def _score(text_bytes: bytes) -> TokenScores:
    text = np.frombuffer(text_bytes, np.uint8)
    if not len(text):
        return TokenScores(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    classes = _CLASSES[text]
    previous, current = classes[:-1], classes[1:]
    joins = current == _INSIDE
    joins |= (current == _WORD) & ((previous == _WORD) | (previous == _INSIDE) | (text[:-1] == ord(" ")))
    joins |= (current == _SPACE) & (text[1:] == text[:-1])
    starts = np.concatenate([[0], np.flatnonzero(~joins) + 1])
    ends = np.append(starts[1:], len(text))

    hashes = _hashes(text, starts, ends)
    uniform = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    surprisal = _TAIL_SCALE_NATS * (-np.log1p(-uniform)) ** (1 / _TAIL_SHAPE)
    is_separator = (classes[starts] == _MARK) | (classes[ends - 1] == _SPACE)
    surprisal = np.minimum(np.where(is_separator, _SEPARATOR_SHARE, 1.0) * surprisal, _MAX_NATS)
    other = ((hashes * _MIX) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    entropy = 0.5 * surprisal + 2.0 * other
    return TokenScores(ends.astype(np.int64), surprisal.astype(np.float32), entropy.astype(np.float32))


def _hashes(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A 64-bit hash of the bytes of each token, whatever their place: a polynomial modulo 2^64, then mixed."""
    powers = np.cumprod(np.full(len(text), _PRIME, np.uint64))
    inverse = np.cumprod(np.full(len(text), _INVERSE_PRIME, np.uint64))
    until = np.concatenate([np.zeros(1, np.uint64), np.cumsum((text.astype(np.uint64) + np.uint64(1)) * powers)])
    mixed = (until[ends] - until[starts]) * inverse[starts]
    for shift in (32, 29, 32):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * _MIX
    return mixed
