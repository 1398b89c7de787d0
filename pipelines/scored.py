"""What the score stage says of its sources, and what it makes of them besides scores; beside the stage's chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import msgspec

from difficulty.transforms import CountNgrams
from pipelines.config import MillConfig
from pipelines.delivered import earlier_digest
from pipelines.scorer_identity import difficulty_section, memory_inputs, model_inputs, source_sections
from pipelines.tombstones import removed_inputs
from sharding import sources, storage
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import NearCopy, ScoredDocument
from sharding.sources.shares import SourceTally, check_scored
from sharding.storage.json_files import MAX_BYTES, read_json
from sharding.storage.manifest import Manifest

BYTES_PER_TOKEN = 4
"""Of text, about; decides only where the sampling of a large corpus's n-grams begins."""


def score_sections(config: MillConfig) -> dict[str, Any]:
    """The parts of the config that decide the scores."""
    difficulty = difficulty_section(config.difficulty)
    return {**source_sections(config), "tokenizer": config.tokenizer, "difficulty": difficulty}


def score_inputs(config: MillConfig, listings: Sequence[Sequence[sources.SourceFile]], corpus: str) -> dict[str, str]:
    """What is scored, and by what, by content.

    Args:
        corpus: the output that says who was taken down.
    """
    delivery = config.delivery
    return {
        "source": sources.listing_digest(listings),
        "tokenizer": load_tokenizer(config.tokenizer).fingerprint,
        **model_inputs(config.difficulty),
        **memory_inputs(config.difficulty),
        **removed_inputs(corpus),
        **({} if delivery is None else {"delivered": earlier_digest(delivery.of)}),
    }


def memory_of(config: MillConfig, url: str, size_bytes: int) -> beam.PTransform:
    """Documents → a singleton of the n-gram memory's URL, once the memory is there; "" for none.

    Args:
        url: where it is, or is to be.
        size_bytes: of the sources, as text.
    """
    if config.difficulty.memory is None:
        return beam.ptransform_fn(lambda documents: documents.pipeline | beam.Create([url]))()
    return CountNgrams(config.difficulty.memory, config.tokenizer, url, corpus_tokens=size_bytes / BYTES_PER_TOKEN)


def near_copies(document: ScoredDocument) -> Iterator[NearCopy]:
    """Which cluster a document belongs to, where it has near-copies."""
    if document.cluster:
        yield NearCopy(doc_id=document.doc_id, cluster=document.cluster)


def check_shares(read: Sequence[sources.Source], made: Manifest, quarantine: str) -> None:
    """Refuse a result of whose sources too much came to nothing; what was taken down was no loss.

    Args:
        read: the sources.
        made: the manifest.
        quarantine: where the others are, for the message.

    Raises:
        MillError: more of a source went to quarantine than it allows.
    """
    if "sources" not in made.facts:  # an earlier version scored it
        return
    counts = dict(made.counts)
    for name in (source.config.name for source in read):
        removed = counts.get(f"removed.{name}", 0)
        counts[f"source.{name}.documents"] = counts.get(f"source.{name}.documents", 0) + removed
    check_scored(read, msgspec.convert(made.facts["sources"], list[SourceTally]), counts, quarantine)


def growth_since(
    found: Manifest,
    sections: Mapping[str, Any],
    inputs: Mapping[str, str],
    listed_url: str,
    read: Sequence[sources.Source],
    listings: Sequence[Sequence[sources.SourceFile]],
) -> sources.Growth | None:
    """See `pipelines.stage.Stage.growth`.

    Args:
        found: the manifest of then.
        sections, inputs: of now.
        listed_url: where the sources are told as they were then.
        read, listings: the sources, and their files of now.
    """
    before, now = (_without_source(one) for one in (found.inputs, inputs))
    if before != now or not _sources_follow(found.config, sections) or not storage.exists(listed_url):
        return None
    listed = read_json(listed_url, sources.Listed, "a listing of sources", MAX_BYTES)
    return sources.growth_of(listed, read, listings) if listed.digest == found.inputs["source"] else None


def _without_source(inputs: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in inputs.items() if name != "source"}


def _sources_follow(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the sections of a config are those of then, but for sources that follow behind the others."""
    several = before.get("sources")
    if several is not None and now.get("sources") is not None:
        now = {**now, "sources": now["sources"][: len(several)]}
    return dict(before) == dict(now)
