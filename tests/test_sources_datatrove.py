"""Sources that datatrove reads: a real WARC, CSV; what is broken is said, and what a key says wrongly costs no work."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import verify
from pipelines.run import mill
from pipelines.scorer_identity import source_sections
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.records.types import Document, Quarantined
from sharding.sources import SourceConfig, misplaced_key
from sharding.storage import manifest
from tests.source_files import put, read_all, resolved, texts

pytest.importorskip("magic", reason="libmagic is a library of the system", exc_type=ImportError)

HTML = [("Content-Type", "text/html; charset=utf-8")]


def crawl(*, gz: bool, pages: int = 4, broken: bool = False) -> bytes:
    """A crawl: of each page metadata, the answer and an image; where asked for, a page of no charset at the end."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=gz)

    def write(url: str, kind: str, body: bytes, headers: list[tuple[str, str]], **said: str) -> None:
        http = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1") if kind == "response" else None
        said = {"WARC-Record-ID": f"<urn:uuid:{url}{kind}>", "WARC-Date": "2026-01-02T03:04:05Z"} | said
        record = writer.create_warc_record(
            url,
            kind,
            payload=io.BytesIO(body),
            http_headers=http,
            warc_headers_dict=said,
            warc_content_type="text/plain",
        )
        writer.write_record(record)

    for number in range(pages):
        url = f"http://host/{number}"
        write(url, "metadata", b"a: b", [])
        write(url, "response", page(number).encode(), HTML)
        write(f"{url}.png", "response", b"\x89PNG\r\n\x1a\n" + bytes(40), [("Content-Type", "image/png")])
    if broken:
        write(
            "http://host/x",
            "response",
            bytes(range(128, 256)) * 3,
            HTML,
            **{"WARC-Identified-Payload-Type": "text/html"},
        )
    return out.getvalue()


def page(number: int) -> str:
    return f"<html><body><p>Page {number} says 氷河 and no more.</p></body></html>" + f"<!-- {number} -->" * 40


def refused(found: list[Document | Quarantined]) -> list[tuple[str, str]]:
    return [(record.reason, record.excerpt) for record in found if isinstance(record, Quarantined)]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "part-0"])
@pytest.mark.parametrize("format", [None, "warc"])
def test_the_pages_of_a_crawl_are_documents(tmp_path: Path, name: str, format: Any) -> None:
    path = put(str(tmp_path / name), crawl(gz=name.endswith(".gz")))
    found = read_all(SourceConfig(path=path, format=format, id_field="id", metadata_fields=("url", "date")))
    assert texts(found) == [page(number) for number in range(4)] and len(found) == 4
    first = found[0]
    assert isinstance(first, Document)
    assert first.doc_id == "<urn:uuid:http://host/0response>" and first.origin == f"file://{path}:2"
    assert first.metadata == '{"date": "2026-01-02T03:04:05Z", "url": "http://host/0"}'


def test_the_texts_of_a_wet_file_are_documents(tmp_path: Path) -> None:
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=True)
    for number in range(3):
        said = {"WARC-Identified-Payload-Type": "text/plain", "WARC-Date": "2026-01-02T03:04:05Z"}
        body = io.BytesIO(f"Text {number}.".encode())
        writer.write_record(
            writer.create_warc_record(
                f"http://host/{number}",
                "conversion",
                payload=body,
                warc_headers_dict=said,
                warc_content_type="text/plain",
            )
        )
    assert texts(read_all(SourceConfig(path=put(str(tmp_path / "a.warc.wet.gz"), out.getvalue())))) == [
        "Text 0.",
        "Text 1.",
        "Text 2.",
    ]


def test_a_page_that_cannot_be_decoded_is_in_quarantine(tmp_path: Path) -> None:
    path = put(str(tmp_path / "a.warc.gz"), crawl(gz=True, broken=True))
    found = read_all(SourceConfig(path=path))
    assert len(texts(found)) == 4 and refused(found) == [("undecodable", "http://host/x")]


def test_a_page_over_the_limit_is_in_quarantine_unread(tmp_path: Path) -> None:
    path = put(str(tmp_path / "a.warc"), crawl(gz=False))
    assert [reason for reason, _ in refused(read_all(SourceConfig(path=path, max_document_bytes=300)))] == [
        "too_long"
    ] * 4


def test_a_page_that_is_not_what_its_digest_says_is_in_quarantine(tmp_path: Path) -> None:
    data = crawl(gz=False).replace(b"Page 2 says", b"Page 7 says")
    found = read_all(SourceConfig(path=put(str(tmp_path / "a.warc"), data)))
    assert len(texts(found)) == 3 and refused(found) == [("damaged", "http://host/2")]


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("share", [0.999, 0.95, 0.9, 0.85, 0.7, 0.53, 0.31])
def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path, gz: bool, share: float) -> None:
    data = crawl(gz=gz)
    path = put(str(tmp_path / "a.warc"), data[: int(len(data) * share)])
    with pytest.raises(MillError, match=r"a\.warc.*cut short|a\.warc.*Compressed file ended"):
        read_all(SourceConfig(path=path))


@pytest.mark.parametrize("gz", [True, False])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, gz: bool) -> None:
    data = bytearray(crawl(gz=gz))
    place = len(data) // 2 if gz else data.rindex(b"WARC/1.")
    data[place] ^= 4
    with pytest.raises(MillError, match=r"cannot read .*a\.warc"):
        read_all(SourceConfig(path=put(str(tmp_path / "a.warc"), bytes(data))))


def test_what_is_no_warc_is_refused(tmp_path: Path) -> None:
    path = put(str(tmp_path / "a.warc"), b'{"text": "a"}\n' * 9)
    with pytest.raises(MillError, match=r"a\.warc"):
        read_all(SourceConfig(path=path))
    path = put(str(tmp_path / "b.jsonl"), crawl(gz=False))
    with pytest.raises(RequestError, match=r"b\.jsonl is a WARC file: set format: warc"):
        resolved(SourceConfig(path=path, format="jsonl"))


CSV = 'id,body,n\n1,"First, with a comma",x\n2,,y\n3,"Over\ntwo lines",z\n4\n5,extra,z,z,z\n'


def csv_source(path: str, **changes: Any) -> SourceConfig:
    return SourceConfig(**{"path": path, "format": "datatrove", "reader": "CSVReader", "text_field": "body", **changes})


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_comes_by_datatrove(tmp_path: Path, name: str) -> None:
    data = CSV.encode()
    path = put(str(tmp_path / name), gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    found = read_all(csv_source(path, id_field="id", metadata_fields=("n",)))
    assert texts(found) == ["First, with a comma", "Over\ntwo lines", "extra"]
    assert [reason for reason, _ in refused(found)] == ["empty", "missing_text"], "datatrove leaves these out"
    assert isinstance(found[0], Document) and (found[0].doc_id, found[0].metadata) == ("1", '{"n": "x"}')
    assert read_all(csv_source(path, id_field="no"))[0].reason == "missing_id"  # type: ignore[union-attr]


def test_a_long_field_and_a_damaged_file(tmp_path: Path) -> None:
    long = "a" * 200_000
    path = put(str(tmp_path / "a.csv"), f"body\n{long}\n".encode())
    assert texts(read_all(csv_source(path))) == [long]
    with pytest.raises(MillError, match=r"a\.csv after record 0: field larger than field limit \(1000\)"):
        read_all(csv_source(path, max_document_bytes=1000))
    with pytest.raises(MillError, match=r"cannot read .*b\.csv"):
        read_all(csv_source(put(str(tmp_path / "b.csv"), b"body\nfine\n\xff\xfe broken\n")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reader": None}, r"source\.reader: is not given; datatrove has CSVReader, WarcReader"),
        ({"reader": "CVSReader"}, r"source\.reader: 'CVSReader'; datatrove has CSVReader"),
        ({"reader": "JsonlReader"}, r"source\.reader: 'JsonlReader': the mill reads that itself.*format: jsonl"),
        ({"options": {"compresion": "gzip"}}, r"source\.options\.compresion: unknown; CSVReader has .*compression"),
        ({"options": {"limit": 5}}, r"source\.options\.limit: unknown"),
        ({"options": {"text_key": "x"}}, r"source\.options\.text_key: source\.text_field says that"),
    ],
)
def test_a_wrong_key_costs_no_work(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = put(str(tmp_path / "a.csv"), CSV.encode())
    with pytest.raises(RequestError, match=said):
        resolved(csv_source(path, **changes))


def test_the_keys_are_of_no_other_format() -> None:
    assert "reader: 'CSVReader' needs the format datatrove, and the format is not given" in str(
        misplaced_key(SourceConfig(path="x", reader="CSVReader"))
    )


@pytest.mark.parametrize("missing", ["warcio.archiveiterator", "magic", "cchardet"])
def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RequestError, match=r"source\.format: warc needs datatrove.*thoughtmill\[datatrove\]"):
        resolved(SourceConfig(path=put(str(tmp_path / "a.warc"), crawl(gz=False))))


def test_a_crawl_is_milled_and_resumed(tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "crawl").mkdir()
    for number, pages in enumerate((2, 3)):
        put(str(tmp_path / "crawl" / f"{number}.warc.gz"), crawl(gz=True, pages=pages))
    tree = rehearsal_config("") | {"source": {"path": str(tmp_path / "crawl")}, "duplicates": "drop"}
    mill(from_mapping(tree))
    scored = manifest.require(tree["output"], "score")
    assert (scored.counts["documents_in"], scored.counts["documents"]) == (5, 3)
    assert not verify.verify(tree["output"]).problems
    assert mill(from_mapping(tree), stages=["score"])["score"] == scored
    put(str(tmp_path / "crawl" / "1.warc.gz"), crawl(gz=True, pages=4))
    with pytest.raises(RequestError, match="input source"):
        mill(from_mapping(tree), stages=["score"])


def test_what_a_reader_is_told_is_part_of_what_was_scored(rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    def section(source: dict[str, Any]) -> dict[str, Any]:
        return dict(source_sections(from_mapping(rehearsal_config("x") | {"source": source}))["source"])

    plain = {"path": "x", "format": "datatrove", "reader": "CSVReader"}
    told = section(plain | {"options": {"compression": "gzip"}})
    assert told["options"] == {"compression": "gzip"} and told != section(plain)
    assert not {"reader", "options"} & set(section({"path": "x"})), "scores of before are still done"
