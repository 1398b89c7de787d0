"""Bytes per record and per token of a run: what rests in its output, and what its records weigh between workers.

    python -m benchmarks.units out/demo
    python -m benchmarks.units out/demo --trace-tokens 1000

docs/scale.md is made of these. A record weighs a fixed part and so much per token; shuffles carry records one by one
and uncompressed, files carry them in batches with zstd. `--trace-tokens` measures generations as long as those of the
run in mind: the demo's are short, and what is fixed in a row weighs more there. They are filled with Python's
documentation, and written as a ledger part of 80.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from augment.ledger.parts import ledger_parts, write_part
from augment.ledger.reading import read_ledger
from augment.selection.candidates import ROW_COLUMNS, AskedSegment
from benchmarks.machine import conclude
from sharding import records, storage
from sharding.models.tokenizer import load_tokenizer
from sharding.records.arrow import from_batch, to_batch
from sharding.records.base import Record
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.rows import Row
from sharding.records.types import Candidate, LedgerRow, Request, ScoredDocument, ScoredSegment
from sharding.storage import manifest

TRACES = 80
NOTHING = np.empty(0, np.float16)


@dataclass(frozen=True)
class Weight:
    """What records of one kind weigh.

    Attributes:
        what: in words.
        count: how many.
        tokens: of all of them.
        shuffled_bytes: encoded, one by one.
        fixed_bytes: of those, what doesn't depend on tokens.
        file_bytes: in files; None where they are in none.
    """

    what: str
    count: int
    tokens: int
    shuffled_bytes: int
    fixed_bytes: int
    file_bytes: int | None = None


def weigh(
    what: str,
    found: Sequence[Record],
    tokens_of: Callable[[Any], int],
    empty: dict[str, Any],
    file_bytes: int | None = None,
) -> Weight:
    """Encode records as they are, and with the fields that grow with tokens replaced by `empty`."""
    return Weight(
        what=what,
        count=len(found),
        tokens=sum(tokens_of(record) for record in found),
        shuffled_bytes=sum(len(records.encode(record)) for record in found),
        fixed_bytes=sum(len(records.encode(msgspec.structs.replace(record, **empty))) for record in found),
        file_bytes=file_bytes,
    )


def family(output: str, stage: str, name: str, kind: type[Any]) -> tuple[list[Any], int]:
    """The records of a stage's family of files, and the size of these."""
    finished = manifest.require(output, stage)
    urls = manifest.file_urls(output, finished, name)
    size_bytes = sum(entry.size_bytes for entry in finished.files.get(name, ()))
    return [record for url in urls for record in storage.read_records(url, kind)], size_bytes


def whole(segments: list[ScoredSegment]) -> ScoredDocument:
    """A document as the score stage sends it to where it is written."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(segment, name) for segment in segments])

    return ScoredDocument(
        doc_id=segments[0].doc_id,
        segment_starts=np.array([segment.token_start for segment in segments], np.int64),
        input_ids=joined("input_ids"),
        surprisal_nats=joined("surprisal_nats"),
        entropy_nats=joined("entropy_nats"),
        memory_nats=joined("memory_nats"),
        segment_difficulty_nats=np.array([segment.difficulty_nats for segment in segments]),
        metadata=segments[0].metadata,
        source=segments[0].source,
    )


def long_traces(row: LedgerRow, tokenizer: str, tokens: int) -> list[LedgerRow]:
    """Rows like one of the run, with texts of so many tokens."""
    loaded = load_tokenizer(tokenizer)
    ids = loaded.encode("\n".join(topics[name] for name in sorted(topics))).astype(np.uint32)
    ids = np.resize(ids, max(len(ids), TRACES * tokens))
    return [
        msgspec.structs.replace(
            row,
            key=hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest(),
            request_key=hashlib.blake2b(f"request {i}".encode(), digest_size=16).hexdigest(),
            token_ids=piece,
            text=loaded.decode(piece),
            thought_tokens=tokens,
        )
        for i, piece in enumerate(np.split(ids[: TRACES * tokens], TRACES))
    ]


def from_columns(row: LedgerRow, columns: Sequence[str]) -> LedgerRow:
    """The row as it is read from these columns alone."""
    return next(from_batch(LedgerRow, to_batch([row], LEDGER_SCHEMA).select(list(columns))))


def asked_segments(
    segments: Sequence[ScoredSegment], requests: Sequence[Request], tokenizer: str
) -> Iterator[AskedSegment]:
    """What selection sends to meet the generations of a segment, where nothing is valued."""
    of_segment = {segment.segment_id: segment.input_ids for segment in segments}
    for request in requests:
        shown = load_tokenizer(tokenizer).decode(of_segment[request.segment_id][: request.shown_tokens])
        yield AskedSegment(request=request, valued=False, source_text=shown, continuation="")


def weights(output: str, trace_tokens: int | None) -> Iterator[Weight]:
    segments, size_bytes = family(output, "score", "segments", ScoredSegment)
    groups = groupby(segments, lambda segment: segment.doc_id)
    documents = [whole(list(members)) for _, members in groups]
    ids = segments[0].input_ids[:0]
    per_token = {"input_ids": ids, "surprisal_nats": NOTHING, "entropy_nats": NOTHING, "memory_nats": NOTHING}
    yield weigh("scored documents", documents, lambda d: len(d.input_ids), per_token, size_bytes)
    thin = [
        msgspec.structs.replace(
            s, surprisal_nats=NOTHING, entropy_nats=NOTHING, memory_nats=NOTHING, difficulty_nats=0.0, metadata=None
        )
        for s in segments
    ]
    yield weigh("segments, tokens only", thin, lambda s: len(s.input_ids), {"input_ids": ids})
    requests, size_bytes = family(output, "augment", "requests", Request)
    yield weigh("requests, without their prompts", requests, lambda _: 0, {}, size_bytes)
    prompted = [
        msgspec.structs.replace(r, prompt_token_ids=np.arange(1, r.prompt_tokens + 1, dtype=np.uint32))
        for r in requests
    ]
    yield weigh("requests", prompted, lambda r: r.prompt_tokens, {"prompt_token_ids": np.empty(0, np.uint32)})
    url = storage.join(output, "ledger")
    rows = list(read_ledger(url))
    size_bytes = sum(Path(part).stat().st_size for part in ledger_parts(url))
    empty_row = {"text": "", "token_ids": rows[0].token_ids[:0]}
    yield weigh("generations", rows, lambda r: r.thought_tokens, empty_row, size_bytes)
    keys = list(read_ledger(url, columns=("key", "request_key", "sample", "thought_tokens")))
    yield weigh("generations, keys only", keys, lambda _: 0, {})
    asked = list(asked_segments(segments, requests, manifest.require(output, "pack").config["tokenizer"]))
    yield weigh("asked segments", asked, lambda a: a.request.shown_tokens, {"source_text": ""})
    if trace_tokens is not None:
        tokenizer = manifest.require(output, "pack").config["tokenizer"]
        traces = long_traces(rows[0], tokenizer, trace_tokens)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(write_part(folder, traces)).stat().st_size
        yield weigh(f"generations of {trace_tokens} tokens", traces, lambda r: r.thought_tokens, empty_row, written)
        judged = [from_columns(row, ROW_COLUMNS) for row in traces]
        yield weigh("the same, as selection reads them", judged, lambda r: r.thought_tokens, {"text": ""})
    for name in ("kept", "rejected"):
        candidates, size_bytes = family(output, "select", name, Candidate)
        empty = {"text": "", "input_ids": ids}
        yield weigh(f"{name} candidates", candidates, lambda c: len(c.input_ids), empty, size_bytes)
    packed, size_bytes = family(output, "pack", "shards", Row)
    yield weigh(
        "packed rows",
        packed,
        lambda row: len(row.input_ids),
        {"input_ids": ids, "token_type": np.empty(0, np.uint8)},
        size_bytes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the output folder of a finished run, on a disk")
    parser.add_argument("--trace-tokens", type=int, help="also measure generations of this length")
    args = parser.parse_args()
    console = Console(width=140)
    table = Table(
        "what", "records", "tokens", "between workers: fixed", "per token", "in files: per record", "per token"
    )
    figures: dict[str, float | None] = {}
    for weight in weights(args.output, args.trace_tokens):
        fixed = weight.fixed_bytes / weight.count
        per_token = (weight.shuffled_bytes - weight.fixed_bytes) / weight.tokens if weight.tokens else None
        per_record = None if weight.file_bytes is None else weight.file_bytes / weight.count
        stored = None if weight.file_bytes is None or not weight.tokens else weight.file_bytes / weight.tokens
        shown = ("" if value is None else f"{value:,.2f}" for value in (fixed, per_token, per_record, stored))
        table.add_row(weight.what, f"{weight.count:,}", f"{weight.tokens:,}", *shown)
        name = weight.what.replace(",", "").replace(" ", "_")
        figures |= {f"{name}_fixed_bytes": fixed, f"{name}_bytes_per_token": per_token}
        figures |= {f"{name}_file_bytes_per_token": stored}
    console.print(table)
    conclude(console, "units", figures, ("pyarrow", "msgspec", "numpy"))


if __name__ == "__main__":
    main()
