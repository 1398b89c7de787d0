"""Held-out text: documents that no student was trained on, with the difficulty of their tokens. Read without Beam."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from difficulty.surprisal import measure_of, token_difficulty_nats
from sharding.beam.part_join import Parts, groups_of, joined_documents
from sharding.errors import MillError, RequestError
from sharding.hashing import Purpose, hashed
from sharding.models.tokenizer import load_tokenizer
from sharding.packing import order
from sharding.packing.laying_out import cluster_of
from sharding.records.families import NEAR_COPIES, SEGMENTS
from sharding.records.types import ScoredDocument
from sharding.storage import manifest

_COLUMNS = ("input_ids", "surprisal_nats", "entropy_nats", "memory_nats", "source")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out document.

    Attributes:
        doc_id: which.
        input_ids: (num_tokens,) training token ids.
        nats: (num_tokens,) float32, the difficulty of each token for the scorer; (0,) where it wasn't scored.
        segment_starts: (num_segments,) int64.
    """

    doc_id: str
    input_ids: np.ndarray
    nats: np.ndarray
    segment_starts: np.ndarray


def threshold_of(scores: str) -> float:
    """Nats above which a token is hard, of a scored output."""
    return float(manifest.require(scores, "score").config["difficulty"]["threshold_nats"])


def check_held_out(validation_fraction: float) -> None:
    """Refuse to ask students about the validation split of a corpus that has none.

    Raises:
        RequestError: it has none.
    """
    if not validation_fraction:
        raise RequestError(
            "pack.validation_fraction: 0, so no text is held out to ask students about: set it and pack again, or name "
            "a scored output as option `path` of the evaluator"
        )


def held_out(scores: str, baseline: str, path: str | None, max_tokens: int) -> tuple[HeldOut, ...]:
    """Documents of the validation split, or all documents of another scored output, by a hash of their ids.

    Args:
        scores: the scored output.
        baseline: a packed output of it, whose split counts.
        path: another scored output of the same tokenizer; None: the validation split.
        max_tokens: so many tokens are enough.

    Raises:
        RequestError: there is no held-out document, or the other output has another tokenizer.
        MillError: an output isn't there or isn't whole.
    """
    fraction = manifest.require(baseline, "pack").config["pack"]["validation_fraction"]
    if path is None:
        check_held_out(fraction)
    else:
        ours, theirs = (manifest.require(one, "score").config["tokenizer"] for one in (scores, path))
        if load_tokenizer(ours).fingerprint != load_tokenizer(theirs).fingerprint:
            raise RequestError(f"ablation.evaluators: path {path} was scored with tokenizer {theirs}, not {ours}")
    found = _read(path or scores, None if path else fraction, max_tokens)
    if not found:
        where = f"the validation split of {baseline}" if path is None else path
        raise RequestError(f"ablation.evaluators: {where} has no document of two tokens, so nothing is held out")
    return found


@lru_cache(maxsize=4)
def _read(scores: str, fraction: float | None, max_tokens: int) -> tuple[HeldOut, ...]:
    scored = manifest.require(scores, "score")
    tokenizer, measure = load_tokenizer(scored.config["tokenizer"]), measure_of(scored.config["difficulty"])
    documents: list[ScoredDocument] = []
    # Parts are dealt out by a hash of the document's id: the first ones are as good as any.
    for group in groups_of(Parts.of(scores, scored, SEGMENTS, _COLUMNS), Parts.of(scores, scored, NEAR_COPIES)):
        for joined in joined_documents(group):
            document = joined.scored
            text = tokenizer.decode(document.input_ids)
            held = fraction is None or order.split_of(text, fraction, cluster_of(joined)) == "validation"
            if held and len(document.input_ids) > 1:
                documents.append(document)
        if sum(len(document.input_ids) for document in documents) >= max_tokens:
            break
    documents.sort(key=lambda document: (hashed(Purpose.HELD_OUT, document.doc_id), document.doc_id))
    taken: list[HeldOut] = []
    tokens = 0
    for document in documents:
        if tokens >= max_tokens:
            break
        nats = token_difficulty_nats(document.surprisal_nats, document.entropy_nats, document.memory_nats, measure)
        nats = nats.astype(np.float32)
        taken.append(HeldOut(document.doc_id, document.input_ids, nats, document.segment_starts))
        tokens += len(document.input_ids)
    return tuple(taken)


def windows(documents: tuple[HeldOut, ...], size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Documents in pieces that a student reads at once, and how difficult each predicted token is.

    Args:
        documents: to be read.
        size: tokens that are read at once.

    Returns:
        Pieces of 2 to `size` token ids; and (predicted tokens,) float32 nats of all their tokens but the first ones.
    """
    pieces: list[np.ndarray] = []
    nats: list[np.ndarray] = []
    for document in documents:
        for start in range(0, len(document.input_ids), size):
            piece = document.input_ids[start : start + size]
            if len(piece) > 1:
                pieces.append(piece)
                nats.append(document.nats[start + 1 : start + len(piece)])
    if not pieces:
        raise MillError("the held-out text has no two tokens to read at once")
    return pieces, np.concatenate(nats)
