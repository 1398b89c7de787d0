"""How tokens are laid out for a forward pass: overlapping windows over a document, and batches of rows. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

_MIN_FILL = 0.75  # of a batch's longest row: a shorter row opens a batch of its own rather than be mostly padding


class Window(NamedTuple):
    """What one row reads and scores: tokens [start, end) are read, [score_from, end) get a score."""

    start: int
    score_from: int
    end: int


def cut_windows(num_tokens: int, context_tokens: int, min_context: int) -> list[Window]:
    """Windows of at most `context_tokens` that score every token once.

    Every token has at least `min_context` tokens before it in its window, or all there are: tokens of the first
    window have what precedes them in the document.

    Args:
        num_tokens: length of the document.
        context_tokens: longest window; more than `min_context`.
        min_context: overlap of a window with the one before.
    """
    if not 0 <= min_context < context_tokens:
        raise ValueError(f"min_context {min_context} must be below context_tokens {context_tokens}")
    windows = []
    scored = 0
    while scored < num_tokens:
        start = max(scored - min_context, 0) if scored else 0
        end = min(start + context_tokens, num_tokens)
        windows.append(Window(start, scored, end))
        scored = end
    return windows


def batch_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups rows of similar length, the longest first, so that little is padding.

    No row is shorter than three quarters of its batch's longest, so at most a quarter of what is computed is padding.

    Args:
        lengths: tokens of each row.
        batch_tokens: cap on rows times the longest row of a batch; a longer row goes alone.

    Returns:
        Indices into `lengths`, each once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * longest <= batch_tokens and lengths[row] >= _MIN_FILL * longest
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
