"""Which pieces of the documents a plan scores: by hash, in proportion to their size. Pure.

What a plan asks about is segments, and a few long documents may hold most of them. So a document is drawn in proportion
to the segments that it will be cut into, and of a long one only pieces are scored, each about as likely as a short
document of its size. Of a corpus with heavy tails that is the difference between an interval and a guess.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from sharding.hashing import content_id, text_number
from sharding.records.types import Document

BYTES_PER_TOKEN = 4
"""Of text, about: it only has to be in proportion."""

PIECE_SEGMENTS = 16
"""A longer document is cut into pieces of at most so many segments. The first and the last of a piece within a document
are not counted: one lacks what stands before it, the other its end."""


class Piece(NamedTuple):
    """A document, or a piece of it.

    Attributes:
        document: with the text of the piece alone.
        group: of the document: the range it was read from.
        is_first, is_last: whether the piece holds the document's beginning, its end.
        document_bytes: of the whole document.
        size: about how many segments it has.
        chance: with which it was drawn; 1: it was sure to be.
    """

    document: Document
    group: int
    is_first: bool
    is_last: bool
    document_bytes: int
    size: float
    chance: float


def size_of(text_bytes: float, segment_tokens: int) -> float:
    """About how many segments so much text of one document has."""
    return max(text_bytes / (segment_tokens * BYTES_PER_TOKEN), 1.0)


def choose_pieces(
    documents: Sequence[tuple[Document, int]], wanted: int, segment_tokens: int
) -> tuple[list[Piece], float]:
    """So many pieces of documents and their groups, or all documents whole where there are no more; the sum of sizes.

    Priority sampling (Duffield, Lund, Thorup 2007): those with the largest size / u, u uniform by hash. The first that
    isn't chosen tells how likely each of the others was.
    """
    lengths = [len(document.text.encode("utf-8", "surrogatepass")) for document, _ in documents]
    sizes = [size_of(length, segment_tokens) for length in lengths]
    if wanted >= len(documents):
        rows = zip(documents, lengths, sizes, strict=True)
        return [Piece(d, group, True, True, length, size, 1.0) for (d, group), length, size in rows], sum(sizes)
    cuts = [math.ceil(size / PIECE_SEGMENTS) for size in sizes]
    places = [(number, part) for number, parts in enumerate(cuts) for part in range(parts)]
    names = _names([document for document, _ in documents])
    size = np.array([sizes[number] / cuts[number] for number, _ in places])
    uniform = np.array([(text_number(f"{names[number]} {part}") + 1) * 2.0**-64 for number, part in places])
    order = np.argsort(-size / uniform, kind="stable")
    threshold = float((size / uniform)[order[wanted]]) if wanted < len(order) else 0.0
    chosen = []
    for index in order[:wanted].tolist():
        number, part = places[index]
        (document, group), parts = documents[number], cuts[number]
        start, end = (len(document.text) * at // parts for at in (part, part + 1))
        chosen.append(
            Piece(
                document=msgspec.structs.replace(document, text=document.text[start:end]),
                group=group,
                is_first=part == 0,
                is_last=part == parts - 1,
                document_bytes=lengths[number],
                size=float(size[index]),
                chance=min(float(size[index]) / threshold, 1.0) if threshold else 1.0,
            )
        )
    return chosen, sum(sizes)


def _names(documents: Sequence[Document]) -> list[str]:
    """What documents are drawn by: their content, wherever they lie; copies have names of their own."""
    seen: Counter[str] = Counter()
    names = []
    for document in documents:
        name = content_id(f"{document.text}\0{document.doc_id}")
        names.append(f"{name} {seen[name]}")
        seen[name] += 1
    return names
