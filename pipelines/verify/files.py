"""One file of any stage: its bytes, schema, rows, token ids, and what it adds to the stage's counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.verify.places import Places, check_index_batch
from pipelines.verify.report import Problem, at, shortened
from pipelines.verify.task import Task
from sharding.errors import MillError
from sharding.records.families import DOCUMENTS, FAMILIES
from sharding.storage.arrow_files import checked_batches, file_buffer, open_stream


@dataclass
class Found:
    """What checking a file found.

    Attributes:
        problems: what is wrong.
        readable: its bytes and its schema are what they should be, so that its content can be compared.
        counts: what it adds to the counts of its stage, by their names.
        places: name of a shard → where the items in it are, by this file: the shard itself, or a part of the index.
    """

    problems: list[Problem] = field(default_factory=list)
    readable: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, Places] = field(default_factory=dict)


READ_ERRORS = (MillError, pa.ArrowException, OSError, ValueError)
"""What reading a damaged file may raise."""

COLUMNS: dict[str, tuple[str, ...] | None] = {
    "segments": ("doc_id", "segment_index", "token_start", "input_ids", "source"),
    "requests": ("tier", "samples"),
    "kept": ("input_ids", "thought_tokens", "kept", "reasons"),
    "rejected": ("input_ids", "thought_tokens", "kept", "reasons"),
    "quarantine": ("reason",),
    "contaminated": ("source_tokens",),
    "documents": None,
    "near_copies": ("cluster",),
}
"""What is read of the parts of a family, None: all; the rest is covered by the hash of the file."""


def verified_buffer(task: Task) -> tuple[pa.Buffer | None, list[Problem]]:
    """The bytes of the file, or what is wrong with them or its columns.

    A file in an object store is fetched once, for all checks.
    """
    url, entry = task.url, task.entry
    buffer = file_buffer(url)
    if buffer.size != entry.size_bytes:
        return None, [Problem(url, f"{buffer.size} bytes, its manifest says {entry.size_bytes}")]
    sha256 = hashlib.sha256(buffer).hexdigest()
    if sha256 != entry.sha256:
        said = f"(sha256 {sha256[:12]}..., not {entry.sha256[:12]}...)"
        return None, [Problem(url, f"its bytes are not those of its manifest {said}")]
    with open_stream(buffer) as reader:
        problems = check_schema(task, reader.schema)
    return (None, problems) if problems else (buffer, [])


def check_schema(task: Task, found: pa.Schema) -> list[Problem]:
    """What is wrong with the columns of a file."""
    expected = expected_schema(task)
    problems = []
    for name in dict.fromkeys([*expected.names, *found.names]):
        if found.names.count(name) > 1:
            problems.append(Problem(task.url, f"column {shortened(name)} is there {found.names.count(name)} times"))
        elif name not in found.names:
            problems.append(Problem(task.url, f"column {name} is missing"))
        elif name not in expected.names:
            problems.append(Problem(task.url, f"column {name} of type {found.field(name).type} is not known"))
        elif (is_now := _spelled(found.field(name))) != (should_be := _spelled(expected.field(name))):
            problems.append(Problem(task.url, f"column {name} is {is_now}, not {should_be}"))
    return problems


def _spelled(column: pa.Field) -> str:
    # Arrow's stream reader forgets whether the values of a fixed-size list may be null.
    return str(column.type).replace(" not null", "") + ("" if column.nullable else " not null")


def expected_schema(task: Task) -> pa.Schema:
    """The schema of the files of a family."""
    pack = task.stage.config.get("pack", {})
    return FAMILIES[task.family].schema(
        vocab_size=task.vocab_size,
        sequence_length=pack.get("sequence_length"),
        with_loss_mask=pack.get("loss_mask", "all") != "all",
        with_surprisal=bool(pack.get("surprisal", False)),
    )


def check_part(task: Task) -> Found:
    """Check a file of any stage but pack."""
    buffer, problems = verified_buffer(task)
    if buffer is None:
        return Found(problems)
    found = Found(readable=True)
    num_rows = next_start = 0
    for batch in checked_batches(buffer, COLUMNS[task.family], kind=FAMILIES[task.family].kind):
        found.problems += _check_ids(task, batch, num_rows)
        if task.family == "segments" and batch.num_rows:
            starts = batch.column("token_start").to_numpy()
            expected = np.append(next_start, starts + batch.column("input_ids").value_lengths().to_numpy())
            next_start = int(expected[-1])
            wrong = np.flatnonzero(starts != np.where(batch.column("segment_index").to_numpy(), expected[:-1], 0))
            for row in wrong[:1].tolist():
                where = at(task.url, num_rows + row, batch.column("doc_id")[row].as_py())
                found.problems.append(Problem(where, f"token_start {starts[row]} is not behind the segment before"))
        if task.family == DOCUMENTS.name:
            found.problems += check_index_batch(task, batch, num_rows, found.places)
        found.counts.update(_counts(task, batch))
        num_rows += batch.num_rows
    if num_rows != task.entry.rows:
        found.problems.append(Problem(task.url, f"{num_rows} rows, its manifest says {task.entry.rows}"))
    if misplaced := found.counts.pop("misplaced", 0):
        found.problems.append(Problem(task.url, f"{misplaced} candidates do not belong among the {task.family}"))
    return found


def _check_ids(task: Task, batch: pa.RecordBatch, first_row: int) -> Iterator[Problem]:
    if "input_ids" not in batch.schema.names:
        return
    ids = batch.column("input_ids")
    largest = pc.max(ids.flatten()).as_py()
    if largest is not None and largest >= task.vocab_size:
        of = f"the vocabulary size {task.vocab_size}"
        row = next(i for i in range(batch.num_rows) if (pc.max(ids[i].values).as_py() or 0) >= task.vocab_size)
        yield Problem(at(task.url, first_row + row), f"token id {largest} is not below {of}")


def _counts_by_source(batch: pa.RecordBatch) -> Counter[str]:
    """Documents and tokens of each source; a source without a name is the only one, and not counted by itself."""
    table = pa.table(
        {
            "source": batch.column("source"),
            "documents": pc.cast(pc.equal(batch.column("segment_index"), 0), pa.int64()),
            "tokens": pc.list_value_length(batch.column("input_ids")),
        }
    )
    summed = table.group_by("source").aggregate([("documents", "sum"), ("tokens", "sum")])
    counts: Counter[str] = Counter()
    for row in summed.to_pylist():
        for name in ("documents", "tokens"):
            counts[f"source.{row['source']}.{name}"] = row[f"{name}_sum"] if row["source"] else 0
    return +counts


def _counts(task: Task, batch: pa.RecordBatch) -> Counter[str]:
    """What a batch adds to the counts of its stage's manifest."""
    family = task.family
    counts: Counter[str] = Counter()
    if family == "segments":
        counts["documents"] = int(pc.sum(pc.equal(batch.column("segment_index"), 0)).as_py() or 0)
        counts["segments"] = batch.num_rows
        counts["source_tokens"] = len(batch.column("input_ids").flatten())
        counts += _counts_by_source(batch)
    elif family == "requests":
        table = pa.Table.from_batches([batch]).group_by("tier").aggregate([("samples", "sum"), ("samples", "count")])
        for tier in table.to_pylist():
            counts["requests"] += tier["samples_count"]
            counts[f"tier.{tier['tier']}.requests"] += tier["samples_count"]
            counts[f"tier.{tier['tier']}.samples"] += tier["samples_sum"]
    elif family in ("kept", "rejected"):
        kept = batch.column("kept")
        tokens = int(pc.sum(batch.column("thought_tokens")).as_py() or 0)
        counts[family] = batch.num_rows
        counts["thought_tokens"] = tokens
        counts["kept_thought_tokens"] = tokens if family == "kept" else 0
        reasons = batch.column("reasons").to_pylist()
        counts.update(f"rejected.{why[0]}" for why in reasons if why)
        wanted = family == "kept"
        counts["misplaced"] = sum(
            is_kept != wanted or bool(why) == wanted for is_kept, why in zip(kept.to_pylist(), reasons, strict=True)
        )
    elif family == "quarantine" and task.stage.stage == "score":
        for reason in batch.column("reason").value_counts().to_pylist():
            counts["quarantined"] += reason["counts"]
            counts[f"quarantined.{reason['values']}"] += reason["counts"]
    elif family == "contaminated":
        counts["documents_contaminated"] = batch.num_rows
        counts["source_tokens_contaminated"] = int(pc.sum(batch.column("source_tokens")).as_py() or 0)
    return counts
