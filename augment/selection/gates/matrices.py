"""Matrices in a trace: rows of numbers or signs, which repeat themselves without being a loop. For the loop gate.

Rows stand on lines of their own, or between brackets, semicolons or LaTeX's double backslash. A loop of digits is no
matrix: it has rows without end, or the same row far more often than a row is long, or the same matrix again and again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from augment.selection.words import words_as_they_are

_ROW_END = re.compile(r"([\n;\]}\\](?:(?<!\\)|\\))")
_SIGN = re.compile(r"[^\w\s,|&(){}'\"\[]")
_SIGNS = re.compile(r"(?:[^\w\s,|&(){}'\"\[][\s,|&(){}'\"\[]*+){3}")
_ASCII_SIGNS = re.compile(
    "(?:[{signs}][{between}]*+){{3}}".format(
        signs="".join(re.escape(char) for char in map(chr, range(128)) if _SIGN.match(char)),
        between="".join(
            re.escape(char) for char in map(chr, range(128)) if not re.match(r"\w", char) and not _SIGN.match(char)
        ),
    )
)
"""What a row of signs has in it; the second says the same of ASCII, character by character, which is faster."""

_MIN_CELLS = 3
_MAX_CELLS = 128
_MAX_ROWS = 64
_MAX_LABELS = 0.2
"""Share of a row's words that may be no cells: "x1", "total"; one may be in any case."""


def without_matrices(text: str, words: Sequence[str]) -> str:
    """The text without its matrices; one that comes again stays where it does.

    Args:
        words: all of the text, from `words_as_they_are`.
    """
    if not _may_have_rows(text, words):
        return text
    kept: list[str] = []
    block: list[str] = []
    rows: list[tuple[str, ...]] = []
    seen: set[tuple[tuple[str, ...], ...]] = set()

    parts = _ROW_END.split(text)
    for line, end in zip(parts[::2], [*parts[1::2], ""], strict=True):
        cells = tuple(words_as_they_are(line) or _SIGN.findall(line))
        if _is_row(cells):
            rows.append(cells)
        elif cells or not rows:
            kept += _unless_matrix(block, rows, seen)
            kept.append(line + end)
            block, rows = [], []
            continue
        block.append(line + end)
    return "".join(kept + _unless_matrix(block, rows, seen))


def _may_have_rows(text: str, words: Sequence[str]) -> bool:
    """Whether a text has the cells of two rows, or signs for one."""
    cells = list(filter(_is_cell, set(words)))
    # Few different ones are counted; a text of nothing else must not take the square of its length.
    if len(cells) >= 2 * _MIN_CELLS or sum(map(words.count, cells)) >= 2 * _MIN_CELLS:
        return True
    return bool((_ASCII_SIGNS if text.isascii() else _SIGNS).search(text))


def _is_row(cells: tuple[str, ...]) -> bool:
    if not _MIN_CELLS <= len(cells) <= _MAX_CELLS:
        return False
    labels = len(cells) - sum(map(_is_cell, cells))
    return len(cells) - labels >= _MIN_CELLS and labels <= max(1, _MAX_LABELS * len(cells))


def _is_cell(word: str) -> bool:
    """Whether a word or sign may be an entry of a matrix rather than a label."""
    return word[0].isdigit() or (len(word) == 1 and word.isascii())


def _unless_matrix(block: list[str], rows: list[tuple[str, ...]], seen: set[tuple[tuple[str, ...], ...]]) -> list[str]:
    """What is to be kept of a block of rows: nothing of a matrix that wasn't seen yet, which then is."""
    matrix = tuple(rows)
    if not 2 <= len(matrix) <= _MAX_ROWS or matrix in seen:
        return block
    if len(matrix) > 2 * max(map(len, matrix)) and 2 * len(set(matrix)) < len(matrix):
        return block
    seen.add(matrix)
    return ["\n"]
