"""Thousands of damaged inputs: every record becomes a document or goes to quarantine, every file is read or named."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import MillError, RequestError
from sharding.records.base import decode, encode
from sharding.records.types import Document, Quarantined
from sharding.sources import Source, SourceConfig
from sharding.sources.jsonl import parse_json_line
from sharding.sources.line_looks import looks_like
from sharding.sources.looks import kind_of, unpacked
from tests.fuzz.conftest import Tally, fuzzed, random_of
from tests.source_files import put, read_all

REASONS = {
    "empty",
    "invalid_utf8",
    "malformed_json",
    "missing_id",
    "missing_text",
    "text_not_string",
    "too_long",
}
NUM_DOCUMENTS = 10_000
SOURCE = Source("source", SourceConfig(path="f.jsonl", id_field="id", metadata_fields=("kind",)))

ODD_TEXT = [
    "",
    " ",
    "\x00",
    "\ud800",
    "a\udfffb",
    "\U0010ffff",
    "\u202e",
    "</think>",
    "<|im_end|>",
    "e\u0301" * 50,
    "x" * 70_000,
    "\r\n\t",
    "\ufeff",
    "%s{}",
    "../../etc",
]
ODD_VALUES: list[Any] = [None, True, 0, -1, 2**70, 1e308, -0.0, [], {}, [[]], {"text": "x"}, *ODD_TEXT]


def random_line(rng: random.Random) -> bytes:
    """A line that is JSON, nearly JSON, or noise."""
    record: dict[str, Any] = {}
    for name in ("id", "text", "kind", "other"):
        roll = rng.random()
        if roll < 0.15:
            continue
        plain = "".join(rng.choices(string.printable, k=rng.randrange(60)))
        record[name] = rng.choice(ODD_VALUES) if roll < 0.45 else plain
    data = json.dumps(record, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    roll = rng.random()
    if roll < 0.2 and data:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    elif roll < 0.3:
        data = data[: rng.randrange(len(data) + 1)]
    elif roll < 0.35:
        data = rng.randbytes(rng.randrange(80))
    elif roll < 0.37:
        data = rng.choice([b"[" * 5_000, b'{"a":' * 5_000, b'"' + b"\\" * 999, b"NaN", b"1" * 5_000])
    elif roll < 0.4:
        data = data[:-1] + b',"text":"again"}'
    return data.replace(b"\n", b" ")


def assert_sound(record: Document | Quarantined) -> None:
    """It says what it should, and travels between workers as it is."""
    if isinstance(record, Document):
        assert record.text and record.doc_id
        record.text.encode()
        record.doc_id.encode()
    else:
        assert record.reason in REASONS
        assert record.origin and record.detail
    assert decode(type(record), encode(record)) == record


@fuzzed
def test_ten_thousand_lines(tally: Tally) -> None:
    rng = random_of(7)
    outcomes: dict[str, int] = {}
    for number in range(NUM_DOCUMENTS):
        record = parse_json_line(random_line(rng), f"f.jsonl:{number}", SOURCE)
        assert_sound(record)
        outcome = "document" if isinstance(record, Document) else record.reason
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert sum(outcomes.values()) == NUM_DOCUMENTS
    assert outcomes["document"] > 2_000
    assert REASONS - {"too_long"} <= set(outcomes), outcomes
    tally("JSON lines", outcomes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD_VALUES),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=8,
)


@fuzzed
@settings(max_examples=300)
@given(record=st.fixed_dictionaries({}, optional={"id": JSON, "text": JSON, "kind": JSON}) | JSON)
def test_any_json(record: Any) -> None:
    line = json.dumps(record).encode(errors="surrogatepass")
    assert_sound(parse_json_line(line, "f.jsonl:1", SOURCE))


@fuzzed
@settings(max_examples=300)
@given(line=st.binary(max_size=200))
def test_any_bytes(line: bytes) -> None:
    assert_sound(parse_json_line(line, "f.jsonl:1", SOURCE))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstandard.ZstdCompressor().compress,
    "a.txt": bytes,
    "a.txt.zst": zstandard.ZstdCompressor().compress,
}


def parquet_bytes(rng: random.Random) -> bytes:
    sink = io.BytesIO()
    texts = [random.Random(i).choice([None, "text", "é" * 9, "x" * 500]) for i in range(40)]
    table = pa.table({"id": [str(i) for i in range(40)], "text": texts, "kind": list(range(40))})
    pq.write_table(table, sink, row_group_size=rng.choice([5, 40]))
    return sink.getvalue()


def arrow_bytes(rng: random.Random) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": [str(i) for i in range(40)], "text": ["some text"] * 40, "kind": list(range(40))})
    make = rng.choice([pa.ipc.new_stream, pa.ipc.new_file])
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return sink.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(3)
        if kind == 0 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[rng.randrange(len(out) + 1) :]
        else:
            out[rng.randrange(len(out) + 1) : rng.randrange(len(out) + 1)] = rng.randbytes(rng.randrange(20))
    return bytes(out)


@fuzzed
@pytest.mark.slow
def test_damaged_files_are_read_or_named(tmp_path: Path, tally: Tally) -> None:
    rng = random_of(3)
    plain = b"".join(json.dumps({"id": str(i), "text": f"text {i}", "kind": i}).encode() + b"\n" for i in range(60))
    refused = 0
    for number in range(600):
        name, make = rng.choice(
            [
                *((name, lambda pack=pack: pack(plain)) for name, pack in PACKERS.items()),
                ("a.parquet", lambda: parquet_bytes(rng)),
                ("a.arrow", lambda: arrow_bytes(rng)),
            ]
        )
        (tmp_path / str(number)).mkdir()
        path = put(str(tmp_path / str(number) / name), damaged(make(), rng))
        fields: dict[str, Any] = {} if name.startswith("a.txt") else {"id_field": "id", "metadata_fields": ("kind",)}
        try:
            for record in read_all(SourceConfig(path=path, **fields)):
                assert_sound(record)
        except MillError as error:
            assert name in str(error)
            refused += 1
    assert 100 < refused < 500
    tally("damaged files", {"read": 600 - refused, "refused by name": refused})


# --- links, first bytes, encodings ------------------------------------------------------------------------------------

WRAPPINGS: list[Callable[[bytes], bytes]] = [
    bytes,
    gzip.compress,
    zstandard.ZstdCompressor().compress,
    lambda data: gzip.compress(data) + bytes(300),
    lambda data: zstandard.ZstdCompressor().compress(gzip.compress(data)),
]
DISGUISES: list[Callable[[bytes], bytes]] = [
    lambda data: data.decode().encode("utf-16"),
    lambda data: data.decode().encode("utf-16-be"),
    lambda data: data.decode().encode("utf-32-le"),
    bz2.compress,
    lzma.compress,
    lambda data: b"<!doctype html><title>" + data,
    lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
    lambda data: parquet_bytes(random.Random(1)),
    lambda data: arrow_bytes(random.Random(2)),
]
FILE_NAMES = ["a.jsonl", "A.JSONL", "a.jsonl.gz", "a.ndjson.zstd", "a.JSONL.Gzip"]


@fuzzed
def test_any_wrapping_under_any_name_is_read_or_refused_by_name(tmp_path: Path, tally: Tally) -> None:
    rng = random_of(11)
    outcomes = {"read": 0, "refused by name": 0}
    for number in range(300):
        records = [{"id": str(i), "text": f"text {i}"} for i in range(rng.randrange(1, 9))]
        plain = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        is_disguised = rng.random() < 0.5
        wrap = rng.choice([*WRAPPINGS, *([] if is_disguised else [lambda data: b"\xef\xbb\xbf" + data])])
        data = wrap(rng.choice(DISGUISES)(plain) if is_disguised else plain)
        (tmp_path / str(number)).mkdir()
        path = put(str(tmp_path / str(number) / rng.choice(FILE_NAMES)), data)
        config = SourceConfig(path=path, format="jsonl", id_field="id")
        if is_disguised:
            with pytest.raises(MillError, match=re.escape(Path(path).name)):
                read_all(config)
        else:
            found = [(r.doc_id, r.text) for r in read_all(config) if isinstance(r, Document)]
            assert found == [(record["id"], record["text"]) for record in records]
        outcomes["refused by name" if is_disguised else "read"] += 1
    assert min(outcomes.values()) > 100
    tally("first bytes", outcomes)


@fuzzed
def test_any_tangle_of_links_gives_every_file_once(tmp_path: Path, tally: Tally) -> None:
    rng = random_of(5)
    outcomes = {"read": 0, "refused by name": 0}
    for number in range(60):
        root, outside = tmp_path / str(number) / "raw", tmp_path / str(number) / "outside"
        folders = [root, outside]
        for place in (root, outside):
            place.mkdir(parents=True)
            for _ in range(rng.randrange(3)):
                folder = rng.choice([f for f in folders if f.is_relative_to(place)]) / f"d{len(folders)}"
                folder.mkdir()
                folders.append(folder)
        files = []
        for n in range(rng.randrange(1, 6)):
            files.append(rng.choice(folders) / f"f{n}.jsonl")
            put(str(files[-1]), json.dumps({"id": str(files[-1]), "text": "x"}).encode())
        reached = {file for file in files if file.is_relative_to(root)}
        for n in range(rng.randrange(6)):
            link = rng.choice([f for f in folders if f.is_relative_to(root)]) / f"l{n}"
            target = rng.choice(folders)
            link.symlink_to(os.path.relpath(target, link.parent))
            reached |= {file for file in files if file.is_relative_to(target)}
        is_broken = rng.random() < 0.2
        if is_broken:
            (root / "broken.jsonl").symlink_to("nowhere")
        config = SourceConfig(path=str(root), id_field="id")
        if is_broken or not reached:
            with pytest.raises(RequestError, match="broken" if is_broken else "nothing matches"):
                read_all(config)
        else:
            found = [record.doc_id for record in read_all(config) if isinstance(record, Document)]
            assert sorted(found) == sorted(map(str, reached))
        outcomes["refused by name" if is_broken or not reached else "read"] += 1
    tally("tangles of links", outcomes)


@fuzzed
@settings(max_examples=200)
@given(head=st.binary(max_size=600), text=st.text(max_size=600))
def test_a_look_at_anything_never_fails(head: bytes, text: str) -> None:
    for data in (head, text.encode(), text.encode("utf-16"), gzip.compress(head)[: len(head)]):
        kind_of(unpacked(data))
        looks_like(unpacked(data))
    if len(text) > 1 and not text.startswith(("\ufeff", "\x00")) and text.isprintable():
        kind = kind_of(text.encode())
        assert kind is None or kind.name in ("markup", "pointer", "pdf", "rtf", "image", "warc", "feather")


def test_a_parquet_without_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "id": ["1"]}), path)
    with pytest.raises(
        RequestError, match=r"source\.text_field: 'text' is no column of .*a\.parquet; it has: body, id"
    ):
        read_all(SourceConfig(path=str(path)))


BOMB_BYTES = 1 << 30
LIMIT_BYTES = 1 << 20

READ_IT = """
import re, sys
from pathlib import Path
from sharding import sources
from sharding.sources import Source, SourceConfig
source, files = sources.resolve(Source("source", SourceConfig(path=sys.argv[1], max_document_bytes=int(sys.argv[2]))))
units = [unit for file in files for unit in sources.units_of(file, source.config)]
found = [record for unit in units for record in sources.read_documents(unit, source)]
print(*sorted({getattr(r, "reason", "document") for r in found}), len(found))
# Not ru_maxrss: that begins with what the parent held when it forked.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def bomb(path: Path, unit: bytes) -> None:
    """A file of a few KiB or MiB that unpacks to a gigabyte."""
    block = unit * ((1 << 20) // len(unit))
    if path.suffix == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as out:
            for _ in range(BOMB_BYTES >> 20):
                out.write(block)
    else:
        with zstandard.open(path, "wb") as out:
            for _ in range(BOMB_BYTES >> 20):
                out.write(block)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bomb.jsonl.zst", "bomb.txt.zst", "bomb.jsonl.gz"])
def test_a_bomb_takes_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    bomb(path, b"x" * 1024)
    assert path.stat().st_size < BOMB_BYTES // 100
    command = [sys.executable, "-c", READ_IT, str(path), str(LIMIT_BYTES)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    said, peak_kib = done.stdout.splitlines()
    assert said == "too_long 1"
    assert int(peak_kib) < 400 << 10, "the gigabyte was held in memory"
