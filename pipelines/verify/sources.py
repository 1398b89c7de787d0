"""Deep: whether the shards hold the source text that was scored, document by document, in its order.

One scored part at a time: its documents are read once, and every item of theirs, from whatever shard, is compared with
the stretch of the document that it says it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.verify.digests import document_keys, places_within, prefix_sums, starts_of, token_hashes
from pipelines.verify.files import read_buffer
from pipelines.verify.report import Problem, at
from pipelines.verify.spill import Spill
from sharding.storage.arrow_files import file_buffer

COLUMNS = ("doc_id", "segment_index", "num_segments", "token_start", "input_ids")

COPIES = np.dtype([("key", "u8"), ("check", "u4"), ("copies", "u4")])
"""A document that the shards hold more than once."""


@dataclass(frozen=True)
class Documents:
    """Some whole documents of a scored part.

    Attributes:
        doc_ids: in the order of the part.
        lengths: (num_docs,) source tokens of each.
        input_ids: (sum of lengths,) all of them.
        problems: what is wrong with their segments.
    """

    doc_ids: list[str]
    lengths: np.ndarray
    input_ids: np.ndarray
    problems: list[Problem]


@dataclass
class Compared:
    """What comparing a part found.

    Attributes:
        problems: what is wrong.
        documents: how many were compared.
        missing: ids of documents with source that no shard holds, the first few; `num_missing` counts them all.
        partial: the same for documents of which a shard holds something, but not everything as often.
        num_empty: how many documents have no source at all.
        extra_copies: how many more times than once documents are there.
    """

    problems: list[Problem] = field(default_factory=list)
    documents: int = 0
    missing: list[Problem] = field(default_factory=list)
    num_missing: int = 0
    partial: list[Problem] = field(default_factory=list)
    num_partial: int = 0
    num_empty: int = 0
    extra_copies: int = 0

    def add(self, other: Compared, named: int) -> None:
        """Add the numbers of another, and so many of its names; not its problems."""
        for name in ("documents", "num_missing", "num_partial", "num_empty", "extra_copies"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.missing = [*self.missing, *other.missing][:named]
        self.partial = [*self.partial, *other.partial][:named]


def compare_part(part_url: str | None, items: np.ndarray, urls: dict[int, str], copies: Spill) -> Compared:
    """Compare the documents of one scored part with the items that the shards hold of them.

    Args:
        part_url: the scored part; None when no document of this part was scored.
        items: `ITEM` records of the documents of this part.
        urls: the shards by the number that items name them by.
        copies: gets the documents that are there more than once.
    """
    found = Compared()
    items = items[np.lexsort((items["start"], items["check"], items["key"]))]
    known = np.zeros(len(items), np.bool_)
    for documents in read_documents(part_url) if part_url else ():
        found.problems += documents.problems
        found.documents += len(documents.doc_ids)
        _compare(part_url or "", documents, items, known, urls, copies, found)
    for item in items[~known]:
        url, row = urls[int(item["file"])], int(item["row"])
        doc_id = doc_id_at(url, row, int(item["key"]))
        found.problems.append(Problem(at(url, row, doc_id), "no document of this id was scored"))
    return found


def _compare(
    part_url: str,
    documents: Documents,
    items: np.ndarray,
    known: np.ndarray,
    urls: dict[int, str],
    copies: Spill,
    found: Compared,
) -> None:
    keys, checks = document_keys(documents.doc_ids)
    docs, members = join(keys, checks, items)
    known[members] = True
    lengths, begins = documents.lengths, starts_of(documents.lengths)
    sums = prefix_sums(token_hashes(places_within(lengths), documents.input_ids))
    starts, tokens = items["start"][members], items["tokens"][members].astype(np.int64)
    inside = (starts >= 0) & (starts + tokens <= lengths[docs])
    first = begins[docs] + np.where(inside, starts, 0)
    same = inside & (sums[first + np.where(inside, tokens, 0)] - sums[first] == items["digest"][members])
    for number in np.flatnonzero(~same).tolist():
        item, doc = items[members[number]], int(docs[number])
        where = at(urls[int(item["file"])], int(item["row"]), documents.doc_ids[doc])
        begin, end = int(item["start"]), int(item["start"]) + int(item["tokens"])
        found.problems.append(
            Problem(where, f"its source tokens {begin} to {end} are not those of the {lengths[doc]} that were scored")
        )
    there = np.bincount(docs, weights=tokens, minlength=len(lengths)).astype(np.int64)
    digests = np.zeros(len(lengths), np.uint64)
    np.add.at(digests, docs, items["digest"][members])
    times = there // np.maximum(lengths, 1)
    whole = sums[begins + lengths] - sums[begins]
    # Every piece is in its place; if they are also as many tokens and their digests add up, none is there in another's
    # stead.
    complete = (there == times * lengths) & (digests == whole * times.astype(np.uint64))
    broken = np.zeros(len(lengths), np.bool_)
    broken[docs[~same]] = True  # said already
    for doc in np.flatnonzero((there == 0) & (lengths > 0)).tolist():
        found.num_missing += 1
        found.missing.append(Problem(at(part_url, None, documents.doc_ids[doc]), "no shard holds it"))
    for doc in np.flatnonzero(~complete & ~broken & (there > 0)).tolist():
        found.num_partial += 1
        said = f"the shards hold {there[doc]} source tokens, not all of its {lengths[doc]} equally often"
        found.partial.append(Problem(at(part_url, None, documents.doc_ids[doc]), said))
    found.num_empty += int((lengths == 0).sum())
    found.extra_copies += int(np.maximum(times - 1, 0).sum())
    repeated = np.flatnonzero(times > 1)
    if len(repeated):
        entries = np.empty(len(repeated), COPIES)
        entries["key"], entries["check"], entries["copies"] = keys[repeated], checks[repeated], times[repeated]
        copies.add(entries)


def join(keys: np.ndarray, checks: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of documents and the records that carry their key.

    Args:
        keys, checks: of the documents, as `document_keys` gives them.
        records: sorted by key; with fields `key` and `check`.

    Returns:
        (num_pairs,) int64 index into the documents, ascending, and (num_pairs,) int64 index into the records.
    """
    left = np.searchsorted(records["key"], keys, "left")
    number = np.searchsorted(records["key"], keys, "right") - left
    docs = np.repeat(np.arange(len(keys)), number)
    members = places_within(number, left)
    same = records["check"][members] == checks[docs]
    return docs[same], members[same]


def read_documents(url: str) -> Iterator[Documents]:
    """The documents of a scored part, some at a time and each whole: parts are sorted by document and segment."""
    held: list[pa.RecordBatch] = []
    first_row = 0
    for batch in read_buffer(file_buffer(url), COLUMNS):
        if not batch.num_rows:
            continue
        held.append(batch)
        doc_ids = batch.column("doc_id")
        if doc_ids[0] == doc_ids[-1] and (len(held) == 1 or held[0].column("doc_id")[0] == doc_ids[0]):
            continue  # one document so far
        table = pa.Table.from_batches(held).combine_chunks()
        last = table.column("doc_id").to_pylist()
        # The last document may go on in the next batch.
        whole = last.index(last[-1])
        yield _documents(url, table.slice(0, whole), first_row)
        first_row += whole
        held = table.slice(whole).combine_chunks().to_batches()
    if held:
        yield _documents(url, pa.Table.from_batches(held), first_row)


def _documents(url: str, table: pa.Table, first_row: int) -> Documents:
    (batch,) = table.combine_chunks().to_batches()
    of_segment = batch.column("doc_id").to_pylist()
    opens = [row for row in range(len(of_segment)) if row == 0 or of_segment[row] != of_segment[row - 1]]
    tokens = batch.column("input_ids").value_lengths().to_numpy().astype(np.int64)
    segments = np.diff(np.append(opens, len(of_segment)))
    lengths = np.add.reduceat(tokens, opens)
    expected_start = starts_of(tokens) - np.repeat(starts_of(lengths), segments)
    wrong = (
        (batch.column("segment_index").to_numpy() != places_within(segments))
        | (batch.column("num_segments").to_numpy() != np.repeat(segments, segments))
        | (batch.column("token_start").to_numpy() != expected_start)
    )
    problems = [
        Problem(at(url, first_row + row, of_segment[row]), "its segments are not all there and in order")
        for row in np.flatnonzero(wrong).tolist()
    ]
    return Documents(
        doc_ids=[of_segment[row] for row in opens],
        lengths=lengths,
        input_ids=batch.column("input_ids").flatten().to_numpy(),
        problems=problems,
    )


def doc_id_at(url: str, row: int, key: int) -> str | None:
    """The document in a row of a shard that has this key: looked up only to name what is wrong."""
    first = 0
    for batch in read_buffer(file_buffer(url), ("doc_ids",)):
        if row < first + batch.num_rows:
            doc_ids = batch.column("doc_ids")[row - first].as_py()
            keys, _ = document_keys(doc_ids)
            return next((doc_id for doc_id, found in zip(doc_ids, keys.tolist(), strict=True) if found == key), None)
        first += batch.num_rows
    return None
