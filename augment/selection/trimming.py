"""Trimming: a kept trace ends where it stops to help. Pure; after who is kept was decided.

A trace often goes on after its conclusion. Its gain is measured along its sentences, and of the prefixes the shortest
is kept that is not worse than the best by more than noise: the one-standard-error rule of Breiman et al. (1984), with
the error of the difference between the two, over the same tokens. So a prefix is not taken for being best by chance,
and a tail that adds less than can be told from nothing goes.

The cut is chosen by one half of the tokens of the text that follows (`values.gain.chosen_by`); what it costs is
measured on the other half, and told in the account beside the gains, which are those of whole traces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.values.gain import chosen_by
from augment.traces import ends_sentence
from sharding.config import STRICT

BLOCK_TOKENS = 4
"""Differences of neighbouring tokens go together, so the error is that of sums over so many of them."""

LEAST_BLOCKS = 4
"""Of fewer the error can't be told, and nothing is cut."""

_PAUSE = re.compile(r"(?<=[.!?。！？…\"”’)*`_])\s+|(?<=[。！？…])|\n{2,}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrimConfig:
    """Where kept traces are cut."""

    standard_errors: float = Field(
        default=1.0, ge=0, description="A prefix may be so many standard errors worse than the best one."
    )
    min_share: float = Field(default=0.25, gt=0, le=1, description="Of its characters a trace keeps at least so much.")
    max_prefixes: int = Field(default=8, ge=1, description="Prefixes that are tried, at ends of sentences.")


@plain_dataclass(frozen=True)
class Trimmed:
    """A trace that was cut.

    Attributes:
        text: a prefix of the trace.
        change_nats: what the cut changes on the tokens that it was not chosen by, scaled up to all.
    """

    text: str
    change_nats: float


def prefixes_of(text: str, config: TrimConfig, min_bytes: int = 0) -> list[str]:
    """The prefixes of a trace that are tried, the shortest first, each ending with a sentence; without the trace.

    Args:
        min_bytes: of UTF-8, that a prefix has at least.
    """
    whole = text.rstrip()
    ends = sorted({match.start() for match in _PAUSE.finditer(whole)})
    least = math.ceil(config.min_share * len(whole))
    fit = [whole[:end] for end in ends if least <= end < len(whole)]
    fit = [prefix for prefix in fit if ends_sentence(prefix) and len(prefix.encode()) >= min_bytes]
    if len(fit) <= config.max_prefixes:
        return fit
    places = np.linspace(0, len(fit) - 1, config.max_prefixes).round().astype(int)
    return [fit[place] for place in dict.fromkeys(places.tolist())]


def shortest_as_good(gains: np.ndarray, config: TrimConfig) -> int:
    """Which prefix is kept.

    Args:
        gains: (prefixes, num_tokens) nats that each prefix adds to each token; the last is the whole trace.

    Returns:
        Its place; the last where nothing is to be cut, or the error can't be told.
    """
    whole = len(gains) - 1
    choosing = np.flatnonzero(chosen_by(gains.shape[1])) if gains.shape[1] else np.empty(0, np.int64)
    blocks = len(choosing) // BLOCK_TOKENS
    if blocks < LEAST_BLOCKS or not np.isfinite(gains).all():
        return whole
    chosen = gains[:, choosing[: blocks * BLOCK_TOKENS]].reshape(len(gains), blocks, BLOCK_TOKENS)
    sums = chosen.sum(axis=2, dtype=np.float64)
    best = int(sums.sum(axis=1).argmax())
    for place in range(best):
        lost = sums[best] - sums[place]
        if lost.sum() <= config.standard_errors * math.sqrt(blocks) * lost.std(ddof=1):
            return place
    return best


def change_nats(gains: np.ndarray, kept: int) -> float:
    """What keeping a prefix in place of the whole changes on the tokens not chosen by, scaled up to all; nats."""
    others = ~chosen_by(gains.shape[1])
    if not others.any():
        return 0.0
    difference = (gains[kept] - gains[-1])[others].sum(dtype=np.float64)
    return round(float(difference) * len(others) / int(others.sum()), 3)


def trim(prefixes: Sequence[str], gains: np.ndarray, config: TrimConfig) -> Trimmed | None:
    """The trace as it is kept; None where it stays whole.

    Args:
        prefixes: from `prefixes_of`.
        gains: (prefixes + 1, num_tokens) nats; the last of the whole trace.
    """
    kept = shortest_as_good(gains, config)
    return None if kept == len(prefixes) else Trimmed(prefixes[kept], change_nats(gains, kept))
