"""Matrices in a trace: rows of numbers or signs, which repeat themselves without being a loop. For the loop gate.

Rows stand on lines of their own, or between brackets, semicolons or LaTeX's double backslash. A loop of digits is no
matrix: it has rows without end, or the same row far more often than a row is long, or the same matrix again and again.
"""

from __future__ import annotations

import re

from augment.selection.words import WORD

_ROW_END = re.compile(r"(\n|[;\]}]|\\\\)")
_SIGN = re.compile(r"[^\w\s,|&(){}'\"\[]")
_MIN_CELLS = 3
_MAX_CELLS = 128
_MAX_ROWS = 64
_MAX_LABELS = 0.2
"""Share of a row's words that may be no cells: "x1", "total"; one may be in any case."""


def without_matrices(text: str) -> str:
    """The text without its matrices; one that comes again stays where it does."""
    kept: list[str] = []
    block: list[str] = []
    rows: list[tuple[str, ...]] = []
    seen: set[tuple[tuple[str, ...], ...]] = set()

    parts = _ROW_END.split(text)
    for line, end in zip(parts[::2], [*parts[1::2], ""], strict=True):
        cells = tuple(WORD.findall(line) or _SIGN.findall(line))
        if _is_row(cells):
            rows.append(cells)
        elif cells or not rows:
            kept += _unless_matrix(block, rows, seen)
            kept.append(line + end)
            block, rows = [], []
            continue
        block.append(line + end)
    return "".join(kept + _unless_matrix(block, rows, seen))


def _is_row(cells: tuple[str, ...]) -> bool:
    if not _MIN_CELLS <= len(cells) <= _MAX_CELLS:
        return False
    labels = sum(1 for cell in cells if not (cell[0].isdigit() or (len(cell) == 1 and cell.isascii())))
    return len(cells) - labels >= _MIN_CELLS and labels <= max(1, _MAX_LABELS * len(cells))


def _unless_matrix(block: list[str], rows: list[tuple[str, ...]], seen: set[tuple[tuple[str, ...], ...]]) -> list[str]:
    """What is to be kept of a block of rows: nothing of a matrix that wasn't seen yet, which then is."""
    matrix = tuple(rows)
    if not 2 <= len(matrix) <= _MAX_ROWS or matrix in seen:
        return block
    if len(matrix) > 2 * max(map(len, matrix)) and 2 * len(set(matrix)) < len(matrix):
        return block
    seen.add(matrix)
    return ["\n"]
