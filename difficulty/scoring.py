"""Documents to scored segments: where tokenizer, scorer and cutter meet. The heart of the score stage, without Beam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.scorers import Scorer, TokenScores, score_documents
from difficulty.segments import cut_segments
from difficulty.surprisal import difficulty_nats
from sharding.errors import MillError
from sharding.records import Document, ScoredSegment
from sharding.tokenizer import TextTokenizer


def score_segments(
    encoded: Sequence[tuple[Document, np.ndarray]],
    tokenizer: TextTokenizer,
    scorer: Scorer,
    config: DifficultyConfig,
) -> Iterator[ScoredSegment]:
    """The segments of documents, each with the nats of its training tokens.

    Args:
        encoded: documents with their training token ids, (num_tokens,) each; give several, so that the scorer can
            fill its batches.
        tokenizer: the training tokenizer that made the ids.
        scorer: scores the texts in its own tokenization; its nats move over by bytes.
        config: segment length and threshold.

    Raises:
        MillError: the scorer gave a document a surprisal or entropy that is not a number.
    """
    byte_ends = [tokenizer.byte_ends(ids) for _, ids in encoded]
    scores = score_documents(scorer, [document.text for document, _ in encoded], byte_ends)
    for (document, ids), ends, scored in zip(encoded, byte_ends, scores, strict=True):
        yield from _segments(document, ids, ends, scored, config)


def _segments(
    document: Document, ids: np.ndarray, byte_ends: np.ndarray, scored: TokenScores, config: DifficultyConfig
) -> Iterator[ScoredSegment]:
    surprisal, entropy = _half(scored.surprisal_nats), _half(scored.entropy_nats)
    if not (np.isfinite(surprisal).all() and np.isfinite(entropy).all()):
        raise MillError(f"the scorer gave document {document.doc_id!r} nats that are not finite numbers")
    spans = cut_segments(byte_ends, document.text.encode(), config.segment_tokens)
    for index, (start, end) in enumerate(spans):
        yield ScoredSegment(
            doc_id=document.doc_id,
            segment_index=index,
            num_segments=len(spans),
            token_start=start,
            input_ids=ids[start:end],
            surprisal_nats=surprisal[start:end],
            entropy_nats=entropy[start:end],
            # From the stored nats, so that whoever reads the parts gets the same mass.
            difficulty_nats=difficulty_nats(surprisal[start:end], config.threshold_nats),
            metadata=document.metadata if index == 0 else None,
        )


def _half(nats: np.ndarray) -> np.ndarray:
    """As float16; where several scorer tokens fall on one training token, the sum may exceed what float16 holds."""
    return np.minimum(nats, np.finfo(np.float16).max).astype(np.float16)
