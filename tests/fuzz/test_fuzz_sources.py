"""Thousands of damaged inputs: every record becomes a document or goes to quarantine, every file is read or named."""

import gzip
import io
import json
import random
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
from tests.fuzz.conftest import Tally
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


def test_ten_thousand_lines(tally: Tally) -> None:
    rng = random.Random(7)
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


@settings(max_examples=300)
@given(record=st.fixed_dictionaries({}, optional={"id": JSON, "text": JSON, "kind": JSON}) | JSON)
def test_any_json(record: Any) -> None:
    line = json.dumps(record).encode(errors="surrogatepass")
    assert_sound(parse_json_line(line, "f.jsonl:1", SOURCE))


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


@pytest.mark.slow
def test_damaged_files_are_read_or_named(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(3)
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
