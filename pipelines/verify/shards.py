"""One shard: whether its rows are what a trainer relies on, and which documents it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.verify.files import Found, verified_buffer
from pipelines.verify.places import Places
from pipelines.verify.report import Problem, at, limited
from pipelines.verify.splits import SeenDocuments, seen_records
from pipelines.verify.task import Task
from sharding.records.rows import MaskedRow, TokenType
from sharding.shards.rows import LossMask, item_starts, loss_mask
from sharding.storage.arrow_files import checked_batches

HELD_BATCHES = 1 << 10
"""Documents are set aside so many record batches at a time, or the files of 512 buckets would be opened for each."""


@dataclass(frozen=True)
class Batch:
    """The columns of a record batch as arrays.

    Attributes:
        input_ids, token_type: (num_rows, sequence_length).
        lengths: (num_items,) tokens of the items of all rows.
        row_of_item: (num_items,) row within the batch.
        doc_ids, source_starts: of each item.
        is_token: (num_rows, sequence_length) bool, False behind the last item of a row.
        loss_mask: (num_rows, sequence_length) bool, where the shard has such a column.
    """

    input_ids: np.ndarray
    token_type: np.ndarray
    lengths: np.ndarray
    row_of_item: np.ndarray
    doc_ids: list[str]
    source_starts: np.ndarray
    is_token: np.ndarray
    loss_mask: np.ndarray | None

    def doc_at(self, row: int, place: int) -> str | None:
        """The document that a token belongs to; None of padding."""
        members = np.flatnonzero(self.row_of_item == row)
        behind = members[np.cumsum(self.lengths[members]) > place]
        return self.doc_ids[behind[0]] if len(behind) else None

    def places(self, keys: np.ndarray, first_row: int) -> Places:
        """Where the items are; `keys` are those of their documents, and the batch begins with row `first_row`."""
        starts = item_starts(self.lengths, np.bincount(self.row_of_item, minlength=len(self.input_ids)))
        return Places.of(keys, self.source_starts, self.row_of_item + first_row, starts, self.lengths)

    def unlabelled_rows(self, policy: LossMask) -> int:
        """Rows with tokens in which none counts, as `sharding.shards.dataset` gives labels."""
        counted = loss_mask(self.token_type, policy)
        items_per_row = np.bincount(self.row_of_item, minlength=len(counted))
        counted[self.row_of_item, item_starts(self.lengths, items_per_row)] = False
        return int((~counted.any(axis=1) & (items_per_row > 0)).sum())


def check_shard(task: Task, split: int, seen: SeenDocuments) -> Found:
    """Check a shard and set aside what it holds.

    Args:
        task: the file.
        split: number of the split it belongs to.
        seen: takes its documents.
    """
    buffer, problems = verified_buffer(task)
    if buffer is None:
        return Found(problems)
    found = Found(readable=True)
    totals = np.zeros(len(TokenType), np.int64)
    num_rows = padding_rows = unlabelled = 0
    problems = []
    held: list[np.ndarray] = []
    places = Places()
    for arrow in checked_batches(buffer, kind=MaskedRow):
        batch, wrong = open_batch(task.url, arrow, num_rows)
        problems += wrong
        if batch is None:
            found.readable = False
            break
        wrong = list(check_batch(task, batch, num_rows))
        problems += wrong
        totals += np.bincount(batch.token_type.ravel(), minlength=256)[: len(TokenType)]
        unlabelled += batch.unlabelled_rows(task.stage.config["pack"]["loss_mask"])
        padding_rows += int((~batch.is_token.any(axis=1)).sum())
        found.counts["items"] += len(batch.lengths)
        held.append(seen_records(batch.doc_ids, split))
        places += batch.places(held[-1]["key"], num_rows)
        if len(held) == HELD_BATCHES:
            seen.add(held)
            held = []
        num_rows += arrow.num_rows
    seen.add(held)
    found.problems += limited(problems, task.url)
    if not found.readable:
        return found
    counted = {kind.name.lower(): int(totals[kind]) for kind in TokenType}
    if num_rows != task.entry.rows:
        found.problems.append(Problem(task.url, f"{num_rows} rows, its manifest says {task.entry.rows}"))
    if counted != task.entry.tokens:
        found.problems.append(Problem(task.url, f"holds tokens {counted}, its manifest says {task.entry.tokens}"))
    for what, number, said in (
        ("rows of padding", padding_rows, task.entry.padding_rows),
        ("rows without a label", unlabelled, task.entry.unlabelled_rows),
    ):
        if number != said:
            found.problems.append(Problem(task.url, f"{number} {what}, its manifest says {said}"))
    found.places[task.entry.name] = places
    found.counts["rows"] = num_rows
    found.counts["rows_without_labels"] = unlabelled
    for name, number in counted.items():
        found.counts[f"tokens_{name}"] = number
    return found


def open_batch(url: str, arrow: pa.RecordBatch, first_row: int) -> tuple[Batch | None, list[Problem]]:
    """The arrays of a record batch, or why its columns don't go together."""
    items_per_row = arrow.column("seq_lengths").value_lengths().to_numpy()
    for name in ("doc_ids", "source_starts"):
        others = arrow.column(name).value_lengths().to_numpy()
        if not np.array_equal(others, items_per_row):
            row = int(np.argmax(others != items_per_row))
            said = f"{others[row]} {name} for {items_per_row[row]} seq_lengths"
            return None, [Problem(at(url, first_row + row), said)]
    lengths = arrow.column("seq_lengths").flatten().to_numpy()
    row_of_item = np.repeat(np.arange(arrow.num_rows), items_per_row)
    ids, types = arrow.column("input_ids"), arrow.column("token_type")
    length = ids.type.list_size
    tokens_per_row = np.bincount(row_of_item, weights=lengths, minlength=arrow.num_rows).astype(np.int64)
    wrong = np.flatnonzero((tokens_per_row > length) | (np.bincount(row_of_item[lengths < 1], minlength=len(ids)) > 0))
    if len(wrong):
        row = int(wrong[0])
        said = f"seq_lengths {lengths[row_of_item == row].tolist()} are not those of items in {length} tokens"
        return None, [Problem(at(url, first_row + row), said)]
    batch = Batch(
        input_ids=ids.flatten().to_numpy().reshape(-1, length),
        token_type=types.flatten().to_numpy().reshape(-1, length),
        lengths=lengths,
        row_of_item=row_of_item,
        doc_ids=arrow.column("doc_ids").flatten().to_pylist(),
        source_starts=arrow.column("source_starts").flatten().to_numpy(),
        is_token=np.arange(length) < tokens_per_row[:, None],
        loss_mask=(
            arrow.column("loss_mask").flatten().to_numpy(zero_copy_only=False).reshape(-1, length)
            if "loss_mask" in arrow.schema.names
            else None
        ),
    )
    return batch, []


def check_batch(task: Task, batch: Batch, first_row: int) -> Iterator[Problem]:
    """What is wrong in the rows of a batch, the first place of each kind in each row."""

    def problems(wrong: np.ndarray, say: str) -> Iterator[Problem]:
        for row in np.flatnonzero(wrong.any(axis=1)).tolist():
            place = int(np.argmax(wrong[row]))
            doc_id = batch.doc_at(row, place)
            values = {"id": batch.input_ids[row, place], "type": batch.token_type[row, place], "place": place}
            yield Problem(at(task.url, first_row + row, doc_id), say.format(**values))

    padding = batch.token_type == TokenType.PADDING
    if batch.input_ids.size and int(batch.input_ids.max()) >= task.vocab_size:
        say = f"token id {{id}} at token {{place}} is not below the vocabulary size {task.vocab_size}"
        yield from problems(batch.input_ids >= task.vocab_size, say)
    if batch.token_type.size and int(batch.token_type.max()) >= len(TokenType):
        yield from problems(batch.token_type >= len(TokenType), "unknown token type {type} at token {place}")
    if not np.array_equal(padding, ~batch.is_token):
        yield from problems(padding == batch.is_token, "its padding is not where its seq_lengths end: token {place}")
    if (batch.input_ids[~batch.is_token] != 0).any():
        yield from problems(~batch.is_token & (batch.input_ids != 0), "padding at token {place} is id {id}, not 0")
    if batch.loss_mask is not None:
        wrong = batch.loss_mask != loss_mask(batch.token_type, task.stage.config["pack"]["loss_mask"])
        yield from problems(wrong, "loss_mask at token {place} is not that of token type {type}")
    for item in np.flatnonzero(batch.source_starts < 0).tolist():
        where = at(task.url, first_row + int(batch.row_of_item[item]), batch.doc_ids[item])
        yield Problem(where, f"source_starts says {batch.source_starts[item]}")
