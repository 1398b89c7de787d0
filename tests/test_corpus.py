"""Reading: every record becomes a document or goes to quarantine with a reason."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sharding import corpus
from sharding.corpus import ReadUnit, SourceConfig, list_files, read_documents, read_units
from sharding.errors import MillError, RequestError
from sharding.records import Document, Quarantined

LINES = [
    (b'{"id": "a", "text": "hello"}', "a"),
    (b'{"id": 7, "text": "an integer id"}', "7"),
    (b'{"id": "nul", "text": "a\\u0000b"}', "nul"),
    (b'{"id": "b", "text": ""}', "empty"),
    (b'{"id": "c"}', "missing_text"),
    (b'{"id": "d", "text": 5}', "text_not_string"),
    (b'{"text": "no id"}', "missing_id"),
    (b'{"id": null, "text": "x"}', "missing_id"),
    (b'{"id": true, "text": "x"}', "missing_id"),
    (b'{"id": "e", "text": "cut', "malformed_json"),
    (b"[1, 2]", "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b'{"id": "f", "text": "lone \\ud800 surrogate"}', "malformed_json"),
    (b'{"id": "g", "text": "\xff\xfe"}', "invalid_utf8"),
]


@pytest.mark.parametrize(("line", "outcome"), LINES, ids=[outcome for _, outcome in LINES])
def test_one_line(line: bytes, outcome: str) -> None:
    record = corpus.parse_json_line(line, "f.jsonl:1", SourceConfig(path="f.jsonl", id_field="id"))
    found = record.doc_id if isinstance(record, Document) else record.reason
    assert found == outcome


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_plain_and_compressed_files_read_alike(tmp_path: Path, ending: str) -> None:
    data = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(50))
    packed = {"": lambda d: d, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending](data)
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed)
    config = SourceConfig(path=str(tmp_path))
    [unit] = read_units(list_files(config))
    documents = list(read_documents(unit, config))
    assert [d.text for d in documents if isinstance(d, Document)] == [f"text {i}" for i in range(50)]
    assert len({d.doc_id for d in documents}) == 50


def test_concatenated_zstd_frames_are_all_read(tmp_path: Path) -> None:
    frames = [zstandard.ZstdCompressor().compress(json.dumps({"text": str(i)}).encode() + b"\n") for i in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    config = SourceConfig(path=str(tmp_path / "*.zst"))
    assert len(list(read_documents(read_units(list_files(config))[0], config))) == 3


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_cut_compressed_file_is_an_error_that_names_it(tmp_path: Path, ending: str) -> None:
    data = b"".join(json.dumps({"text": f"text {i} {hash(i)}"}).encode() + b"\n" for i in range(5000))
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending](data)
    path = tmp_path / f"cut.jsonl{ending}"
    path.write_bytes(packed[: len(packed) // 2])
    config = SourceConfig(path=str(path))
    with pytest.raises(MillError, match=r"cut\.jsonl"):
        list(read_documents(ReadUnit(url=str(path)), config))


@given(
    lines=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), max_size=30),
    unit_bytes=st.integers(1, 200),
    last_newline=st.booleans(),
)
def test_ranges_of_a_file_hold_every_line_once(lines: list[str], unit_bytes: int, last_newline: bool) -> None:
    data = b"\n".join(json.dumps({"text": f"x{line}"}).encode() for line in lines) + b"\n" * last_newline
    url = "memory://corpus-test/file.jsonl"
    fs, path = corpus.shard_io.filesystem(url)
    fs.pipe_file(path, data)
    config = SourceConfig(path=url)
    units = [ReadUnit(url=url, start=s, end=s + unit_bytes) for s in range(0, len(data), unit_bytes)]
    found = [d.text for unit in units for d in read_documents(unit, config) if isinstance(d, Document)]
    assert found == [f"x{line}" for line in lines]


def test_large_files_are_cut_into_ranges() -> None:
    size = 3 * corpus.UNIT_BYTES + 5
    units = read_units([("a.jsonl", size, "v"), ("b.jsonl.gz", size, "v"), ("c.jsonl", 10, "v")])
    assert [(u.url, u.start) for u in units] == [
        *(("a.jsonl", i * corpus.UNIT_BYTES) for i in range(4)),
        ("b.jsonl.gz", 0),
        ("c.jsonl", 0),
    ]


def test_an_overlong_record_is_quarantined_without_being_held(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl([{"text": "ok"}, {"text": "x" * 5000}, {"text": "fine"}])
    config = SourceConfig(path=path, max_document_bytes=1000)
    first, second, third = read_documents(ReadUnit(url=path), config)
    assert isinstance(first, Document) and isinstance(third, Document)
    assert isinstance(second, Quarantined) and second.reason == "too_long"
    assert "max_document_bytes" in second.detail


def test_metadata_is_carried(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl([{"text": "t", "url": "u", "n": 3, "left": "out"}])
    [document] = read_documents(ReadUnit(url=path), SourceConfig(path=path, metadata_fields=("url", "n", "absent")))
    assert isinstance(document, Document) and json.loads(document.metadata or "") == {"url": "u", "n": 3}


def test_nothing_matches(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "*.jsonl", tmp_path / "no" / "folder"):
        with pytest.raises(RequestError, match=r"source\.path"):
            list_files(SourceConfig(path=str(path)))


def test_an_unknown_store_names_the_way_out() -> None:
    with pytest.raises(RequestError, match="nosuch"):
        list_files(SourceConfig(path="nosuch://bucket/x"))
