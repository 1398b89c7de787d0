"""Parquet, Arrow and datasets: the same documents as from JSON lines, each once whatever the cut, in bounded memory."""

import datetime
import decimal
import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import sources
from sharding.errors import MillError, RequestError
from sharding.records.types import Document, Quarantined
from sharding.sources import ReadUnit, Source, SourceConfig
from sharding.sources.columns import documents_of
from tests.source_files import WRITERS, as_arrow, as_jsonl, as_parquet, put, read_all, read_alone, resolved, texts

RECORDS = [
    {
        "id": f"d{i}",
        "text": f"Text {i}: dreißig 日本\x00\n" * (i + 1),
        "n": i,
        "url": None if i == 2 else f"u{i}",
        "tags": ["a", str(i)],
        "of": {"score": i / 4, "good": i % 2 == 0},
    }
    for i in range(8)
]
METADATA = ("n", "url", "tags", "of")


def stripped(found: list[Document | Quarantined]) -> list[tuple[str, str, str | None]]:
    assert all(isinstance(record, Document) for record in found), found
    return [(d.doc_id, d.text, d.metadata) for d in found if isinstance(d, Document)]


@pytest.fixture(scope="module")
def expected() -> list[tuple[str, str, str | None]]:
    path = put("memory://sources-columns/expected.jsonl", as_jsonl(RECORDS))
    return stripped(read_all(SourceConfig(path=path, id_field="id", metadata_fields=METADATA)))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("store", ["local", "memory"])
def test_every_format_yields_the_same_documents(tmp_path: Path, store: str, name: str, expected: Any) -> None:
    folder = str(tmp_path) if store == "local" else "memory://sources-columns"
    path = put(f"{folder}/{name}", WRITERS[name](RECORDS))
    assert stripped(read_all(SourceConfig(path=path, id_field="id", metadata_fields=METADATA))) == expected
    without_ids = read_all(SourceConfig(path=path))
    assert [d.text for d in without_ids if isinstance(d, Document)] == [record["text"] for record in RECORDS]
    assert len({d.doc_id for d in without_ids}) == len(RECORDS)


def dataset_folder(folder: Path, kind: str) -> str:
    """Three files of the records that `datasets` opens as one dataset."""
    for i, first in enumerate(range(0, 8, 3)):
        some = RECORDS[first : first + 3]
        if kind == "parquet":
            # Without the schema of all records a column of nulls would have another type in each file.
            table = pa.Table.from_pylist(some, schema=pa.Table.from_pylist(RECORDS).schema)
            pq.write_table(table, folder / f"part-{i}.parquet")
        else:
            put(str(folder / f"part-{i}.jsonl"), as_jsonl(some))
    return str(folder)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_local_dataset_yields_the_same_documents_shard_by_shard(tmp_path: Path, kind: str, expected: Any) -> None:
    config = SourceConfig(
        path=dataset_folder(tmp_path, kind), format="huggingface", id_field="id", metadata_fields=METADATA
    )
    source, files = resolved(config)
    assert [file.shard for file in files] == [0, 1, 2] and source.config.split == "train"
    found = [
        list(sources.read_documents(unit, source)) for file in files for unit in sources.units_of(file, source.config)
    ]
    assert [len(shard) for shard in found] == [3, 3, 2]
    assert stripped([record for shard in found for record in shard]) == expected
    assert found[1][0].origin == f"{tmp_path}[train]#1:0"


DATASET_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"split": "dev"}, r"source\.split: 'dev' is not one of train"),
    ({"subset": "nope"}, r"source: cannot open .*nope.*not found"),
    ({"revision": "main"}, r"source\.revision: .*local folder"),
    ({"text_field": "body"}, r"source\.text_field: 'body' is no column of .*; it has: id, text, n"),
    ({"text_field": "n"}, r"source\.text_field: 'n' is int64"),
]


@pytest.mark.parametrize(("keys", "said"), DATASET_MISTAKES, ids=[next(iter(keys)) for keys, _ in DATASET_MISTAKES])
def test_what_a_dataset_lacks_is_known_before_any_work(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    config = SourceConfig(path=dataset_folder(tmp_path, "parquet"), format="huggingface", **keys)
    with pytest.raises(RequestError, match=said):
        resolved(config)


def test_a_damaged_dataset_is_an_error_that_names_the_shard(tmp_path: Path) -> None:
    config = SourceConfig(path=dataset_folder(tmp_path, "parquet"), format="huggingface")
    source, files = resolved(config)
    path = tmp_path / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(list(sources.read_documents(ReadUnit(url=files[0].url, shard=0), source))) == 3
    with pytest.raises(MillError, match=r"cannot read .*\[train\]#1"):
        list(sources.read_documents(ReadUnit(url=files[1].url, shard=1), source))


def test_a_changed_dataset_is_another_version(tmp_path: Path) -> None:
    config = SourceConfig(path=dataset_folder(tmp_path, "jsonl"), format="huggingface")
    before = sources.listing_digest([resolved(config)[1]])
    assert sources.listing_digest([resolved(config)[1]]) == before
    path = tmp_path / "part-1.jsonl"
    facts = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Text", b"text"))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    swapped = sources.listing_digest([resolved(config)[1]])
    assert swapped != before, "of equal size and time"
    before = swapped
    put(str(tmp_path / "part-3.jsonl"), as_jsonl(RECORDS[:1]))
    assert sources.listing_digest([resolved(config)[1]]) != before


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"source\.format: .*pip install 'thoughtmill\[datasets\]'"):
        resolved(SourceConfig(path=str(tmp_path), format="huggingface"))


def test_a_dataset_on_the_hub_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    folder, asked, load = dataset_folder(tmp_path, "jsonl"), [], datasets.load_dataset

    def on_hub(path: str, name: str | None, *, revision: str | None, **keys: Any) -> Any:
        asked.append((path, revision))
        return load(folder, name, **keys)

    class Found:
        sha, siblings = "c0ffee", None

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Found())
    monkeypatch.setattr(datasets, "load_dataset", on_hub)
    source, files = resolved(SourceConfig(path="acme/prose", format="huggingface", revision="v1"))
    assert source.config.revision == "c0ffee" and {file.version for file in files} == {"c0ffee"}
    [unit] = sources.units_of(files[2], source.config)
    assert texts(list(sources.read_documents(unit, source))) == [record["text"] for record in RECORDS[6:]]
    assert set(asked) == {("acme/prose", "c0ffee")}


def test_an_unreachable_hub_is_no_fault_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(MillError, match=r"source\.path: 'acme/prose' .*no route") as raised:
        resolved(SourceConfig(path="acme/prose", format="huggingface"))
    assert not isinstance(raised.value, RequestError)


# --- cuts -------------------------------------------------------------------------------------------------------------


def in_units(url: str, size_bytes: int, unit_bytes: int, format: Any) -> list[Document | Quarantined]:
    source = Source("source", SourceConfig(path=url, format=format, id_field="id"))
    units = [ReadUnit(url=url, start=s, end=s + unit_bytes) for s in range(0, size_bytes, unit_bytes)]
    return [record for unit in units for record in sources.read_documents(unit, source)]


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    group_rows=st.integers(1, 12),
    unit_bytes=st.integers(20, 4000),
    kind=st.sampled_from(["parquet", "plain parquet", "file", "stream"]),
)
def test_every_cut_holds_every_row_once(rows: int, group_rows: int, unit_bytes: int, kind: str) -> None:
    records = [{"id": str(i), "text": f"text {i}"} for i in range(rows)]
    if "parquet" in kind:
        data = as_parquet(records, row_group_size=group_rows, use_dictionary=kind == "parquet")
    else:
        data = as_arrow(records, file=kind == "file", batch_rows=group_rows)
    url = put("memory://sources-columns/cut", data)
    found = in_units(url, len(data), unit_bytes, "parquet" if "parquet" in kind else "arrow")
    assert [d.doc_id for d in found if isinstance(d, Document)] == [str(i) for i in range(rows)]
    assert len({d.origin for d in found}) == rows


def test_a_row_knows_its_place_in_the_file() -> None:
    url = put("memory://sources-columns/places", as_parquet(RECORDS, row_group_size=3))
    found = read_all(SourceConfig(path=url, format="parquet"))
    assert [record.origin.rsplit("/", 1)[1] for record in found] == [f"places:{i}" for i in range(8)]
    url = put("memory://sources-columns/places", as_arrow(RECORDS, file=True))
    assert read_all(SourceConfig(path=url, format="arrow"))[4].origin.endswith("/places:1:1")


# --- values -----------------------------------------------------------------------------------------------------------

VALUES: list[tuple[pa.Array, Any]] = [
    (pa.array([True]), True),
    (pa.array([-5], pa.int8()), -5),
    (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    (pa.array([np.float16(0.5)]), 0.5),
    (pa.array([float("nan")]), None),
    (pa.array([[float("inf"), 1.0]]), [None, 1.0]),
    (pa.array(["x"], pa.large_string()), "x"),
    (pa.array(["x"], pa.string_view()), "x"),
    (pa.array(["x"]).dictionary_encode(), "x"),
    (pa.array([b"\x00\xff"]), "AP8="),
    (pa.array([b"\x00\xff"], pa.binary(2)), "AP8="),
    (pa.array([datetime.date(2020, 2, 29)]), "2020-02-29"),
    (pa.array([2**30], pa.date32()), None),
    (pa.array([2**60], pa.timestamp("us", "UTC")), None),
    (pa.array([2**60], pa.timestamp("s")), None),
    (pa.array([2**62], pa.duration("s")), None),
    (pa.array([[2**30]], pa.list_(pa.date32())), None),
    (pa.array([1_000_000], pa.timestamp("us", "Mars/Olympus")), "1970-01-01T00:00:01+00:00"),
    (pa.array([datetime.time(1, 2, 3, 4)]), "01:02:03.000004"),
    (pa.array([1_600_000_000_123_456_789], pa.timestamp("ns")), "2020-09-13T12:26:40.123456"),
    (pa.array([1_600_000_000], pa.timestamp("s", tz="UTC")), "2020-09-13T12:26:40+00:00"),
    (pa.array([1_500_000_001], pa.duration("ns")), 1.5),
    (pa.array([decimal.Decimal("1.10")]), "1.10"),
    (pa.array([{"a": [1, None], "b": {"c": "d"}}]), {"a": [1, None], "b": {"c": "d"}}),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
    (pa.array([None], pa.null()), None),
]


@pytest.mark.parametrize(("column", "value"), VALUES, ids=[str(column.type) for column, _ in VALUES])
def test_metadata_of_any_type_becomes_json(column: pa.Array, value: Any) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["text"]), column], ["text", "m"])
    source = Source("source", SourceConfig(path="x", format="arrow", metadata_fields=("m",)))
    [document] = documents_of(batch, source, str)
    assert isinstance(document, Document) and json.loads(document.metadata or "") == {"m": value}


TEXT_COLUMNS: dict[str, Callable[[list[bytes | None]], pa.Array]] = {
    "string": lambda cells: pa.array(cells, pa.binary()).view(pa.string()),
    "large_string": lambda cells: pa.array(cells, pa.large_binary()).view(pa.large_string()),
    "binary": lambda cells: pa.array(cells, pa.binary()),
    "binary_view": lambda cells: pa.array(cells, pa.binary_view()),
    "dictionary": lambda cells: pa.array(cells, pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TEXT_COLUMNS)
def test_every_row_ends_as_a_document_or_with_a_reason(kind: str) -> None:
    cells = [b"good", None, b"", b"\xff\xfe", b"x" * 101, "dreißig".encode(), b"id is null"]
    ids = pa.array(["a", "b", "c", "d", "e", "f", None])
    batch = pa.RecordBatch.from_arrays([TEXT_COLUMNS[kind](cells), ids], ["text", "id"])
    source = Source("sources.0", SourceConfig(path="x", format="arrow", id_field="id", max_document_bytes=100))
    found = list(documents_of(batch, source, lambda row: f"x:{row}"))
    said = [record.doc_id if isinstance(record, Document) else record.reason for record in found]
    assert said == ["a", "missing_text", "empty", "invalid_utf8", "too_long", "f", "missing_id"]
    assert [record.origin for record in found] == [f"x:{row}" for row in range(7)]
    refused = found[4]
    assert isinstance(refused, Quarantined) and refused.detail.endswith("sources.0.max_document_bytes=100")


def test_a_long_cell_of_metadata_is_refused_too() -> None:
    batch = pa.RecordBatch.from_pydict({"text": ["a", "b"], "raw": ["x" * 101, "x"]})
    source = Source("source", SourceConfig(path="x", format="arrow", metadata_fields=("raw",), max_document_bytes=100))
    assert [type(record) for record in documents_of(batch, source, str)] == [Quarantined, Document]


def test_integer_ids_are_their_digits(tmp_path: Path) -> None:
    path = put(str(tmp_path / "a.parquet"), as_parquet([{"id": 7, "text": "a"}, {"id": -1, "text": "b"}]))
    assert [d.doc_id for d in read_all(SourceConfig(path=path, id_field="id"))] == ["7", "-1"]


def test_an_empty_file_among_others_is_told_and_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for ending in ("parquet", "arrow"):
        (tmp_path / ending).mkdir()
        put(str(tmp_path / ending / f"a.{ending}"), b"")
        data = as_parquet(RECORDS) if ending == "parquet" else as_arrow(RECORDS)
        put(str(tmp_path / ending / f"b.{ending}"), data)
        assert len(read_all(SourceConfig(path=str(tmp_path / ending), max_quarantined=0.5))) == len(RECORDS)
        assert f"a.{ending}: none of it will become a document; it looks like an empty file" in caplog.text


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.parquet", "a.arrow.gz"])
def test_what_is_compressed_as_a_whole_is_named(tmp_path: Path, name: str) -> None:
    data = as_parquet(RECORDS) if "parquet" in name else as_arrow(RECORDS)
    path = put(str(tmp_path / name), gzip.compress(data))
    with pytest.raises(RequestError, match=rf"{name} is compressed by gzip as a whole, .*unpack it"):
        read_all(SourceConfig(path=path))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "file", "stream", "stream.zst"])
@pytest.mark.parametrize("store", ["local", "memory"])
def test_a_file_cut_anywhere_is_an_error_that_names_it(tmp_path: Path, kind: str, store: str) -> None:
    records = [{"id": str(i), "text": f"text {i} " * 20} for i in range(30)]
    out = io.BytesIO()
    if kind == "parquet":
        out.write(as_parquet(records, row_group_size=8))
    elif kind == "stream.zst":
        table = pa.Table.from_pylist(records)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(out, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=8)
    else:
        out.write(as_arrow(records, file=kind == "file", batch_rows=8))
    data = out.getvalue()
    folder = str(tmp_path) if store == "local" else "memory://sources-columns"
    format: Any = "parquet" if kind == "parquet" else "arrow"
    for size in {*range(0, len(data), max(1, len(data) // 50)), len(data) - 8, len(data) - 1}:
        url = put(f"{folder}/cut-file", data[:size])
        source = Source("source", SourceConfig(path=url, format=format))
        with pytest.raises(MillError, match="cut-file") as raised:
            list(sources.read_documents(ReadUnit(url=url), source))
        assert not isinstance(raised.value, RequestError)


def test_a_stream_cut_between_batches_is_noticed(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    out = io.BytesIO()
    ends = []
    with pa.ipc.new_stream(out, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
            ends.append(out.tell())
    whole = out.getvalue()
    for end in ends:
        path = put(str(tmp_path / "cut.arrow"), whole[:end])
        with pytest.raises(MillError, match=r"cut\.arrow: .*was it cut short"):
            read_all(SourceConfig(path=path))
    assert len(read_all(SourceConfig(path=put(str(tmp_path / "cut.arrow"), whole)))) == len(RECORDS)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_offsets_that_point_nowhere_are_an_error(tmp_path: Path, kind: str) -> None:
    """Arrow takes offsets on trust: what they point at would end the process."""
    data = as_arrow([{"text": "some text"}, {"text": "more"}], file=kind == "file")
    offsets = b"".join(offset.to_bytes(4, "little") for offset in (0, 9, 13))
    assert data.count(offsets) == 1
    broken = data.replace(offsets, offsets[:4] + b"\xff\xff\xff\x7f" + offsets[8:])
    path = put(str(tmp_path / "broken.arrow"), broken)
    with pytest.raises(MillError, match=r"cannot read .*broken\.arrow"):
        read_all(SourceConfig(path=path))


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_giant_row_group_is_not_held(tmp_path: Path) -> None:
    """One row group of 130 MB of text, which compression makes small."""
    schema = pa.schema([("text", pa.string()), ("unread", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, compression="zstd", use_dictionary=False) as writer:
        line = "the same words again and again " * 100
        rows = [f"{i} {line}" for i in range(40_000)]
        writer.write_table(pa.table({"text": rows, "unread": rows}, schema=schema), row_group_size=len(rows))
    del rows
    count, reason, grown_mib = read_alone(tmp_path / "a.parquet", "parquet")
    assert (count, reason) == (40_000, "-") and grown_mib < 60


@pytest.mark.slow
def test_a_long_text_that_every_row_repeats_is_not_written_out(tmp_path: Path) -> None:
    """A megabyte, a thousand times, in a kilobyte of Parquet."""
    table = pa.table({"text": pa.array(["x" * (1 << 20)]).take(pa.array([0] * 1000))})
    pq.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=8 << 20, compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    count, reason, grown_mib = read_alone(tmp_path / "a.parquet", "parquet", 1000)
    assert (count, reason) == (1000, "too_long") and grown_mib < 150


DISAGREEING: list[tuple[str, list[dict[str, Any]], str]] = [
    ("jsonl", [{"id": "x", "text": "b"}], "the column 'id' is string there, and int64 in the dataset"),
    ("jsonl", [{"id": 2, "text": ["b"]}], "the column 'text' is .* there, and string in the dataset"),
    ("parquet", [{"id": 2, "body": "b"}], "the column 'text' is missing there, and string in the dataset"),
]


@pytest.mark.parametrize(("ending", "second", "said"), DISAGREEING, ids=[said[:24] for _, _, said in DISAGREEING])
def test_a_dataset_whose_files_disagree_names_file_and_column(
    tmp_path: Path, ending: str, second: list[dict[str, Any]], said: str
) -> None:
    write = as_jsonl if ending == "jsonl" else as_parquet
    for number, records in enumerate(([{"id": 1, "text": "a"}], second)):
        put(str(tmp_path / f"train-{number}.{ending}"), write(records))
    with pytest.raises(MillError, match=rf"train-1\.{ending}: {said}"):
        read_all(SourceConfig(path=str(tmp_path), format="huggingface", id_field="id"))


IN_A_DATASET: list[tuple[str, bytes | None, str]] = [
    ("train-1.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "is a Git LFS pointer"),
    ("train-1.jsonl", b"<!DOCTYPE html><html>", "is an HTML page"),
    ("train-1.jsonl", "a text\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    ("train-1.jsonl", b'{"id": 2, "te', r"JSON parse error"),
    ("train-1.jsonl", None, "train-1.jsonl is a link to what isn't there"),
    ("more-1", None, "more-1 is a link to a folder, which datasets doesn't follow"),
    ("train-0.jsonl", b"", "is empty: the source has no records"),
    ("train-0.jsonl.gz", gzip.compress(as_jsonl(RECORDS))[:-9], "end-of-stream marker"),
]


@pytest.mark.parametrize(("name", "data", "said"), IN_A_DATASET, ids=[said for _, _, said in IN_A_DATASET])
def test_a_file_of_a_dataset_that_is_none_is_named(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if "1" in name:
        put(str(tmp_path / "train-0.jsonl"), as_jsonl([{"id": 1, "text": "a"}]))
    if data is None:
        (tmp_path / name).symlink_to("gone" if "train" in name else "/")
    else:
        put(str(tmp_path / name), data)
    with pytest.raises(MillError, match=said) as raised:
        read_all(SourceConfig(path=str(tmp_path), format="huggingface"))
    assert "missing there" not in str(raised.value)
