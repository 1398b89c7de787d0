"""The index of passages, made before the augment stage by a pipeline of its own, where tiers show passages.

scored parts ─► passages ─► shards of the index ─► stages/retrieval/passages-*.zip, or a server, then index.json

A shard is made of whole scored parts, so nothing is shuffled, and one that is there is not made again: a build that was
killed goes on with what is left. `index.json` comes last. Where a search server keeps the index, shards are put into
that, what is told of each lies where it would lie otherwise, and the server's own mark comes before `index.json`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from augment.contexts.passage_index import Shard, StoredIndex, build_shard, read_index
from augment.contexts.passages import Passage, passages_of
from augment.contexts.server_building import ServerIndex, put_passages
from augment.requests.tiers import IndexRequest
from pipelines.beam_options import local_shuffle
from pipelines.config import MillConfig
from pipelines.joints import searched_output
from pipelines.outcome import WriteOutcome, take_outcome
from pipelines.running import run_pipeline
from sharding import storage
from sharding.beam.part_join import PartGroup, Parts, groups_of, joined_documents
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import SEGMENTS
from sharding.search.client import SearchClient
from sharding.search.config import SearchServerConfig
from sharding.storage import manifest
from sharding.storage.json_files import read_json
from sharding.storage.output import Output

SEGMENTS_PER_SHARD = 200_000
"""At least, but for the last shard: in a small one the rarity of a word is left to chance."""


SEGMENTS_PER_UPLOAD = 20_000
"""The same where a server keeps the index, which knows of no shards of ours: what a kill costs at most."""


class PutThere(msgspec.Struct, frozen=True):
    """What is told of a shard that was put into a server: how many passages it has."""

    passages: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class _Work:
    """A shard that is to be made.

    Attributes:
        url: of its file, or of the one that it would have.
        told: of what is said of it, which is there when it is.
        groups: the scored parts that it is made of.
        tokenizer: that spells them.
        server, index: that keeps it, and the name of the index there; None: it becomes a file.
    """

    url: str
    told: str
    groups: tuple[PartGroup, ...]
    tokenizer: str
    server: SearchServerConfig | None = None
    index: str = ""


def build_index(config: MillConfig, wanted: IndexRequest, options: PipelineOptions) -> StoredIndex:
    """The index of a run: as it is where it was made, or by a pipeline over the scored parts of its corpus.

    Raises:
        MillError: the pipeline failed, tantivy isn't installed, or the server can't keep it.
    """
    if wanted.server is not None:
        return _build_in_server(config, wanted, wanted.server, options)
    found = read_index(wanted.url)
    if found is not None and found.digest == wanted.digest:
        return found
    at = Output(config.output)
    works = _works(config, wanted.digest, SEGMENTS_PER_SHARD)
    _make(config, works, options)
    made = [read_json(work.told, Shard, "a shard of an index") for work in works]
    stored = StoredIndex(wanted.digest, [shard for shard in made if shard.passages])
    storage.write_json(wanted.url, msgspec.to_builtins(stored))
    _sweep(at, {wanted.url, *(work.url for work in works)})
    return stored


def _build_in_server(
    config: MillConfig, wanted: IndexRequest, server: SearchServerConfig, options: PipelineOptions
) -> StoredIndex:
    """The same where a server keeps it: another run may have put it there, or this one, whose files are gone."""
    at = Output(config.output)
    with SearchClient(server) as client:
        index = ServerIndex(client, server, wanted.digest)
        if index.begin():
            _sweep(at, set())  # what was told of shards was told of an index that is gone
        whole = index.whole()
        if whole is None:
            works = _works(config, index.name.rpartition("-")[2], SEGMENTS_PER_UPLOAD)
            _make(config, [replace(work, server=server, index=index.name) for work in works], options)
            put = [read_json(work.told, PutThere, "a shard in a search server") for work in works]
            whole = index.finish(sum(shard.passages for shard in put))
    stored = StoredIndex(wanted.digest, [], whole)
    if read_index(wanted.url) != stored:
        storage.write_json(wanted.url, msgspec.to_builtins(stored))
    _sweep(at, {wanted.url})
    return stored


def _make(config: MillConfig, works: Sequence[_Work], options: PipelineOptions) -> None:
    """Make what is not there of the shards, and hold what is indexed against what was scored."""
    at = Output(config.output)
    _sweep(at, {name for work in works for name in (work.url, work.told)})
    url = at.outcome("retrieval", secrets.token_hex(8))
    with local_shuffle(options, at.shuffle("retrieval")):
        pipeline = beam.Pipeline(options=options)
        shards = pipeline | "Shards" >> beam.Create(works, reshuffle=False) | "To workers" >> beam.Reshuffle()
        pipeline | "Outcome" >> WriteOutcome(url, {}, (shards | "Build" >> beam.FlatMap(_build),), {})
        run_pipeline(pipeline, "retrieval")
    counts = take_outcome(url).counts
    searched = searched_output(config)
    scored = manifest.require(searched, "score")
    if not counts.get("shards_found") and counts["documents"] != scored.counts["documents"]:
        raise MillError(
            f"retrieval: {counts['documents']:,} documents were indexed, and {scored.counts['documents']:,} were "
            f"scored: run `thoughtmill verify` on {searched}"
        )


def _works(config: MillConfig, digest: str, segments: int) -> list[_Work]:
    """The shards of an index, of at least so many segments each but for the last."""
    at, searched = Output(config.output), searched_output(config)
    scored = manifest.require(searched, "score")
    groups = groups_of(Parts.of(searched, scored, SEGMENTS, ("input_ids",)))
    rows = {
        url: entry.rows
        for url, entry in zip(
            manifest.file_urls(searched, scored, SEGMENTS.name), scored.files[SEGMENTS.name], strict=True
        )
    }
    shards: list[list[PartGroup]] = [[]]
    size = 0
    for group in groups:
        if size >= segments:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += sum(rows[url] for url in group.scored.urls)
    works = []
    for number, own in enumerate(shards):
        url = storage.join(at.retrieval, f"passages-{number:05d}-of-{len(shards):05d}-{digest[:16]}.zip")
        works.append(_Work(url, f"{url}.json", tuple(own), scored.config["tokenizer"]))
    return works


def _sweep(at: Output, keep: set[str]) -> None:
    """Remove what an earlier index has left."""
    storage.sweep(at.retrieval)
    for name in storage.list_names(at.retrieval):
        if (url := storage.join(at.retrieval, name)) not in keep:
            storage.remove(url, at.root)


def _build(work: _Work) -> Iterator[dict[str, int]]:
    """Make a shard unless it is there; what it adds to the counts."""
    if storage.exists(work.told):
        yield {"shards_found": 1}
        return
    tokenizer = load_tokenizer(work.tokenizer)
    documents = 0

    def passages() -> Iterator[Passage]:
        nonlocal documents
        for group in work.groups:
            for document in joined_documents(group):
                documents += 1
                yield from passages_of(document.scored.doc_id, tokenizer.decode(document.scored.input_ids))

    made: Shard | PutThere
    if work.server is None:
        made = build_shard(work.url, passages())
    else:
        made = PutThere(put_passages(work.server, work.index, passages()))
    storage.write_json(work.told, msgspec.to_builtins(made))
    yield {"documents": documents, "passages": made.passages}
