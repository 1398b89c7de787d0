"""Items as a person reads them: runs of source, of thoughts, and what stands around documents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from sharding.packing.layout import Delimiters
from sharding.records.rows import Item, TokenType


def runs_of(item: Item, delimiters: Delimiters) -> Iterator[tuple[TokenType, np.ndarray]]:
    """(kind, ids) of each run of tokens of one kind; of delimiters, what stands around no thought.

    Args:
        item: a document, or a piece of one.
        delimiters: those of the corpus.
    """
    runs = list(_runs(item.input_ids, item.token_type))
    for place, (kind, ids) in enumerate(runs):
        if kind == TokenType.DELIMITER:
            if place == item.source_start == 0:
                ids = ids[len(delimiters.document_start) :]
            # Delimiters that meet are one run: close, open, end of document.
            if place and runs[place - 1][0] == TokenType.THOUGHT:
                ids = ids[len(delimiters.thought_close) :]
            if place + 1 < len(runs) and runs[place + 1][0] == TokenType.THOUGHT:
                ids = ids[: len(ids) - len(delimiters.thought_open)]
        if len(ids):
            yield kind, ids


def _runs(input_ids: np.ndarray, token_type: np.ndarray) -> Iterator[tuple[TokenType, np.ndarray]]:
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(token_type)) + 1, [len(token_type)]]).tolist()
    for start, end in pairwise(bounds):
        if end > start:
            yield TokenType(int(token_type[start])), input_ids[start:end]
