"""What a plan knows of the corpus: the scored parts, or else a sample of the source, scored on the spot.

scored parts ─► histogram of everything, a few documents for the length of prompts
source       ─► byte ranges by hash ─► pieces of documents by hash ─► scored ─► histogram scaled to the whole
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from difficulty.memory.counting import NgramCounts
from difficulty.memory.table import NgramMemory
from difficulty.scorers import make_scorer
from difficulty.scorers.protocol import Scorer
from pipelines.config import MillConfig
from pipelines.earlier_scores import EarlierScores
from pipelines.plan.corpus import Evidence, SampledDocument
from pipelines.plan.pieces import Piece, choose_pieces, size_of
from pipelines.plan.ranges import choose_ranges
from pipelines.scorer_identity import difficulty_section, memory_inputs, model_inputs, source_sections
from pipelines.tombstones import removed_from
from sharding import sources, tally
from sharding.beam.part_join import scored_documents
from sharding.errors import RequestError
from sharding.hashing import content_id
from sharding.models.tokenizer import TextTokenizer, UnencodableText, load_tokenizer
from sharding.records.types import Document, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

MAX_RANGE_DOCUMENTS = 2_000
"""Of a file that can't be entered in the middle only so many documents are looked at."""

SCAN_DOCUMENTS = 50_000
"""A scored part holds fewer documents than this, unless they are tiny; more aren't looked at."""

MEMORY_BYTES = 8 << 20
"""Of the text that was read so much is counted for the memory: some seconds."""

_SEGMENT_COLUMNS = ("surprisal_nats", "entropy_nats", "memory_nats", "difficulty_nats", "source")


def gather(config: MillConfig, sample_documents: int) -> Evidence:
    """The scored parts where they are of this config, otherwise a sample of the source.

    Raises:
        RequestError: the source is not there, or holds no document in the sample.
        MillError: it can't be read, or the scorer can't be loaded.
    """
    output = config.scored or config.output
    scored = manifest.read(output, "score")
    if scored is None:
        return _sample_source(config, sample_documents)
    if differ := _differences(config, scored):
        note = f"{output} holds scores that another config made ({', '.join(differ)}): the source was sampled instead"
        return _sample_source(config, sample_documents, (note,))
    return _read_scored(output, scored, sample_documents)


def _differences(config: MillConfig, scored: Manifest) -> list[str]:
    """The sections in which the scores were made otherwise; where the scorer's servers are doesn't matter."""
    sections: dict[str, Any] = {"tokenizer": config.tokenizer, "difficulty": difficulty_section(config.difficulty)}
    if config.scored is None:
        sections |= dict.fromkeys(("source", "sources")) | source_sections(config)
    differ = [key for name, section in sections.items() for key in _changed(name, scored.config.get(name), section)]
    tokenizer = {"tokenizer": load_tokenizer(config.tokenizer).fingerprint}
    inputs = tokenizer | model_inputs(config.difficulty) | memory_inputs(config.difficulty)
    return differ + [f"the {name} itself" for name, digest in inputs.items() if scored.inputs.get(name) != digest]


def _changed(name: str, before: Any, after: Any) -> list[str]:
    """The keys of a section that differ, or the section."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [f"{name}.{key}" for key in after if before.get(key) != after[key]]
    return [] if before == after else [name]


# --- scored parts -----------------------------------------------------------------------------------------------------


def _read_scored(output: str, scored: Manifest, wanted: int) -> Evidence:
    """Documents of a few parts, all of whose documents were there by the hash of their id."""
    urls = sorted(manifest.file_urls(output, scored, "segments"), key=content_id)
    found: list[SampledDocument] = []
    for group, url in enumerate(urls):
        if len(found) >= wanted:
            break
        for document in itertools.islice(scored_documents(url, _SEGMENT_COLUMNS), SCAN_DOCUMENTS):
            found.append(SampledDocument(tuple(document.segments()), 0, group))
    chosen = sorted(found, key=lambda document: content_id(document.segments[0].doc_id))[:wanted]
    return Evidence(
        scored=scored,
        sample=tuple(chosen),
        text_bytes=0.0,
        size=0.0,
        complete=len(chosen) == scored.counts["documents"],
        whole_groups=True,  # parts are filled by hash: any is as good as all
        scoring_tokens_per_second=scored.counts["source_tokens"] / max(scored.elapsed_s, 1e-3),
        notes=(),
    )


# --- a sample of the source -------------------------------------------------------------------------------------------


def _sample_source(config: MillConfig, wanted: int, notes: tuple[str, ...] = ()) -> Evidence:
    resolved, listings = zip(*(sources.resolve(source, identify=False) for source in config.all_sources), strict=True)
    ranges, every = choose_ranges(resolved, listings)
    is_removed = removed_from(config.delivery.of if config.delivery is not None else config.scored or config.output)
    documents: list[tuple[Document, int]] = []
    read_bytes = text_bytes = 0
    estimated = False
    for group, piece in enumerate(ranges):
        tally.add(pieces=1)
        records = list(itertools.islice(sources.read_documents(piece.unit, piece.source), MAX_RANGE_DOCUMENTS + 1))
        read = [record for record in records[:MAX_RANGE_DOCUMENTS] if isinstance(record, Document)]
        read = [document for document in read if not is_removed(document.doc_id)]  # as the score stage leaves them out
        if len(records) <= MAX_RANGE_DOCUMENTS:
            read_bytes += piece.size_bytes
            text_bytes += sum(len(document.text.encode("utf-8", "surrogatepass")) for document in read)
        else:
            every, estimated = False, True
        documents += [(document, group) for document in read]
    if not documents:
        raise RequestError(f"source: no document in {len(ranges)} pieces of the source that were looked at")
    if estimated or not read_bytes:
        whole_bytes = float(sum(sources.text_bytes(f, s.config) for s, f in zip(resolved, listings, strict=True)))
        notes = (*notes, "the size of the text is estimated from that of its files: it may be off by half")
    else:
        size_bytes = sum(file.size_bytes for files in listings for file in files)
        whole_bytes = text_bytes * size_bytes / read_bytes
    chosen, size = choose_pieces(documents, wanted, config.difficulty.segment_tokens)
    if config.difficulty.memory is not None and not every:
        notes = (
            *notes,
            "difficulty.memory is that of the documents that were looked at: the whole corpus knows more, and is less "
            "hard than its sample",
        )
    if config.duplicates == "drop":
        notes = (*notes, "duplicates: a sample can't tell how many will be dropped")
    if config.near_copies.action == "drop":
        notes = (*notes, "near_copies: a sample can't tell how many will be dropped")
    memory = _memory(config, load_tokenizer(config.tokenizer), [document for document, _ in documents])
    began = time.monotonic()
    scorer = make_scorer(config.difficulty)
    loaded = time.monotonic()
    sample = tuple(_score(config, chosen, scorer, memory))
    if not sample:
        raise RequestError("tokenizer: it can't spell any document of the sample")
    tokens = sum(len(segment.input_ids) for document in sample for segment in document.segments)
    return Evidence(
        scored=None,
        sample=sample,
        text_bytes=whole_bytes,
        size=size * whole_bytes / max(sum(len(d.text.encode("utf-8", "surrogatepass")) for d, _ in documents), 1),
        complete=every and wanted >= len(documents),
        whole_groups=every,
        scoring_tokens_per_second=tokens / max(time.monotonic() - loaded, 1e-3),
        scoring_start_s=loaded - began,
        notes=notes,
    )


def _memory(config: MillConfig, tokenizer: TextTokenizer, read: Sequence[Document]) -> NgramMemory | None:
    """The memory that an earlier run stored, or one of the documents that were read here, as far as time allows."""
    if config.difficulty.memory_path is not None:
        return NgramMemory.load(config.difficulty.memory_path, tokenizer)
    if config.difficulty.memory is None:
        return None
    counts, left_bytes = NgramCounts(config.difficulty.memory), MEMORY_BYTES
    with tally.at("counting n-grams"):
        for document in sorted(read, key=lambda document: content_id(f"memory {document.origin}")):
            left_bytes -= len(document.text)
            if left_bytes < 0:
                break
            if (ids := _encode(tokenizer, document)) is not None:
                counts.add(document.origin, ids)
    return NgramMemory.from_counts(counts, tokenizer.fingerprint)


def _score(
    config: MillConfig, chosen: Sequence[Piece], scorer: Scorer, memory: NgramMemory | None
) -> Iterator[SampledDocument]:
    from difficulty.scoring import score_segments

    earlier = EarlierScores(config)
    whole: dict[str, list[ScoredSegment]] = {}
    tokenizer = load_tokenizer(config.tokenizer)
    spelled = [(piece, ids) for piece in chosen if (ids := _encode(tokenizer, piece.document)) is not None]
    segments = score_segments(
        [(piece.document, ids) for piece, ids in spelled],
        tokenizer,
        scorer,
        config.difficulty,
        memory,
    )
    # Ids may repeat over sources, positions don't.
    for piece, ids in spelled:
        own: list[ScoredSegment] = []
        while sum(len(segment.input_ids) for segment in own) < len(ids):
            own.append(next(segments))
        counted = own[not piece.is_first : len(own) - (not piece.is_last)] or own
        tally.add(documents=1, segments=len(own), tokens=len(ids))
        if piece.is_first and piece.is_last:
            whole.setdefault(piece.document.doc_id, own)
        if counted:
            text_bytes = len(tokenizer.decode_bytes(np.concatenate([segment.input_ids for segment in counted])))
            size = size_of(text_bytes, config.difficulty.segment_tokens)
            yield SampledDocument(
                segments=tuple(counted),
                text_bytes=text_bytes,
                group=piece.group,
                size=size,
                weight=piece.size / size / piece.chance,
                chance=piece.chance,
                share=text_bytes / piece.document_bytes,
            )
    earlier.keep(segment for doc_id in sorted(whole) for segment in whole[doc_id])


def _encode(tokenizer: TextTokenizer, document: Document) -> np.ndarray | None:
    try:
        return tokenizer.encode(document.text)
    except UnencodableText:
        return None
