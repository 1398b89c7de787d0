"""Matrices in a trace: rows of numbers, which repeat themselves without being a loop. For the loop gate.

Rows stand on lines of their own, or between brackets, semicolons or LaTeX's double backslash. A loop of digits is no
matrix: it has rows without end, or the same row far more often than a row is long, or the same matrix again and again.
"""

from __future__ import annotations

import re

from augment.selection.words import WORD

_ROW_END = re.compile(r"(\n|[;\]]|\\\\)")
_MIN_CELLS = 3
_MAX_CELLS = 128
_MAX_ROWS = 64
_MAX_LABELS = 0.2
"""Share of a row's words that may be no cells: "x1", "total"; one may be in any case."""


def without_matrices(text: str) -> str:
    """The text without its matrices; one that comes again stays where it does."""
    kept: list[str] = []
    block: list[str] = []
    seen: set[tuple[tuple[str, ...], ...]] = set()
    parts = _ROW_END.split(text)
    for row, end in zip(parts[::2], [*parts[1::2], ""], strict=True):
        words = WORD.findall(row)
        if _is_row(words) or (block and not words):
            block.append(row + end)
            continue
        kept += _unless_matrix(block, seen)
        block = []
        kept.append(row + end)
    return "".join(kept + _unless_matrix(block, seen))


def _is_row(words: list[str]) -> bool:
    if not _MIN_CELLS <= len(words) <= _MAX_CELLS:
        return False
    cells = sum(1 for word in words if word[0].isdigit() or (len(word) == 1 and word.isascii()))
    return cells >= _MIN_CELLS and len(words) - cells <= max(1, _MAX_LABELS * len(words))


def _unless_matrix(block: list[str], seen: set[tuple[tuple[str, ...], ...]]) -> list[str]:
    """What is to be kept of rows in a row: nothing of a matrix that wasn't seen yet, which then is."""
    rows = tuple(tuple(words) for row in block if (words := WORD.findall(row)))
    if not 2 <= len(rows) <= _MAX_ROWS or rows in seen:
        return block
    if len(rows) > 2 * max(map(len, rows)) and 2 * len(set(rows)) < len(rows):
        return block
    seen.add(rows)
    return ["\n"]
