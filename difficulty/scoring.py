"""Documents to scored segments: where tokenizer, scorer and cutter meet. The heart of the score stage, without Beam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.memory.table import NgramMemory
from difficulty.scorers import make_scorer
from difficulty.scorers.protocol import Scorer, TokenScores, score_documents
from difficulty.segments import cut_segments
from difficulty.surprisal import difficulty_nats, token_difficulty_nats
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.records.types import Document, ScoredDocument, ScoredSegment

LARGEST_HALF = np.finfo(np.float16).max


def score_segments(
    encoded: Sequence[tuple[Document, np.ndarray]],
    tokenizer: TextTokenizer,
    scorer: Scorer,
    config: DifficultyConfig,
    memory: NgramMemory | None = None,
) -> Iterator[ScoredSegment]:
    """The segments of `score_whole_documents`, one by one."""
    for document in score_whole_documents(encoded, tokenizer, scorer, config, memory):
        yield from document.segments()


def score_whole_documents(
    encoded: Sequence[tuple[Document, np.ndarray]],
    tokenizer: TextTokenizer,
    scorer: Scorer,
    config: DifficultyConfig,
    memory: NgramMemory | None = None,
) -> Iterator[ScoredDocument]:
    """Documents cut into segments, with the nats of their training tokens; those without a token are left out.

    Args:
        encoded: documents with their training token ids, (num_tokens,) each; give several, so that the scorer can
            fill its batches.
        tokenizer: the training tokenizer that made the ids.
        scorer: scores the texts in its own tokenization; its nats move over by bytes.
        config: segment length and threshold.
        memory: the n-gram memory of the corpus, in training tokens; a token it predicts is not hard.

    Raises:
        MillError: the scorer gave a document a surprisal or entropy that is not a number.
    """
    byte_ends = [tokenizer.byte_ends(ids) for _, ids in encoded]
    scores = _scores(encoded, byte_ends, scorer)
    if memory is None:
        remembered = [np.empty(0, np.float32)] * len(encoded)
    else:
        remembered = memory.surprisal_many([ids for _, ids in encoded])
    for (document, ids), ends, scored, memory_nats in zip(encoded, byte_ends, scores, remembered, strict=True):
        if len(ids):
            yield _scored(document, ids, ends, scored, _half(memory_nats), config)


def _scores(
    encoded: Sequence[tuple[Document, np.ndarray]], byte_ends: Sequence[np.ndarray], scorer: Scorer
) -> Iterator[TokenScores]:
    """The nats of each document: those that are known as they are, the others from the scorer, all at once."""
    new = [i for i, (document, _) in enumerate(encoded) if document.known_nats is None]
    found = iter(score_documents(scorer, [encoded[i][0].text for i in new], [byte_ends[i] for i in new]) if new else ())
    for (document, ids), ends in zip(encoded, byte_ends, strict=True):
        if document.known_nats is None:
            yield next(found)
        else:
            yield TokenScores(ends, *document.known_nats.reshape(2, len(ids)))


def _scored(
    document: Document,
    ids: np.ndarray,
    byte_ends: np.ndarray,
    scored: TokenScores,
    memory: np.ndarray,
    config: DifficultyConfig,
) -> ScoredDocument:
    if not (_are_numbers(scored.surprisal_nats) and _are_numbers(scored.entropy_nats)):
        raise MillError(f"the scorer gave document {document.doc_id!r} nats that are not finite numbers")
    surprisal, entropy = _half(scored.surprisal_nats), _half(scored.entropy_nats)
    difficulty = token_difficulty_nats(surprisal, entropy, memory, config.token_measure)
    spans = cut_segments(byte_ends, document.text.encode(), config.segment_tokens)
    masses = [difficulty_nats(difficulty[start:end], config.threshold_nats) for start, end in spans]
    return ScoredDocument(
        doc_id=document.doc_id,
        segment_starts=np.array([start for start, _ in spans], np.int64),
        input_ids=ids,
        surprisal_nats=surprisal,
        entropy_nats=entropy,
        memory_nats=memory,
        # From the stored nats, so that whoever reads the parts gets the same mass.
        segment_difficulty_nats=np.array(masses, np.float64),
        metadata=document.metadata,
        source=document.source,
        cluster=document.cluster,
    )


def _are_numbers(nats: np.ndarray) -> bool:
    # A NaN is the smallest of all, and no comparison with it holds. Infinite surprisal is a number too large to hold.
    return len(nats) == 0 or bool(nats.min() > -np.inf)


def _half(nats: np.ndarray) -> np.ndarray:
    """As float16; where several scorer tokens fall on one training token, the sum may exceed what float16 holds."""
    if len(nats) and nats.max() > LARGEST_HALF:
        nats = np.minimum(nats, LARGEST_HALF)
    return nats.astype(np.float16)


def score_texts(texts: Sequence[str], config: DifficultyConfig, tokenizer: str | None = None) -> list[ScoredSegment]:
    """The scored segments of some texts: what the score stage does to a corpus, without Beam or files.

    Args:
        texts: the texts; the document id of each is its position, "0", "1", ...
        config: the scorer, its model, segment length and threshold.
        tokenizer: the training tokenizer; the scoring model's own when absent.

    Returns:
        The segments of all texts, in order.

    Raises:
        UnencodableText: the tokenizer can't spell a text.
        MillError: the model can't be loaded.
        RequestError: there is no tokenizer to take.
    """
    name = tokenizer or config.model
    if name is None:
        raise RequestError("score_texts: a scorer without a model needs the name of a tokenizer")
    training_tokenizer = load_tokenizer(name)
    documents = [Document(doc_id=str(i), text=text, origin=f"texts[{i}]") for i, text in enumerate(texts)]
    ids = training_tokenizer.encode_batch(texts)
    scorer = make_scorer(config)
    return list(score_segments(list(zip(documents, ids, strict=True)), training_tokenizer, scorer, config))
