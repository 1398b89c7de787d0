"""Provenance: where every document came from, and what made every thought, in Parquet files that a lawyer can read.

    stages/score/segments-* ─► provenance/documents-*.parquet   one row a document
    stages/select/kept-* ────► provenance/thoughts-*.parquet    one row a thought
    manifests ───────────────► generator, prompt, what measured the gain; PROVENANCE.json: files, and of which corpus

Of a corpus with another trace each epoch also those of `stages/select/rejected-*` that a later one shows, and which do.

A file for each part, in its order, from the parts and the manifests alone: the same bytes whenever it is made. It is
made by a command after a run and is no stage's: a corpus that was packed without it gets it without being packed again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.delivered import Corpus, corpora
from pipelines.epochs import EPOCHS, shown_parts
from pipelines.secrets import published
from sharding import storage
from sharding.records.families import SEGMENTS
from sharding.records.types import FileEntry
from sharding.storage import manifest
from sharding.storage.arrow_files import file_buffer, read_batches
from sharding.storage.hashed_file import publish_hashed
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

FORMAT = 1
_MAX_BYTES = 1 << 30
_MADE_FROM = ("score", "augment", "select")
_OURS = re.compile(r"(?:documents|thoughts)-\d{5,9}-of-\d{5,9}\.parquet")
_READ_AT_A_TIME = 2
"""Parts in memory at the same time."""

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_path", pa.string()),
        pa.field("url", pa.string()),
        pa.field("license", pa.string()),
        pa.field("carried", pa.string()),
        pa.field("segments", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)
"""`source` and `source_path` are the source's name and path in the config; `carried` its carried columns as JSON, of
which `url` and `license` are two where they are there; `tokens` those of the training tokenizer."""

_OF_KEPT = ("doc_id", "segment_index", "sample", "key", "tier", "model", "prompt", "closed", "thought_tokens")
_GAINS = ("value", "gain_nats", "control_nats", "heldout_nats")

THOUGHTS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("doc_id", "key", "tier", "model")),
        *(pa.field(name, pa.string()) for name in ("generator", "revision", "engine")),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string()),
        pa.field("closed", pa.string(), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("segment_index", "sample", "thought_tokens")),
        *(pa.field(name, pa.float64()) for name in _GAINS),
        *(pa.field(name, pa.string()) for name in ("valued_by", "scorer")),
        EPOCHS,
    ]
)
"""`key` is the ledger's; `model` the config's name of the generator, `generator` and `revision` what it is; the version
of a prompt is a digest of its text; `value` and the nats are those of `sharding.records.types.Candidate`, `valued_by`
what computed the value, `scorer` the model that was asked; `epochs` are those of `pack.trace_per_epoch` that show it,
0 alone where there is one."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """PROVENANCE.json: the files, and the corpus that they are of, by the digests of its stages."""

    format: int
    of: dict[str, str]
    files: list[FileEntry]


def write(output: storage.Location) -> Provenance:
    """Write the provenance of a finished corpus into it; what was there is replaced.

    Raises:
        RequestError: a folder of the output is a link.
        MillError: a stage hasn't finished, a part is not what its manifest says, or the store refused.
    """
    output = os.fspath(output)
    at = Output(output)
    for stage in manifest.STAGES:
        manifest.require(output, stage)
    parts = list(corpora(output))
    at.check_links()
    storage.remove(at.provenance_manifest, at.root)
    for name in filter(_OURS.fullmatch, storage.list_names(at.provenance)):
        storage.remove(storage.join(at.provenance, name), at.root)
    jobs = [
        (f"{name}-{number:05d}-of-{len(found):05d}.parquet", batches, schema, table_of)
        for name, found, schema in (
            ("documents", _parts_of_documents(parts), DOCUMENTS),
            ("thoughts", _parts_of_thoughts(parts), THOUGHTS),
        )
        for number, (batches, table_of) in enumerate(found)
    ]

    def make(job: tuple[str, _Batches, pa.Schema, _TableOf]) -> FileEntry:
        name, batches, schema, table_of = job
        rows = 0
        with (
            publish_hashed(storage.join(at.provenance, name), name) as out,
            pq.ParquetWriter(pa.PythonFile(out, mode="w"), schema, compression="zstd") as writer,
        ):
            for batch in _whole_documents(batches()):
                table = table_of(batch)
                writer.write_table(table)
                rows += table.num_rows
        return out.entry(rows=rows, tokens={})

    with ThreadPoolExecutor(_READ_AT_A_TIME) as pool:
        files = list(pool.map(make, jobs))
    made = Provenance(format=FORMAT, of=_digests(parts), files=files)
    storage.write_json(at.provenance_manifest, msgspec.to_builtins(made))
    return made


def problems(output: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the provenance of an output, as (where, what); nothing where there is none.

    Raises:
        MillError: a stage hasn't finished, or the store refused.
    """
    at = Output(output)
    if not storage.exists(at.provenance_manifest):
        return
    try:
        found = msgspec.json.decode(storage.read_bytes(at.provenance_manifest, _MAX_BYTES), type=Provenance)
    except (msgspec.DecodeError, ValueError) as error:
        yield at.provenance_manifest, f"can't be read: {error}"
        return
    if found.format != FORMAT or found.of != _digests(list(corpora(output))):
        said = "is of another result or version than those that are here: `thoughtmill provenance` makes it anew"
        yield at.provenance_manifest, said
    for entry in found.files:
        url = storage.join(at.provenance, entry.name)
        if not storage.exists(url):
            yield url, "is missing"
            continue
        buffer = file_buffer(url)
        if buffer.size != entry.size_bytes or hashlib.sha256(buffer).hexdigest() != entry.sha256:
            yield url, "its bytes are not those of PROVENANCE.json"
    known = {entry.name for entry in found.files} | {"PROVENANCE.json"}
    for name in sorted(set(storage.list_names(at.provenance)) - known):
        yield storage.join(at.provenance, name), "PROVENANCE.json doesn't name it"


def _digests(parts: Sequence[Corpus]) -> dict[str, str]:
    """Of the stages that it is made from; those of later deliveries by their number. Of several epochs, how many."""
    epochs = _epochs(parts[0])
    return {
        f"delivery {part.number} {stage}" if part.number else stage: manifest.digest(part.stages[stage])
        for part in parts
        for stage in _MADE_FROM
    } | ({"epochs": str(epochs)} if epochs > 1 else {})


def _epochs(part: Corpus) -> int:
    return int(part.stages["pack"].config.get("pack", {}).get("trace_per_epoch", 1))


_Batches = Callable[[], Iterator[pa.RecordBatch]]
"""The rows of a part, read when they are wanted."""

_TableOf = Callable[[pa.RecordBatch], pa.Table]


def _parts_of_documents(parts: Sequence[Corpus]) -> list[tuple[_Batches, _TableOf]]:
    """The rows of each scored part, and what makes a table of them."""
    return [
        (partial(read_batches, url, _SEGMENT_COLUMNS, kind=SEGMENTS.kind), table_of)
        for part in parts
        for table_of in [_documents(published(part.stages["score"]))]
        for url in manifest.file_urls(part.output, part.stages["score"], SEGMENTS.name)
    ]


def _parts_of_thoughts(parts: Sequence[Corpus]) -> list[tuple[_Batches, _TableOf]]:
    """The same of the parts of thoughts that are shown."""
    return [
        (batches, table_of)
        for part in parts
        for table_of in [_thoughts(published(part.stages["augment"]), published(part.stages["select"]))]
        for batches in shown_parts(part.output, part.stages["select"], _epochs(part), (*_OF_KEPT, *_GAINS))
    ]


_SEGMENT_COLUMNS = ("doc_id", "segment_index", "input_ids", "metadata", "source")


def _whole_documents(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of a part in pieces of whole documents, so that a document's segments are counted together."""
    pending: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch] if pending is None else [*pending.to_batches(), batch])
        if not table.num_rows:
            continue
        ids = table.column("doc_id")
        first = pc.index(ids, ids[-1]).as_py()
        if first:
            yield table.slice(0, first).combine_chunks().to_batches()[0]
        pending = table.slice(first)
    if pending is not None and pending.num_rows:
        yield pending.combine_chunks().to_batches()[0]


def _documents(scored: Manifest) -> Callable[[pa.RecordBatch], pa.Table]:
    """Makes rows of `DOCUMENTS` from segments."""
    sources = scored.config.get("sources") or [scored.config.get("source") or {}]
    paths = {source.get("name") or "": source.get("path") for source in sources}
    # Where there is but one source, its documents name none.
    paths.setdefault("", sources[0].get("path") if len(sources) == 1 else None)

    def table_of(segments: pa.RecordBatch) -> pa.Table:
        table = pa.table(
            {
                "doc_id": segments.column("doc_id"),
                "source": segments.column("source"),
                "carried": segments.column("metadata"),
                "tokens": pc.cast(pc.list_value_length(segments.column("input_ids")), pa.int64()),
            }
        )
        grouped = table.group_by("doc_id", use_threads=False).aggregate(
            [("source", "first"), ("carried", "max"), ("tokens", "sum"), ("tokens", "count")]
        )
        carried = [_carried(text) for text in grouped.column("carried_max").to_pylist()]
        columns = {
            "doc_id": grouped.column("doc_id"),
            "source": grouped.column("source_first"),
            "source_path": pa.array(
                [paths.get(name) for name in grouped.column("source_first").to_pylist()], pa.string()
            ),
            "url": pa.array([found.get("url") for found in carried], pa.string()),
            "license": pa.array([found.get("license") for found in carried], pa.string()),
            "carried": grouped.column("carried_max"),
            "segments": pc.cast(grouped.column("tokens_count"), pa.int32()),
            "tokens": grouped.column("tokens_sum"),
        }
        return pa.table(columns, schema=DOCUMENTS)

    return table_of


def _carried(text: str | None) -> dict[str, str]:
    """The carried columns that are texts."""
    found = msgspec.json.decode(text) if text else {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _thoughts(augmented: Manifest, selected: Manifest) -> Callable[[pa.RecordBatch], pa.Table]:
    """Makes rows of `THOUGHTS` from candidates that are shown; without `EPOCHS`, in the only epoch."""
    models, prompts = augmented.facts["models"], augmented.facts["prompts"]
    value = selected.facts.get("value", "none")
    difficulty = selected.config.get("scorer") or {}
    asked = " ".join(filter(None, [difficulty.get("scorer"), difficulty.get("model"), difficulty.get("revision")]))
    scorer = " ".join(filter(None, [asked, selected.inputs.get("scorer")])) or None

    def table_of(kept: pa.RecordBatch) -> pa.Table:
        names, valued = kept.column("model").to_pylist(), kept.column("value").is_valid().to_pylist()
        measured = kept.column("gain_nats").is_valid().to_pylist()
        columns = {name: kept.column(name) for name in (*_OF_KEPT, *_GAINS)}
        columns |= {
            column: pa.array([(models.get(name) or {}).get(of) for name in names], pa.string())
            for column, of in (("generator", "name"), ("revision", "revision"), ("engine", "engine"))
        }
        columns["prompt_version"] = pa.array(
            [prompts.get(name) for name in kept.column("prompt").to_pylist()], pa.string()
        )
        columns["valued_by"] = pa.array([value if is_valued else None for is_valued in valued], pa.string())
        columns["scorer"] = pa.array([scorer if is_measured else None for is_measured in measured], pa.string())
        is_shown = EPOCHS.name in kept.schema.names
        columns[EPOCHS.name] = kept.column(EPOCHS.name) if is_shown else pa.array([[0]] * len(names), EPOCHS.type)
        return pa.table(columns).select(THOUGHTS.names).cast(THOUGHTS)

    return table_of
