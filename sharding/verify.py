"""Verify: whether an output is what its manifests say, down to the bit. Read-only; says what is wrong where."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pyarrow as pa

from sharding import manifest, shard_io
from sharding.errors import MillError
from sharding.manifest import Manifest
from sharding.records import FileEntry, TokenType

READ_BYTES = 8 << 20


class Report(msgspec.Struct, kw_only=True):
    """What was checked and what is wrong.

    Attributes:
        output: the folder.
        files, size_bytes, rows: how much was read.
        rehearsal: the corpus is a rehearsal and not for training.
        problems: one line each, naming the file; empty when all is well.
    """

    output: str
    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    rehearsal: bool = False
    problems: list[str] = []


def verify(output: str, *, workers: int = 4) -> Report:
    """Check every manifest of the output, and every file that they name.

    Checked are: all four stages finished and `_SUCCESS` is there; every file's size, sha256 and rows; in the shards
    the schema, that each row's lengths and padding add up, that no control type is unknown, that token ids are below
    the vocabulary size, and token totals by type; no document in two splits; the shards' source tokens equal the
    scored ones; candidates in = kept + rejected.

    Args:
        output: the run's output folder.
        workers: files read at the same time.

    Raises:
        MillError: the folder holds no finished run.
    """
    report = Report(output=output)
    packed = manifest.read(output, "pack")
    if packed is None:
        raise MillError(f"{output} holds no finished run: {manifest.manifest_url(output, 'pack')} is missing")
    report.rehearsal = packed.rehearsal
    if not shard_io.exists(shard_io.join(output, manifest.SUCCESS_NAME)):
        report.problems.append(f"{manifest.SUCCESS_NAME} is missing: the run did not finish")
    stages = {"pack": packed}
    for stage in manifest.STAGES[:-1]:
        found = manifest.read(output, stage)
        if found is None:
            report.problems.append(f"{manifest.manifest_url(output, stage)} is missing")
        else:
            stages[stage] = found
    work = [
        (found, family, entry) for found in stages.values() for family in found.files for entry in found.files[family]
    ]
    splits: dict[str, set[str]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for (_, family, entry), (problems, doc_ids) in zip(
            work, pool.map(lambda w: _check(output, *w), work), strict=True
        ):
            report.problems += problems
            report.files += 1
            report.size_bytes += entry.size_bytes
            report.rows += entry.rows if family == "shards" else 0
            if family == "shards":
                splits.setdefault(_split_of(entry.name), set()).update(doc_ids)
    report.problems += [*_check_splits(splits), *_check_totals(stages)]
    return report


def _split_of(name: str) -> str:
    return name.rsplit("/", 1)[-1].split("-")[0]


def _check(output: str, stage: Manifest, family: str, entry: FileEntry) -> tuple[list[str], set[str]]:
    url = shard_io.join(manifest.stage_url(output, stage.stage), entry.name)
    doc_ids: set[str] = set()
    try:
        problems = list(_check_bytes(url, entry))
        if not problems:
            if family == "shards":
                problems = list(_check_shard(url, entry, stage, doc_ids))
            else:
                rows = sum(batch.num_rows for batch in shard_io.read_batches(url))
                problems = [] if rows == entry.rows else [f"{url}: {rows} rows, its manifest says {entry.rows}"]
    except (MillError, pa.ArrowException, ValueError) as error:
        problems = [f"{url}: {error}"]
    return problems, doc_ids


def _check_bytes(url: str, entry: FileEntry) -> Iterator[str]:
    fs, path = shard_io.filesystem(url)
    sha, size_bytes = hashlib.sha256(), 0
    try:
        with fs.open(path, "rb") as file:
            while block := file.read(READ_BYTES):
                sha.update(block)
                size_bytes += len(block)
    except OSError as error:
        yield f"{url}: cannot be read: {error}"
        return
    if size_bytes != entry.size_bytes:
        yield f"{url}: {size_bytes} bytes, its manifest says {entry.size_bytes}"
    elif sha.hexdigest() != entry.sha256:
        found, expected = sha.hexdigest()[:12], entry.sha256[:12]
        yield f"{url}: its bytes are not those of its manifest (sha256 {found}..., not {expected}...)"


def _check_shard(url: str, entry: FileEntry, packed: Manifest, doc_ids: set[str]) -> Iterator[str]:
    length = packed.config["pack"]["sequence_length"]
    vocab_size = packed.facts["vocab_size"]
    rows = 0
    totals = np.zeros(len(TokenType), np.int64)
    for batch in shard_io.read_batches(url):
        ids = batch.column("input_ids").flatten().to_numpy().reshape(batch.num_rows, -1)
        types = batch.column("token_type").flatten().to_numpy().reshape(batch.num_rows, -1)
        lengths = batch.column("seq_lengths")
        if ids.shape[1] != length or types.shape[1] != length:
            yield f"{url}: rows of {ids.shape[1]} tokens, not {length}"
            return
        if ids.size and int(ids.max()) >= vocab_size:
            yield f"{url}: token id {int(ids.max())} is not below the vocabulary size {vocab_size}"
        if types.size and int(types.max()) >= len(TokenType):
            yield f"{url}: unknown token type {int(types.max())}"
            return
        totals += np.bincount(types.ravel(), minlength=len(TokenType))
        ends = np.array([sum(row) for row in lengths.to_pylist()], np.int64)
        padding = np.arange(length) >= ends[:, None]
        if not np.array_equal(types == TokenType.PADDING, padding):
            bad = rows + int(np.argmax(((types == TokenType.PADDING) != padding).any(axis=1)))
            yield f"{url}: row {bad}: its padding is not where its seq_lengths end"
        for name in ("doc_ids", "source_starts"):
            if batch.column(name).value_lengths().to_pylist() != lengths.value_lengths().to_pylist():
                yield f"{url}: {name} and seq_lengths differ in number"
        doc_ids.update(batch.column("doc_ids").flatten().to_pylist())
        rows += batch.num_rows
    if rows != entry.rows:
        yield f"{url}: {rows} rows, its manifest says {entry.rows}"
    counted = {kind.name.lower(): int(totals[kind]) for kind in TokenType}
    if counted != entry.tokens:
        yield f"{url}: holds tokens {counted}, its manifest says {entry.tokens}"


def _check_splits(splits: dict[str, set[str]]) -> Iterator[str]:
    seen = Counter(doc_id for doc_ids in splits.values() for doc_id in doc_ids)
    twice = sorted(doc_id for doc_id, count in seen.items() if count > 1)
    if twice:
        yield f"{len(twice)} documents are in more than one split, such as {twice[0]!r}"


def _check_totals(stages: dict[str, Manifest]) -> Iterator[str]:
    packed = sum(entry.tokens.get("source", 0) for entry in stages["pack"].files.get("shards", []))
    if "score" in stages and packed != stages["score"].counts["source_tokens"]:
        yield f"the shards hold {packed} source tokens, {stages['score'].counts['source_tokens']} were scored"
    rows = {
        split: {entry.rows for entry in stages["pack"].files.get("shards", []) if _split_of(entry.name) == split}
        for split in {_split_of(entry.name) for entry in stages["pack"].files.get("shards", [])}
    }
    for split, numbers in sorted(rows.items()):
        if len(numbers) > 1:
            yield f"the shards of {split} are not of equal rows: {sorted(numbers)}"
    if "select" in stages:
        counts = stages["select"].counts
        if counts["candidates"] != counts["kept"] + counts["rejected"]:
            yield f"{counts['candidates']} candidates are not {counts['kept']} kept and {counts['rejected']} rejected"
