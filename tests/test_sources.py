"""Listing a source: which files, which format, what is refused before any work, and how files are cut."""

import bz2
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem

from sharding import sources, storage
from sharding.errors import MillError, RequestError
from sharding.sources import ReadUnit, Source, SourceConfig, SourceFile, misplaced_key
from sharding.sources.units import CHUNK_FILES, UNIT_BYTES
from sharding.sources.versions import versions_of
from tests.source_files import as_arrow, as_jsonl, as_parquet, gzipped, put, read_all, resolved, texts

RECORDS = [{"id": str(i), "text": f"text {i}", "n": i} for i in range(4)]


def names(folder: Path, **keys: Any) -> list[str]:
    _, files = resolved(SourceConfig(path=str(folder), **keys))
    return [file.url.removeprefix(f"file://{folder}/") for file in files]


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("x.jsonl", as_jsonl(RECORDS), "jsonl"),
        ("x.ndjson.gz", gzipped(as_jsonl(RECORDS)), "jsonl"),
        ("x.PARQUET", as_parquet(RECORDS), "parquet"),
        ("x.arrow", as_arrow(RECORDS), "arrow"),
        ("x.feather", as_arrow(RECORDS, file=True), "arrow"),
        ("x.txt.zst", zstandard.compress(b"text"), "text"),
        ("x.md", b"# x", "text"),
    ],
)
def test_the_ending_tells_the_format(tmp_path: Path, name: str, data: bytes, found: str) -> None:
    source, _ = resolved(SourceConfig(path=put(str(tmp_path / name), data)))
    assert source.config.format == found


def test_a_given_format_goes_before_the_ending(tmp_path: Path) -> None:
    put(str(tmp_path / "x.json"), as_jsonl(RECORDS))
    put(str(tmp_path / "part-0"), as_jsonl(RECORDS))
    assert len(read_all(SourceConfig(path=str(tmp_path), format="jsonl"))) == 8


def test_a_folder_of_several_formats_names_the_stray_file(tmp_path: Path) -> None:
    put(str(tmp_path / "a.jsonl"), b"")
    put(str(tmp_path / "b.parquet"), b"")
    with pytest.raises(RequestError, match=r"sources\.2\.path.*b\.parquet is parquet"):
        resolved(SourceConfig(path=str(tmp_path)), "sources.2")


@pytest.mark.parametrize("name", ["x.csv", "x.json", "part-0", "x.tar.gz"])
def test_a_file_that_tells_no_format_is_named(tmp_path: Path, name: str) -> None:
    put(str(tmp_path / name), b"")
    with pytest.raises(RequestError, match=rf"source\.format: .*{name} .*\.jsonl.*set source\.format"):
        resolved(SourceConfig(path=str(tmp_path)))


def test_another_compression_is_not_taken_for_text(tmp_path: Path) -> None:
    put(str(tmp_path / "x.jsonl.bz2"), bz2.compress(as_jsonl(RECORDS)))
    with pytest.raises(RequestError, match=r"x\.jsonl\.bz2 is compressed by bzip2.*\.gz or \.zst"):
        resolved(SourceConfig(path=str(tmp_path), format="jsonl"))


def test_what_other_writers_leave_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "_temporary" / "0").mkdir(parents=True)
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "deep/a.jsonl", "_SUCCESS", ".b.jsonl.crc", "_temporary/0/c.jsonl"):
        put(str(tmp_path / name), as_jsonl(RECORDS))
    assert names(tmp_path) == ["b.jsonl", "deep/a.jsonl"]
    _, files = resolved(SourceConfig(path=str(tmp_path / "**" / "*.jsonl")))
    assert [Path(file.url).name for file in files] == ["b.jsonl", "a.jsonl"]
    _, asked_for = resolved(SourceConfig(path=str(tmp_path / "_*" / "*" / "c.jsonl")))
    assert [Path(file.url).name for file in asked_for] == ["c.jsonl"]


def test_nothing_matches(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "*.jsonl", tmp_path / "no" / "folder"):
        with pytest.raises(RequestError, match=r"source\.path"):
            resolved(SourceConfig(path=str(path)))


def test_an_unknown_store_names_the_way_out() -> None:
    with pytest.raises(RequestError, match="nosuch"):
        resolved(SourceConfig(path="nosuch://bucket/x"))


MISPLACED = [
    ({"split": "train"}, "split: 'train' needs the format huggingface"),
    ({"format": "parquet", "revision": "main"}, "revision: 'main' needs .* the format is parquet"),
    ({"format": "jsonl", "document": "line"}, "document: 'line' needs the format text"),
    ({"format": "text", "id_field": "id"}, "id_field: 'id' needs the format jsonl or"),
    ({"format": "text", "metadata_fields": ("a",)}, "metadata_fields: .*'a'"),
    ({"format": "text", "text_field": "body"}, "text_field: 'body'"),
]


@pytest.mark.parametrize(("keys", "said"), MISPLACED, ids=[next(reversed(keys)) for keys, _ in MISPLACED])
def test_a_key_of_another_format_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=rf"sources\.0\.{said}"):
        resolved(SourceConfig(path="x", **keys), "sources.0")


def test_a_key_that_the_found_format_does_not_know_is_refused(tmp_path: Path) -> None:
    path = put(str(tmp_path / "x.txt"), b"x")
    config = SourceConfig(path=path, id_field="id")
    assert misplaced_key(config) is None
    with pytest.raises(RequestError, match=r"source\.id_field: 'id' needs .* the format is text"):
        resolved(config)


WRONG_COLUMNS = [
    (
        {"text_field": "body"},
        r"sources\.1\.text_field: 'body' is no column of .*x\.{ending}; it has: id, text, n, score",
    ),
    ({"text_field": "n"}, r"sources\.1\.text_field: 'n' is int64"),
    ({"id_field": "key"}, r"sources\.1\.id_field: 'key' is no column"),
    ({"id_field": "score"}, r"sources\.1\.id_field: 'score' is double"),
    ({"metadata_fields": ("n", "url")}, r"sources\.1\.metadata_fields\.1: 'url' is no column"),
]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize(("keys", "said"), WRONG_COLUMNS)
def test_a_wrong_column_is_known_before_any_work(tmp_path: Path, ending: str, keys: dict[str, Any], said: str) -> None:
    records = [{"id": "a", "text": "t", "n": 1, "score": 0.5}]
    data = {
        "parquet": as_parquet(records),
        "arrow": as_arrow(records),
        "feather": as_arrow(records, file=True),
    }[ending]
    config = SourceConfig(path=put(str(tmp_path / f"x.{ending}"), data), **keys)
    with pytest.raises(RequestError, match=said.replace("{ending}", ending)):
        resolved(config, "sources.1")


def test_a_later_file_without_the_column_is_named(tmp_path: Path) -> None:
    put(str(tmp_path / "a.parquet"), as_parquet(RECORDS))
    put(str(tmp_path / "b.parquet"), as_parquet([{"body": "x"}]))
    with pytest.raises(RequestError, match=r"source\.text_field: 'text' is no column of .*b\.parquet; it has: body"):
        read_all(SourceConfig(path=str(tmp_path)))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_what_is_no_such_file_is_named(tmp_path: Path, ending: str) -> None:
    for data in (b"x", b"no such thing at all, but longer than any header might be" * 9):
        path = put(str(tmp_path / f"x.{ending}"), data)
        with pytest.raises(MillError, match=rf"cannot read .*x\.{ending}"):
            resolved(SourceConfig(path=path))


# --- cutting ----------------------------------------------------------------------------------------------------------

BIG = 3 * UNIT_BYTES + 5
CUTS: list[tuple[str, dict[str, Any], int]] = [
    ("a.jsonl", {"format": "jsonl"}, 4),
    ("a.jsonl.gz", {"format": "jsonl"}, 1),
    ("a.parquet", {"format": "parquet"}, 4),
    ("a.arrow", {"format": "arrow"}, 4),
    ("a.txt", {"format": "text"}, 1),
    ("a.txt", {"format": "text", "document": "file"}, 1),
    ("a.txt", {"format": "text", "document": "line"}, 4),
    ("a.txt", {"format": "text", "document": "paragraph"}, 4),
    ("a.txt.zst", {"format": "text", "document": "line"}, 1),
]


@pytest.mark.parametrize(("name", "keys", "pieces"), CUTS)
def test_large_files_are_cut_where_they_can_be(name: str, keys: dict[str, Any], pieces: int) -> None:
    config = SourceConfig(path=name, **keys)
    units = list(sources.units_of(SourceFile(url=name, size_bytes=BIG, version="", seen="v"), config, 7))
    assert len(units) == pieces and all(unit.source == 7 and unit.url == name for unit in units)
    if pieces == 1:
        assert units == [ReadUnit(url=name, source=7, version="v")]
    else:
        assert units[0].start == 0 and (units[-1].end or 0) >= BIG
        assert all(before.end == after.start for before, after in itertools.pairwise(units))
    [small] = sources.units_of(SourceFile(url=name, size_bytes=UNIT_BYTES, version="", seen="v"), config)
    assert small == ReadUnit(url=name, version="v")


def test_a_listing_travels_in_small_pieces_and_comes_back() -> None:
    files = [
        SourceFile(url=f"s3://bucket/some/folder/part-{i:06d}.jsonl.zst", size_bytes=i, version=f"{i}-etag")
        for i in range(3 * CHUNK_FILES + 1)
    ]
    pieces = sources.pack_listing(files, 2)
    assert len(pieces) == 4 and sum(map(len, pieces)) < 20 * len(files)
    back = [sources.unpack_listing(piece) for piece in pieces]
    assert {source for source, _ in back} == {2}
    assert [file for _, members in back for file in members] == files


def test_the_digest_tells_versions_and_sources_apart() -> None:
    one, two = (SourceFile(url="a", size_bytes=1, version=version) for version in "12")
    digests = [sources.listing_digest(listing) for listing in ([[one]], [[two]], [[one], [two]], [[one, two]])]
    assert len(set(digests)) == 4 and digests[0] == sources.listing_digest([[one]])


def test_a_changed_file_changes_the_version(tmp_path: Path) -> None:
    path = put(str(tmp_path / "a.jsonl"), b"{}")
    before = resolved(SourceConfig(path=path))[1]
    put(path, b"{ }")
    assert sources.listing_digest([before]) != sources.listing_digest([resolved(SourceConfig(path=path))[1]])


KB = 1 << 10


@pytest.mark.parametrize("at", [0, 63 * KB, 100 * KB, 200 * KB - 1, 200 * KB - 64 * KB])
def test_a_file_that_was_replaced_by_one_of_equal_size_and_time_is_another(tmp_path: Path, at: int) -> None:
    path = put(str(tmp_path / "a.txt"), b"a" * 200 * KB)
    before, facts = resolved(SourceConfig(path=path))[1], Path(path).stat()
    assert resolved(SourceConfig(path=path))[1] == before
    put(path, b"a" * at + b"b" + b"a" * (200 * KB - 1 - at))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    after = resolved(SourceConfig(path=path))[1]
    assert after[0].size_bytes == before[0].size_bytes
    assert sources.listing_digest([before]) != sources.listing_digest([after])


@pytest.mark.parametrize("size", [10, 200 * KB])
def test_a_file_that_is_only_touched_is_the_same(tmp_path: Path, size: int) -> None:
    path = put(str(tmp_path / "a.txt"), b"a" * size)
    before = resolved(SourceConfig(path=path))[1]
    os.utime(path, (1, 1))
    after = resolved(SourceConfig(path=path))[1]
    assert sources.listing_digest([before]) == sources.listing_digest([after]) and before != after
    put(path, b"a" * size)
    assert sources.listing_digest([before]) == sources.listing_digest([resolved(SourceConfig(path=path))[1]])


@pytest.mark.parametrize("size", [1, 10, 64 * KB, 64 * KB + 1, 128 * KB])
def test_the_ends_of_a_short_file_are_the_file(tmp_path: Path, size: int) -> None:
    fs, path = storage.filesystem(str(tmp_path / "a"))
    versions = []
    for byte in (b"a", b"b"):
        for at in {0, size // 2, size - 1}:
            (tmp_path / "a").write_bytes(b"a" * at + byte + b"a" * (size - 1 - at))
            os.utime(path, (1, 1))
            versions.append(versions_of(fs, [(path, fs.info(path))])[0])
    assert len(set(versions)) == 1 + len({0, size // 2, size - 1})


def test_many_files_are_glanced_at_more_briefly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path = storage.filesystem(str(tmp_path / "a"))
    (tmp_path / "a").write_bytes(b"a" * 10_000)
    read: list[int] = []
    cat_file = type(fs).cat_file
    monkeypatch.setattr(
        type(fs), "cat_file", lambda fs, path, start, end: read.append(end - start) or cat_file(fs, path, start, end)
    )
    monkeypatch.setattr(sources.versions, "LISTING_BYTES", 20_000)
    monkeypatch.setattr(sources.versions, "MAX_READ_WHOLE", 0)
    versions_of(fs, [(path, fs.info(path))])
    assert sum(read) == 10_000
    read.clear()
    versions_of(fs, [(path, fs.info(path))] * 10)
    assert set(read) == {1000} and len(read) == 20
    read.clear()
    versions_of(fs, [(path, fs.info(path))] * 100)
    assert set(read) == {512}


def test_a_checksum_of_the_store_is_taken_as_it_is() -> None:
    class Unread(MemoryFileSystem):
        def cat_file(self, *_: object, **__: object) -> bytes:
            raise AssertionError("a listing must not read what the store says itself")

    files = [("/a", {"size": 3, "ETag": '"abc"'}), ("/b", {"size": 4, "etag": "x", "md5Hash": "=="})]
    assert versions_of(Unread(), files) == ['3-"abc"', "4-=="]


def test_a_file_that_cannot_be_glanced_at_is_named(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "gone.txt"))
    with pytest.raises(MillError, match=r"cannot read .*gone\.txt"):
        versions_of(fs, [(path, {"size": 1, "mtime": 1.0})])


def test_the_size_of_the_text_is_estimated() -> None:
    files = [SourceFile(url=url, size_bytes=10, version="v") for url in ("a.jsonl", "b.jsonl.gz")]
    assert sources.text_bytes(files, SourceConfig(path="x", format="jsonl")) == 10 + 40
    assert sources.text_bytes([files[0]], SourceConfig(path="x", format="parquet")) == 40


# --- folders that datasets saved --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved datasets `one` (of one split in two files, with a cache beside it) and `several`."""
    from datasets import Dataset, DatasetDict

    folder = tmp_path_factory.mktemp("saved")
    dataset = Dataset.from_list(RECORDS)
    dataset.save_to_disk(str(folder / "one"), num_shards=2)
    DatasetDict({"train": dataset, "test": dataset.select(range(1))}).save_to_disk(str(folder / "several"))
    put(str(folder / "one" / "cache-1234.arrow"), as_arrow([{"id": "stale", "text": "stale"}]))
    return folder


@pytest.mark.parametrize(
    ("name", "keys", "count"),
    [
        ("one", {}, 4),
        ("one", {"format": "arrow"}, 4),
        ("one", {"format": "huggingface"}, 4),
        ("several/train", {}, 4),
        ("several", {"format": "huggingface"}, 4),
        ("several", {"format": "huggingface", "split": "test"}, 1),
    ],
)
def test_a_saved_dataset_is_read_without_its_caches(saved: Path, name: str, keys: dict[str, Any], count: int) -> None:
    config = SourceConfig(path=str(saved / name), id_field="id", **keys)
    found = read_all(config)
    assert texts(found) == [record["text"] for record in RECORDS[:count]]


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("several", {}, r"source\.path: .*several splits"),
        ("several", {"format": "huggingface", "split": "dev"}, r"source\.split: 'dev' is not one of train, test"),
        ("one", {"format": "huggingface", "split": "train"}, r"source\.split: .*without splits"),
        ("one", {"format": "huggingface", "subset": "x"}, r"source\.subset: .*saved dataset"),
    ],
)
def test_what_a_saved_dataset_lacks_is_refused(saved: Path, name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        resolved(SourceConfig(path=str(saved / name), **keys))


def test_a_saved_dataset_may_be_in_any_store(saved: Path) -> None:
    for file in (saved / "one").iterdir():
        put(f"memory://sources-saved/{file.name}", file.read_bytes())
    assert len(read_all(SourceConfig(path="memory://sources-saved", format="huggingface"))) == 4


def test_a_saved_dataset_without_its_file_is_an_error(saved: Path, tmp_path: Path) -> None:
    put(str(tmp_path / "state.json"), json.dumps({"_data_files": [{"filename": "gone.arrow"}]}).encode())
    with pytest.raises(MillError, match=r"gone\.arrow"):
        resolved(SourceConfig(path=str(tmp_path)))


def test_sources_are_described_by_their_keys() -> None:
    assert Source("sources.1", SourceConfig(path="x")) == Source("sources.1", SourceConfig(path="x"))
