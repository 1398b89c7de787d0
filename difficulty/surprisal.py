"""From a scorer's nats per token to a training token's: alignment, difficulty mass and hard spans. Pure numpy.

Scorers speak their own tokenization. `align_nats` moves their nats to the training tokens; `difficulty_nats` sums up
what a segment's budget is spread by; `hard_spans` names the places worth a thought.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

Measure = Literal["surprisal", "excess", "beyond_entropy"]
"""What a token's difficulty is: see `token_difficulty_nats`."""


def align_nats(source_byte_ends: np.ndarray, source_nats: np.ndarray, target_byte_ends: np.ndarray) -> np.ndarray:
    """Moves nats from one tokenization of a text to another by the bytes that tokens share.

    A token's nats are spread evenly over its bytes, so a target token gets the nats of the bytes it covers: the
    cumulative nats, interpolated at the target's boundaries. The total stays. The nats of a source token without
    bytes go to its neighbour before it (after it at the start); a target token without bytes gets none.

    Args:
        source_byte_ends: (source_tokens,) int64, non-decreasing: where each token ends in the text's UTF-8 bytes.
        source_nats: (source_tokens,) nats of each.
        target_byte_ends: (target_tokens,) int64, of the other tokenization.

    Returns:
        (target_tokens,) float64 nats; `source_nats` itself where the two tokenizations agree.

    Raises:
        ValueError: the two don't cover the same number of bytes, or the nats aren't one per source token.
    """
    if len(source_nats) != len(source_byte_ends):
        raise ValueError(f"{len(source_nats)} nats for {len(source_byte_ends)} tokens")
    num_source_bytes, num_target_bytes = (int(e[-1]) if len(e) else 0 for e in (source_byte_ends, target_byte_ends))
    if num_source_bytes != num_target_bytes:
        raise ValueError(f"source tokens cover {num_source_bytes} bytes, target tokens {num_target_bytes}")
    nats = np.asarray(source_nats, np.float64)
    if not nats.any():
        return np.zeros(len(target_byte_ends))
    lengths = np.diff(source_byte_ends, prepend=0)
    if np.array_equal(source_byte_ends, target_byte_ends) and (lengths > 0).all():
        return nats.copy()
    if num_source_bytes == 0:
        raise ValueError("there is no byte that could carry the nats")
    # One point per boundary; of several tokens that end at one byte the last holds the cumulative nats up to there.
    is_last_there = np.append(source_byte_ends[1:] > source_byte_ends[:-1], True) & (source_byte_ends > 0)
    boundaries = np.concatenate([[0], source_byte_ends[is_last_there]])
    cumulative = np.concatenate([[0.0], np.cumsum(nats)[is_last_there]])
    aligned = np.diff(np.interp(target_byte_ends, boundaries, cumulative), prepend=0.0)
    return np.maximum(aligned, 0.0) if (nats >= 0).all() else aligned  # rounding must not make a surprisal negative


def token_difficulty_nats(
    surprisal_nats: np.ndarray, entropy_nats: np.ndarray, memory_nats: np.ndarray, measure: Measure
) -> np.ndarray:
    """How hard each token is: what the measure says, or its surprisal under the memory where that is smaller.

    - `surprisal`: the nats of the scorer.
    - `excess`: the same column. What was stored there is already in excess of the reference model's nats.
    - `beyond_entropy`: max(0, surprisal - entropy). The entropy is the surprisal that the scorer itself expected, so
      what it knew it could not know, such as the digits of a hash, counts only by how far the draw was off.

    Args:
        surprisal_nats: (num_tokens,) nats.
        entropy_nats: (num_tokens,) nats; read under `beyond_entropy` alone.
        memory_nats: (num_tokens,) nats, or (0,) without a memory.

    Returns:
        (num_tokens,) nats.
    """
    nats = surprisal_nats
    if measure == "beyond_entropy":
        # Halves are too coarse for a difference of two.
        beyond = np.asarray(surprisal_nats, np.float32) - np.asarray(entropy_nats, np.float32)
        nats = np.maximum(beyond, np.float32(0))
    return np.minimum(nats, memory_nats) if len(memory_nats) else nats


def measure_of(difficulty: Mapping[str, Any]) -> Measure:
    """The measure of a `difficulty` section as a manifest records it, where one that is implied isn't written."""
    implied = "excess" if difficulty.get("reference_model") else "surprisal"
    return cast(Measure, difficulty.get("measure") or implied)


def difficulty_nats(surprisal_nats: np.ndarray, threshold_nats: float) -> float:
    """The difficulty mass of some tokens: the sum of their nats above the threshold, in float64."""
    return float(np.maximum(np.asarray(surprisal_nats, np.float64) - threshold_nats, 0.0).sum())


@dataclass(frozen=True)
class HardSpan:
    """A run of hard tokens. Offsets count from the start of the text; ends are exclusive.

    Attributes:
        token_start, token_end: its tokens.
        char_start, char_end: the characters they touch, whole ones.
        nats: its difficulty mass.
    """

    token_start: int
    token_end: int
    char_start: int
    char_end: int
    nats: float


def hard_spans(
    text: str,
    byte_ends: np.ndarray,
    surprisal_nats: np.ndarray,
    *,
    threshold_nats: float,
    max_gap_tokens: int = 2,
    max_span_tokens: int = 32,
    max_spans: int = 8,
) -> list[HardSpan]:
    """The places of a text that hold most of its difficulty.

    Hard tokens (above the threshold) with at most `max_gap_tokens` easy ones between them form a run; of a run longer
    than `max_span_tokens` the densest stretch of that length stays; of the runs the `max_spans` heaviest stay.

    Args:
        text: the text.
        byte_ends: (num_tokens,) int64, where each token ends in the text's UTF-8 bytes.
        surprisal_nats: (num_tokens,) nats.

    Returns:
        Spans in the order of the text, without overlap.
    """
    excess = np.maximum(np.asarray(surprisal_nats, np.float64) - threshold_nats, 0.0)
    hard = np.flatnonzero(excess)
    if not len(hard):
        return []
    gaps = np.flatnonzero(np.diff(hard) > max_gap_tokens + 1)
    starts = hard[np.concatenate([[0], gaps + 1])]
    ends = hard[np.concatenate([gaps, [len(hard) - 1]])] + 1
    mass_until = np.concatenate([[0.0], np.cumsum(excess)])
    runs = [_densest(mass_until, int(a), int(b), max_span_tokens) for a, b in zip(starts, ends, strict=True)]
    runs.sort(key=lambda run: (mass_until[run[0]] - mass_until[run[1]], run[0]))  # heaviest first, then the earliest
    kept = sorted(runs[:max_spans])

    starts_character = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
    chars_until = np.concatenate([[0], np.cumsum(starts_character)])  # characters begun before each byte
    byte_starts = np.concatenate([[0], byte_ends[:-1]])
    spans = []
    for a, b in kept:
        first, end = int(byte_starts[a]), int(byte_ends[b - 1])
        inside = first < len(starts_character) and not starts_character[first]
        nats = float(mass_until[b] - mass_until[a])
        spans.append(HardSpan(a, b, int(chars_until[first]) - int(inside), int(chars_until[end]), nats))
    return spans


def _densest(mass_until: np.ndarray, start: int, end: int, max_tokens: int) -> tuple[int, int]:
    """The stretch of at most `max_tokens` tokens within [start, end) that holds the most nats, the first of equals."""
    if end - start <= max_tokens:
        return start, end
    mass = mass_until[start + max_tokens : end + 1] - mass_until[start : end + 1 - max_tokens]
    first = start + int(mass.argmax())
    return first, first + max_tokens
