"""What a file is by its first bytes and its name: read whatever its ending, or refused by name; and how strictly."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from sharding.errors import MillError, RequestError
from sharding.records.types import Document, Quarantined
from sharding.sources import Source, SourceConfig
from sharding.sources.glances import glances_of
from sharding.sources.jsonl import parse_json_line
from sharding.sources.line_looks import looks_like
from sharding.sources.looks import kind_of, unpacked
from sharding.sources.places import locate
from tests.source_files import as_arrow, as_jsonl, as_parquet, gzipped, put, read_all, resolved, texts

RECORDS = [{"id": f"r{i}", "text": f"Text of number {i}."} for i in range(6)]
LINES = as_jsonl(RECORDS)
TEXTS = [record["text"] for record in RECORDS]
BOM = b"\xef\xbb\xbf"


def tar(members: dict[str, bytes], mode: str = "w", **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def v7_tar(data: bytes) -> bytes:
    """A header from before POSIX: no magic, a sum."""
    head = bytearray(tar({"a.jsonl": data})[:512])
    head[257:265] = bytes(8)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data.ljust(1024, b"\0")


zstd = zstandard.ZstdCompressor().compress
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"

READ: list[tuple[str, bytes, dict[str, Any]]] = [
    ("a.JSONL.GZ", gzipped(LINES), {}),
    ("a.jsonl.gzip", gzipped(LINES), {}),
    ("a.ndjson.zstd", zstd(LINES), {}),
    ("a.Jsonl.ZsT", zstd(LINES), {}),
    ("a.jsonl", gzipped(LINES), {}),
    ("a.jsonl", zstd(LINES), {}),
    ("a.jsonl.gz", LINES, {}),
    ("a.jsonl.gz", zstd(LINES), {}),
    ("a.jsonl.gz", gzipped(gzipped(LINES)), {}),
    ("a.jsonl.zst", zstd(gzipped(LINES)), {}),
    ("a.jsonl", SKIPPABLE + zstd(LINES), {}),
    ("part-00000", LINES, {}),
    ("part-00000", gzipped(LINES), {}),
    ("c4-train.json.gz", gzipped(LINES), {}),
    ("blob", zstd(LINES), {"format": "jsonl"}),
    ("blob", as_parquet(RECORDS), {}),
    ("blob.jsonl", as_parquet(RECORDS), {}),
    ("blob", as_arrow(RECORDS), {}),
    ("blob.bin", as_arrow(RECORDS, file=True), {}),
    ("a.jsonl", BOM + LINES, {}),
]


@pytest.mark.parametrize(("name", "data", "keys"), READ, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(READ)])
def test_what_can_be_read_is_read_whatever_its_name(
    tmp_path: Path, name: str, data: bytes, keys: dict[str, Any]
) -> None:
    path = put(str(tmp_path / name), data)
    assert texts(read_all(SourceConfig(path=path, id_field="id", **keys))) == TEXTS


@pytest.mark.parametrize("name", ["b.jsonl.part", "a.jsonl~", "b.jsonl.gz.TMP", "a.jsonl.bak"])
@pytest.mark.parametrize("format", [None, "jsonl"])
def test_what_is_left_half_written_or_as_a_copy_is_named(tmp_path: Path, name: str, format: str | None) -> None:
    put(str(tmp_path / "a.jsonl"), LINES)
    put(str(tmp_path / name), LINES)
    with pytest.raises(RequestError, match=rf"{name} is by its name unfinished, or a copy .* leave it out by a glob"):
        read_all(SourceConfig(path=str(tmp_path), format=format))
    for path in (tmp_path / name, tmp_path / f"*{name[1:]}"):
        assert texts(read_all(SourceConfig(path=str(path), format=format))) == TEXTS


def test_a_large_file_is_not_cut_where_its_bytes_say_that_it_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.sources.units.UNIT_BYTES", 64)
    put(str(tmp_path / "a.jsonl"), gzipped(LINES))
    assert texts(read_all(SourceConfig(path=str(tmp_path)))) == TEXTS


PAGE = b"\n<!-- cached -->\n<!DOCTYPE html>\n<html><body>404</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"cd" * 32 + b"\nsize 12345\n"
RUSSIAN = "Привет, как дела? " * 30
CHINESE = "漢字とかな 交じり文。" * 30
JSONL, TEXT = {"format": "jsonl"}, {"format": "text"}

REFUSED: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("a.tar", tar({"a.jsonl": LINES}), JSONL, "is a tar archive: unpack it"),
    ("a.jsonl", tar({"a.jsonl": LINES}), {}, "is a tar archive: unpack it"),
    ("a.jsonl", v7_tar(LINES), {}, "is a tar archive: unpack it"),
    ("a.txt", tar({"a": LINES}, format=tarfile.GNU_FORMAT), {}, "is a tar archive: unpack it"),
    ("a.tgz", gzipped(tar({"a": LINES})), {}, "is a tar archive: unpack it"),
    ("a.txt.gz", gzipped(tar({"a": LINES})), {}, "is a tar archive: unpack it"),
    ("a.jsonl.zst", zstd(tar({"a": LINES})), {}, "is a tar archive: unpack it"),
    ("a.jsonl", zipped({"a.jsonl": LINES}), {}, r"is a zip archive: .*zip://\*\*::file://.*a\.jsonl"),
    ("a.jsonl", bz2.compress(LINES), {}, "is compressed by bzip2: recompress it"),
    ("a.txt", lzma.compress(LINES, format=lzma.FORMAT_ALONE), {}, "is compressed by lzma: recompress it"),
    ("a.txt", b"070701" + b"0" * 104 + LINES, {}, "is a cpio archive: unpack it"),
    ("a.txt", b"!<arch>\n" + LINES, {}, "is an ar archive: unpack it"),
    ("a.txt", RUSSIAN.encode("utf-16-le"), {}, "is UTF-16, not UTF-8: convert it: iconv -f UTF-16LE"),
    ("a.txt.gz", gzipped(RUSSIAN.encode("utf-16-be")), {}, "is UTF-16, not UTF-8: convert it: .*UTF-16BE"),
    ("a.jsonl", CHINESE.encode("utf-16-be"), {}, "is UTF-16, not UTF-8: convert it: .*UTF-16BE"),
    ("a.txt", bytes(4000), {}, "is no text: of its first 4,000 bytes 4,000 are zero"),
    ("a.txt", gzipped(tar({})), {}, "is no text: of its first"),
    ("a.txt", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60), {}, "is no text: .* leave it out"),
    ("a.txt", BOM + POINTER, {}, "is a Git LFS pointer"),
    ("a.txt", b"\r\n" + POINTER.replace(b"\n", b"\r\n"), {}, "is a Git LFS pointer"),
    ("a.txt", b"<title>502 Bad Gateway</title><center>", {}, "is an HTML page: if it is an error page"),
    ("a.txt", b"<body><h1>Access denied</h1></body>", {}, "is an HTML page"),
    ("a.txt", b"<?xml version='1.0'?><ListBucketResult><Name>b</Name>", {}, "is an XML document"),
    ("a.txt", lzma.compress(LINES), {}, "is compressed by xz: recompress it"),
    ("a.txt", "Ein Satz.\n".encode("utf-16"), {}, "is UTF-16, not UTF-8: convert it: iconv -f UTF-16 "),
    ("a.txt", "Ein Satz.\n".encode("utf-16-be"), {}, "is UTF-16, not UTF-8: convert it: iconv -f UTF-16BE"),
    ("a.jsonl", LINES.decode().encode("utf-16-le"), {}, "is UTF-16, not UTF-8: .*UTF-16LE"),
    ("a.jsonl.gz", gzipped(LINES.decode().encode("utf-16")), {}, "is UTF-16, not UTF-8"),
    ("a.txt", "Ein Satz.\n".encode("utf-32"), {}, "is UTF-32, not UTF-8"),
    ("a.md", "Ein Satz.\n".encode("utf-32-be"), {}, "is UTF-32, not UTF-8: .*UTF-32BE"),
    ("a.txt", POINTER, {}, "is a Git LFS pointer, not the file: .*git lfs pull"),
    ("a.parquet", POINTER, {}, "is a Git LFS pointer, not the file"),
    ("a.jsonl", b"/annex/objects/MD5-s12--ab\n", {}, "is a git-annex pointer, not the file"),
    ("a.jsonl", PAGE, {}, "is an HTML page: if it is an error page"),
    ("a.txt", PAGE, {}, "is an HTML page"),
    ("a.parquet", PAGE, {}, "is an HTML page"),
    (
        "a.jsonl",
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
        {},
        "is the error answer of a store",
    ),
    ("a.jsonl", as_parquet(RECORDS), JSONL, "is a Parquet file: set format: parquet"),
    ("a.txt", as_arrow(RECORDS), TEXT, "is an Arrow stream: set format: arrow"),
    ("a.txt", b"%PDF-1.7\n%\xe2\xe3", {}, "is a PDF file: extract its text first"),
    ("a.jsonl", gzipped(gzipped(gzipped(gzipped(LINES)))), {}, "compressed more than 3 times"),
    ("a.txt", b"one\rtwo\rthree\r", {"document": "line"}, "has CR line ends"),
]


@pytest.mark.parametrize(
    ("name", "data", "keys", "said"), REFUSED, ids=[f"{i}-{said[:24]}" for i, (_, _, _, said) in enumerate(REFUSED)]
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes, keys: dict[str, Any], said: str
) -> None:
    put(str(tmp_path / name), data)
    with pytest.raises(RequestError, match=rf"/{name} .*{said}" if " " in said else said):
        read_all(SourceConfig(path=str(tmp_path), **keys))


def test_it_is_refused_when_it_is_opened_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every file of a large listing in an object store is looked at before."""
    monkeypatch.setattr("sharding.sources.glances.MAX_LOOKED_AT", 0)
    monkeypatch.setattr("sharding.sources.glances.has_checksum", lambda _: True)
    put(str(tmp_path / "a.txt"), POINTER)
    _, files = resolved(SourceConfig(path=str(tmp_path)))
    fs, path = locate(files[0].url)
    assert glances_of(fs, [(path, fs.info(path))])[0].kind is None
    with pytest.raises(RequestError, match=r"a\.txt is a Git LFS pointer"):
        read_all(SourceConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    "data",
    [
        "PK is not a zip archive, and BZh is no bzip2.",
        "version https://git-lfs.github.com/spec/v1 is how a pointer begins. " * 40,
        "PAR1 was the name of the first region.",
        "<h1>A page of Markdown</h1> that begins with a tag.",
        "MZ, GIF, WARC and tar are words.",
        "a\x00b and one NUL",
        "a b \x00 c \x00 d \x00 and some more of them in a text of some length. " * 9,
        "a\tb\tc \x00 \x00\n" * 2,
        "<h1 align=center>A page</h1>",
        "\ufffe",
    ],
)
def test_a_text_that_looks_a_little_like_something_else_is_text(tmp_path: Path, data: str) -> None:
    put(str(tmp_path / "a.txt"), data.encode())
    assert texts(read_all(SourceConfig(path=str(tmp_path)))) == [data]


def test_markup_is_text_where_name_and_format_say_so(tmp_path: Path) -> None:
    put(str(tmp_path / "a.html"), PAGE)
    assert texts(read_all(SourceConfig(path=str(tmp_path), format="text"))) == [PAGE.decode()]


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 511, 4096])
def test_a_head_of_any_length_is_looked_at(cut: int) -> None:
    for data in (LINES * 99, gzipped(LINES * 99), zstd(LINES * 99), tar({"a": LINES}), as_parquet(RECORDS), PAGE):
        head = unpacked(data[:cut])
        assert looks_like(head) is None or isinstance(looks_like(head), str)
        kind_of(head)


# --- strictness -------------------------------------------------------------------------------------------------------

SOURCE = Source("source", SourceConfig(path="f.jsonl", id_field="id", metadata_fields=("kind",)))
STRICT: list[tuple[bytes, str | None]] = [
    # (line, the metadata or the reason)
    (b'{"id": "a", "text": "t", "score": NaN}', None),
    (b'{"id": "a", "text": "t", "score": [1e999, -Infinity, {"x": NaN}]}', None),
    (b'{"id": "a", "text": "t", "note": "\\ud83d"}', None),
    (b'{"id": "a", "text": "t", "note": "caf\xe9"}', None),
    (b'{"id": "a", "text": "t", "note": "tab\tin it"}', None),
    (b'{"id": "a", "text": "t", "n": ' + b"9" * 5_000 + b"}", None),
    (b'{"id": "a", "text": "t", "\\udc00": 1}', None),
    (b'{"id": "a", "text": "t", "kind": NaN}', '{"kind": null}'),
    (b'{"id": "a", "text": "t", "kind": 1e999}', '{"kind": null}'),
    (b'{"id": "a", "text": "t", "kind": [-Infinity, 2]}', '{"kind": [null, 2]}'),
    (b'{"id": "a", "text": "t", "kind": {"x": NaN}, "note": "\\ud83d"}', '{"kind": {"x": null}}'),
    (b'{"id": "a", "text": "\\ud83d", "score": NaN}', "malformed_json"),
    (b'{"id": "a", "text": "t\xe9"}', "invalid_utf8"),
    (b'{"id": "a", "text": "tab\tin it"}', "malformed_json"),
    (b'{"id": "a", "text": "t", "kind": "\\udfff"}', "malformed_json"),
    (b'{"id": NaN, "text": "t"}', "missing_id"),
    (b'{"id": "a", "text": NaN}', "missing_text"),
    (b'{"id": "a", "score": NaN, "body": "t"}', "missing_text"),
    (b'{"id": "a", "text": "t", "score": nan}', "malformed_json"),
    (b'{"id": "a", "text": "t", "score": NaN', "malformed_json"),
]


@pytest.mark.parametrize(("line", "outcome"), STRICT)
def test_only_the_fields_of_the_config_are_strict(line: bytes, outcome: str | None) -> None:
    record = parse_json_line(line, "f.jsonl:1", SOURCE)
    if isinstance(record, Quarantined):
        assert record.reason == outcome
    else:
        assert (record.doc_id, record.text, record.metadata) == ("a", "t", outcome)


def test_what_a_record_without_text_has_is_told_all_the_same() -> None:
    record = parse_json_line(b'{"id": "a", "body": "t", "score": NaN}', "f.jsonl:1", SOURCE)
    assert isinstance(record, Quarantined) and "body, id, score" in record.detail


# --- joined files, padding, windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [1, 2])
def test_byte_order_marks_where_files_were_joined_are_no_text(tmp_path: Path, marks: int) -> None:
    mark = BOM * marks
    joined = mark + b"one\n\ntwo\n" + mark + b"\nthree\n"
    put(str(tmp_path / "a.txt"), joined)
    put(str(tmp_path / "a.jsonl"), mark + LINES + mark + b"\n" + mark + LINES)
    path = str(tmp_path / "a.txt")
    assert texts(read_all(SourceConfig(path=path))) == ["one\n\ntwo\n\nthree\n"]
    assert texts(read_all(SourceConfig(path=path, document="line"))) == ["one", "two", "three"]
    assert texts(read_all(SourceConfig(path=path, document="paragraph"))) == ["one", "two", "three"]
    assert texts(read_all(SourceConfig(path=str(tmp_path / "a.jsonl")))) == TEXTS * 2


@pytest.mark.parametrize("behind", [bytes(1), bytes(513), bytes(70_000), gzipped(LINES) + bytes(9)])
def test_zero_bytes_behind_gzip_are_padding(tmp_path: Path, behind: bytes) -> None:
    put(str(tmp_path / "a.jsonl.gz"), gzipped(LINES) + bytes(7) + behind)
    assert texts(read_all(SourceConfig(path=str(tmp_path)))) == TEXTS * (
        2 if len(behind) not in (1, 513, 70_000) else 1
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzipped(LINES)[:-4], "it is cut short: fetch it again"),
        (gzipped(LINES) + gzipped(LINES)[:5], "it is cut short: fetch it again"),
        (zstd(LINES)[:-3], "it is cut short: fetch it again"),
        (gzipped(LINES) + b"more", "something else follows its gzip stream: recompress it"),
        (zstd(LINES) + bytes(512), "something else follows its zstd frames: recompress it"),
    ],
)
def test_what_ends_wrongly_says_the_way_out(tmp_path: Path, data: bytes, said: str) -> None:
    path = put(str(tmp_path / "a.jsonl"), data)
    with pytest.raises(MillError, match=rf"cannot read .*a\.jsonl: .*{said}"):
        read_all(SourceConfig(path=path))


FIRST_LINES: list[tuple[bytes, str | None]] = [
    (b'{"text": "some text", "x": "\xff"}', None),
    (b'{"text": "some text", "\xe9": 1}', None),
    (b'{"text": "some text", "x": NaN}', None),
    (b'{"text": "some text", "x": "\t\xed\xa0\xbd"}', None),
    (b'{"text": "caf\xe9"}', "JSON lines with the fields 'text'"),
    (b'{"text": "some text"}{"text": "more"}', "JSON objects with something behind them on their lines"),
    (b'{"text": "some text"},', "JSON objects with something behind them on their lines"),
    (b'{"text":\n"some text"}', "JSON objects over several lines"),
]


@pytest.mark.parametrize(("line", "looks"), FIRST_LINES)
def test_a_first_line_of_any_kind_is_looked_at(tmp_path: Path, line: bytes, looks: str | None) -> None:
    path = put(str(tmp_path / "a.json"), line + b"\n")
    if looks is None:
        assert texts(read_all(SourceConfig(path=path))) == ["some text"]
    else:
        assert looks_like(line + b"\n") == looks
        assert not texts(read_all(SourceConfig(path=path, format="jsonl")))


def test_what_is_compressed_too_often_is_told_as_that(tmp_path: Path) -> None:
    data = LINES
    for _ in range(4):
        data = gzip.compress(data, mtime=0)
    with pytest.raises(RequestError, match="compressed more than 3 times over"):
        read_all(SourceConfig(path=put(str(tmp_path / "a.jsonl"), data)))


def test_bytes_without_line_ends_are_no_lines_with_cr() -> None:
    assert looks_like(b"\x9c\r\xff\r\xfe\r\x80") is None


def test_other_bytes_behind_gzip_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    put(str(tmp_path / "a.jsonl.gz"), gzipped(LINES) + b"\0\0rest")
    with pytest.raises(MillError, match=r"cannot read .*a\.jsonl\.gz: Not a gzipped file"):
        read_all(SourceConfig(path=str(tmp_path)))


@pytest.mark.parametrize("window_log", [28, 31])
@pytest.mark.parametrize("first", [b"", zstd(LINES)])
def test_a_wide_zstd_window_is_named_with_the_way_out(tmp_path: Path, window_log: int, first: bytes) -> None:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window_log, chain_log=6, hash_log=6, strategy=zstandard.STRATEGY_FAST
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    put(str(tmp_path / "a.jsonl.zst"), first + frame.compress(LINES) + frame.flush())
    with pytest.raises(MillError, match=r"cannot read .*a\.jsonl\.zst: .*window over 128 MiB .*recompress it"):
        read_all(SourceConfig(path=str(tmp_path)))


def test_no_parquet_by_that_name_says_what_it_looks_like(tmp_path: Path) -> None:
    put(str(tmp_path / "a.parquet"), LINES)
    with pytest.raises(MillError, match=r"a\.parquet: it is no parquet file, it looks like JSON lines with the fields"):
        read_all(SourceConfig(path=str(tmp_path)))


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


@pytest.mark.parametrize("ending", PACK)
def test_a_document_is_one_whatever_it_is_packed_in(tmp_path: Path, ending: str) -> None:
    put(str(tmp_path / f"a.txt.{ending}"), PACK[ending](json.dumps(RECORDS, indent=1).encode()))
    [record] = read_all(SourceConfig(path=str(tmp_path)))
    assert isinstance(record, Document) and json.loads(record.text) == RECORDS
