"""JSON lines and text: every record becomes a document or goes to quarantine, whatever the cuts."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sharding import sources
from sharding.errors import MillError
from sharding.records.types import Document, Quarantined
from sharding.sources import ReadUnit, Source, SourceConfig
from sharding.sources.jsonl import parse_json_line
from sharding.sources.text import _paragraphs
from tests.source_files import as_jsonl, put, read_all, read_alone, texts

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

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def units(url: str, size_bytes: int, unit_bytes: int) -> list[ReadUnit]:
    return [ReadUnit(url=url, start=s, end=s + unit_bytes) for s in range(0, size_bytes, unit_bytes)]


def read_in_units(url: str, data: bytes, unit_bytes: int, config: SourceConfig) -> list[Document | Quarantined]:
    put(url, data)
    source = Source("source", config)
    return [r for unit in units(url, len(data), unit_bytes) for r in sources.read_documents(unit, source)]


@pytest.mark.parametrize(("line", "outcome"), LINES, ids=[outcome for _, outcome in LINES])
def test_one_line(line: bytes, outcome: str) -> None:
    source = Source("source", SourceConfig(path="f.jsonl", id_field="id"))
    record = parse_json_line(line, "f.jsonl:1", source)
    found = record.doc_id if isinstance(record, Document) else record.reason
    assert found == outcome


@pytest.mark.parametrize("ending", PACKED)
def test_plain_and_compressed_files_read_alike(tmp_path: Path, ending: str) -> None:
    data = as_jsonl([{"text": f"text {i}"} for i in range(50)])
    put(str(tmp_path / f"a.jsonl{ending}"), PACKED[ending](data))
    documents = read_all(SourceConfig(path=str(tmp_path)))
    assert texts(documents) == [f"text {i}" for i in range(50)]
    assert len({d.doc_id for d in documents}) == 50


def test_concatenated_zstd_frames_are_all_read(tmp_path: Path) -> None:
    frames = [zstandard.ZstdCompressor().compress(as_jsonl([{"text": str(i)}])) for i in range(3)]
    put(str(tmp_path / "a.jsonl.zst"), b"".join(frames))
    assert len(read_all(SourceConfig(path=str(tmp_path / "*.zst")))) == 3


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["cut.jsonl", "cut.txt"])
def test_a_cut_compressed_file_is_an_error_that_names_it(tmp_path: Path, name: str, ending: str) -> None:
    packed = PACKED[ending](as_jsonl([{"text": f"text {i} {hash(i)}"} for i in range(5000)]))
    path = put(str(tmp_path / f"{name}{ending}"), packed[: len(packed) // 2])
    with pytest.raises(MillError, match=name):
        read_all(SourceConfig(path=path))


@given(
    lines=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), max_size=30),
    unit_bytes=st.integers(1, 200),
    last_newline=st.booleans(),
)
def test_ranges_of_a_file_hold_every_line_once(lines: list[str], unit_bytes: int, last_newline: bool) -> None:
    data = b"\n".join(json.dumps({"text": f"x{line}"}).encode() for line in lines) + b"\n" * last_newline
    url = "memory://sources-test/file.jsonl"
    found = read_in_units(url, data, unit_bytes, SourceConfig(path=url, format="jsonl"))
    assert texts(found) == [f"x{line}" for line in lines]


BLANK = ["", " ", "\t\r", "\r"]
PIECES = st.lists(st.sampled_from([*BLANK, *BLANK, "a", "bc\r", " d", "word " * 9]), max_size=40)


@given(lines=PIECES, unit_bytes=st.integers(1, 60), document=st.sampled_from(["line", "paragraph"]))
def test_ranges_of_text_hold_every_document_once(lines: list[str], unit_bytes: int, document: str) -> None:
    text = "\n".join(lines)
    url = "memory://sources-test/file.txt"
    config = SourceConfig(path=url, format="text", document=document)  # type: ignore[arg-type]
    found = texts(read_in_units(url, text.encode(), unit_bytes, config))
    assert found == texts(read_in_units(url, text.encode(), max(1, len(text)), config))
    expected: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            expected.append([])
        elif document == "line":
            expected.append([line])
        else:
            expected[-1].append(line)
    assert found == ["\n".join(piece).removesuffix("\r") for piece in expected if piece]


@given(
    lines=st.lists(st.sampled_from(["", "aa", "b" * 40, "b" * 300]), max_size=12),
    unit_bytes=st.integers(1, 90),
    document=st.sampled_from(["line", "paragraph"]),
)
def test_overlong_documents_are_refused_once_whatever_the_cut(lines: list[str], unit_bytes: int, document: str) -> None:
    url = "memory://sources-test/long.txt"
    config = SourceConfig(path=url, format="text", document=document, max_document_bytes=45)  # type: ignore[arg-type]
    data = "\n".join(lines).encode()
    found = [type(record).__name__ for record in read_in_units(url, data, unit_bytes, config)]
    assert found == [type(record).__name__ for record in read_in_units(url, data, max(1, len(data)), config)]
    if document == "line":
        assert found.count("Quarantined") == sum(len(line) > 45 for line in lines)


def test_a_range_inside_one_paragraph_is_not_read_to_its_end() -> None:
    taken = []

    class Counted(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            taken.append(super().readinto(buffer))
            return taken[-1]

    unit = ReadUnit(url="x", start=1 << 20, end=2 << 20)
    source = Source("source", SourceConfig(path="x", format="text", document="paragraph"))
    assert list(_paragraphs(Counted(b"a line\n" * (1 << 20)), unit, source)) == []
    assert 1 << 20 <= sum(taken) < 3 << 20


def test_a_text_file_is_one_document_as_it_is(tmp_path: Path) -> None:
    put(str(tmp_path / "b.txt"), b"\xef\xbb\xbfone\r\n\n two \n")
    put(str(tmp_path / "c.txt.gz"), gzip.compress("dreißig\n".encode()))
    put(str(tmp_path / "a.md"), b"\xff\xfd")
    put(str(tmp_path / "d.txt"), b"")
    refused, first, second, empty = read_all(SourceConfig(path=str(tmp_path), max_quarantined=0.5))
    assert isinstance(first, Document) and first.text == "one\r\n\n two \n" and first.origin.endswith("b.txt")
    assert isinstance(second, Document) and second.text == "dreißig\n"
    assert isinstance(refused, Quarantined) and refused.reason == "invalid_utf8"
    assert isinstance(empty, Quarantined) and empty.reason == "empty"


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    path = put(str(tmp_path / "a.jsonl"), b"\xef\xbb\xbf" + as_jsonl([{"text": "first"}, {"text": "\ufeffkept"}]))
    assert texts(read_all(SourceConfig(path=path))) == ["first", "\ufeffkept"]


def test_lines_know_where_they_are(tmp_path: Path) -> None:
    data = as_jsonl([{"text": "a"}, {"text": "b"}])
    path = put(str(tmp_path / "a.jsonl"), data)
    half = len(data) // 2
    source = Source("source", SourceConfig(path=path, format="jsonl"))
    [_, second] = sources.read_documents(ReadUnit(url=path), source)
    [again] = sources.read_documents(ReadUnit(url=path, start=half, end=2 * half), source)
    assert second.origin == f"{path}:2" and again.origin == f"{path}@{half}"


def test_an_overlong_record_is_quarantined_without_being_held(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl([{"text": "ok"}, {"text": "x" * 5000}, {"text": "fine"}])
    first, second, third = read_all(SourceConfig(path=path, max_document_bytes=1000))
    assert isinstance(first, Document) and isinstance(third, Document)
    assert isinstance(second, Quarantined) and second.reason == "too_long"
    assert "source.max_document_bytes=1000" in second.detail


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(("name", "format"), [("bomb.jsonl", "jsonl"), ("bomb.txt", "text")])
def test_a_compression_bomb_is_one_refused_record(tmp_path: Path, name: str, format: str, ending: str) -> None:
    """160 MiB from a few kilobytes: the reader's peak stays far below, in a process of its own."""
    path = tmp_path / (name + ending)
    block = b"a" * (1 << 20)
    with path.open("wb") as out:
        opened = (
            gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1)
            if ending == ".gz"
            else zstandard.ZstdCompressor().stream_writer(out)
        )
        with opened as packed:
            for _ in range(160):
                packed.write(block)
    count, reason, grown_mib = read_alone(path, format, 1 << 20)
    assert (count, reason) == (1, "too_long") and grown_mib < 100


def test_metadata_is_carried(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl([{"text": "t", "url": "u", "n": 3, "left": "out"}])
    config = SourceConfig(path=path, name="web", metadata_fields=("url", "n", "absent"))
    [document] = read_all(config)
    assert isinstance(document, Document) and json.loads(document.metadata or "") == {"url": "u", "n": 3}
    assert document.source == "web"
