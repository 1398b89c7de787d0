"""Where files are: links and what can't be followed, names that are no text, folders in object stores, chained stores,
and servers that don't answer."""

import http.server
import os
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import sources
from sharding.errors import MillError, RequestError
from sharding.records.types import Document
from sharding.sources import ReadUnit, SourceConfig
from sharding.sources.places import locate, url_of
from tests.s3_server import BUCKET, FaultyS3, server_fixture, store_fixture  # noqa: F401  fixtures
from tests.source_files import as_jsonl, put, read_all, resolved, texts

RECORDS = [{"id": f"r{i}", "text": f"Text of number {i}."} for i in range(8)]


def file(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_jsonl([RECORDS[number] for number in numbers]))
    return path


def ids(path: Path | str, **keys: Any) -> list[str]:
    """Of every document of a source, in order; "?" for what became none."""
    found = read_all(SourceConfig(path=str(path), id_field="id", **keys))
    return [record.doc_id if isinstance(record, Document) else "?" for record in found]


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_links_is_read(tmp_path: Path) -> None:
    for number in range(3):
        file(tmp_path / "blobs" / f"{number:064x}", number)
    snapshot = tmp_path / "snapshots" / "abc" / "data"
    snapshot.mkdir(parents=True)
    for number in range(3):
        (snapshot / f"train-{number}.jsonl").symlink_to(Path("../../../blobs") / f"{number:064x}")
    assert ids(tmp_path / "snapshots" / "abc") == ["r0", "r1", "r2"]
    assert ids(tmp_path / "snapshots" / "*" / "data" / "*-[12].jsonl") == ["r1", "r2"]
    assert ids(snapshot / "train-1.jsonl") == ["r1"]


def test_a_folder_that_is_a_link_is_read_under_any_path(tmp_path: Path) -> None:
    file(tmp_path / "real" / "deep" / "a.jsonl", 0)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "more").symlink_to(tmp_path / "real")
    (tmp_path / "all").symlink_to("raw", target_is_directory=True)
    for path in ("raw", "all", "all/**/*.jsonl", "*/more/deep/*.jsonl", "raw/more/*/a.jsonl"):
        assert ids(tmp_path / path) == ["r0"], path


@pytest.mark.parametrize("target", [".", "..", "../raw/deep", "deep", "../loop"])
def test_a_circle_of_links_ends_and_nothing_is_read_twice(tmp_path: Path, target: str) -> None:
    file(tmp_path / "raw" / "a.jsonl", 0)
    file(tmp_path / "raw" / "deep" / "b.jsonl", 1)
    (tmp_path / "raw" / "again").symlink_to(target)
    (tmp_path / "raw" / "a-too.jsonl").symlink_to("a.jsonl")
    (tmp_path / "loop").symlink_to("raw")
    assert sorted(ids(tmp_path / "raw")) == ["r0", "r1"]


def test_folders_that_all_link_to_each_other_take_no_longer_than_they_have_files(tmp_path: Path) -> None:
    for one in range(9):
        file(tmp_path / "raw" / str(one) / "a.jsonl", one % 8)
    for one in range(9):
        for other in range(9):
            (tmp_path / "raw" / str(one) / f"to-{other}").symlink_to(f"../{other}")
    assert len(ids(tmp_path / "raw")) == 9


def test_a_link_to_what_is_hidden_or_not_meant_is_the_file(tmp_path: Path) -> None:
    file(tmp_path / "raw" / ".annex" / "k1", 0)
    file(tmp_path / "raw" / "b.bak", 1)
    (tmp_path / "raw" / "a.jsonl").symlink_to(".annex/k1")
    (tmp_path / "raw" / "b.jsonl").symlink_to("b.bak")
    assert ids(tmp_path / "raw" / "*.jsonl") == ["r0", "r1"]


def broken(path: Path) -> str:
    path.symlink_to("gone.jsonl")
    return "is a link to 'gone.jsonl', which can't be read"


def circle(path: Path) -> str:
    path.symlink_to("y.jsonl")
    (path.parent / "y.jsonl").symlink_to(path.name)
    return "is a link in a circle"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a pipe, not a file"


def listening(path: Path) -> str:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)
    return "is a socket, not a file"


@pytest.mark.parametrize("make", [broken, circle, pipe, listening])
def test_what_cannot_be_followed_is_named(tmp_path: Path, make: Callable[[Path], str]) -> None:
    file(tmp_path / "a.jsonl", 0)
    said = make(tmp_path / "x.jsonl")
    for path in (tmp_path, tmp_path / "*.jsonl", tmp_path / "x.jsonl"):
        with pytest.raises(RequestError, match=rf"source\.path: .*/x\.jsonl {said}.*: mend it"):
            resolved(SourceConfig(path=str(path)))
    assert ids(tmp_path / "a*.jsonl") == ["r0"], "what the path leaves out is nobody's business"
    (tmp_path / "x.jsonl").rename(tmp_path / ".x.jsonl")
    (tmp_path / "y.jsonl").unlink(missing_ok=True)
    assert ids(tmp_path) == ["r0"]


def test_a_broken_link_on_the_way_to_a_glob_is_named(tmp_path: Path) -> None:
    file(tmp_path / "raw" / "2023" / "a.jsonl", 0)
    (tmp_path / "raw" / "2024").symlink_to("/gone/2024")
    with pytest.raises(RequestError, match=r"/raw/2024 is a link to '/gone/2024'"):
        ids(tmp_path / "raw" / "20*" / "*.jsonl")


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = [b"caf\xe9.jsonl", b"\xff\xfe%E9 100%.jsonl", "日本語 #1.jsonl".encode("euc-jp")]


def not_utf8(folder: Path, name: bytes) -> Path:
    path = folder / os.fsdecode(b"f\xfc") / os.fsdecode(name)
    path.parent.mkdir()
    path.write_bytes(as_jsonl(RECORDS))
    return path


def test_what_a_glob_leaves_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file(tmp_path / "a.jsonl", 0)
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "b.jsonl").mkdir()
    file(tmp_path / "b.jsonl" / "part-0", 1)
    assert ids(f"{tmp_path}/*.jsonl") == ["r0"]
    assert "b.jsonl matches and is a folder" in caplog.text and "gone" not in caplog.text
    caplog.clear()
    assert ids(f"{tmp_path}/**/*.jsonl") == ["r0"]
    assert "gone is a link to 'nowhere', which can't be read" in caplog.text


@pytest.mark.parametrize("below", ["a.jsonl/b.jsonl", "x" * 300])
def test_a_path_that_cannot_be_is_no_outage(tmp_path: Path, below: str) -> None:
    file(tmp_path / "a.jsonl", 0)
    with pytest.raises(RequestError, match="nothing matches"):
        ids(f"{tmp_path}/{below}")


def test_a_port_that_is_none_is_no_absence() -> None:
    with pytest.raises(MillError, match=r"source\.path: .*Port out of range"):
        ids("http://127.0.0.1:99999/a.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_utf8_travels_and_is_opened(tmp_path: Path, name: bytes) -> None:
    path = not_utf8(tmp_path, name)
    source, files = resolved(SourceConfig(path=str(tmp_path)))
    [back] = [f for piece in sources.pack_listing(files, 0) for f in sources.unpack_listing(piece)[1]]
    assert back.url.encode() and locate(back.url)[1] == str(path)
    record = next(sources.read_documents(ReadUnit(url=back.url), source))
    assert isinstance(record, Document) and record.origin.encode()


def test_a_name_that_is_not_utf8_is_scored(tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    not_utf8(tmp_path, NAMES[0])
    config = from_mapping(rehearsal_config(str(tmp_path / "*" / "*.jsonl")))
    assert mill(config, stages=["score"])["score"].counts["documents"] == len(RECORDS)


# --- object stores ----------------------------------------------------------------------------------------------------


def upload(**objects: bytes) -> None:
    s3 = fsspec.filesystem("s3")
    for key, data in objects.items():
        s3.call_s3("put_object", Bucket=BUCKET, Key=key, Body=data)


def test_marks_of_folders_are_neither_files_nor_documents(store: FaultyS3) -> None:
    one, two = as_jsonl(RECORDS[:2]), as_jsonl(RECORDS[2:3])
    upload(**{"raw/": b"", "raw/a.jsonl": one, "raw/deep/": b"", "raw/deep/b.jsonl": two, "raw/old_$folder$": b""})
    for path in ("raw", "raw/", "raw/**", "raw/**/*.jsonl"):
        assert sorted(ids(f"s3://{BUCKET}/{path}")) == ["r0", "r1", "r2"], path
    assert ids(f"s3://{BUCKET}/raw/*.jsonl") == ["r0", "r1"]


def test_a_key_that_is_a_prefix_too_is_not_lost(store: FaultyS3) -> None:
    upload(**{"raw/a.jsonl": as_jsonl(RECORDS[:1]), "raw/a.jsonl/b.jsonl": as_jsonl(RECORDS[1:2])})
    for path in ("raw", "raw/a.jsonl", "raw/**", "raw/**/*.jsonl"):
        assert sorted(ids(f"s3://{BUCKET}/{path}")) == ["r0", "r1"], path
    assert ids(f"s3://{BUCKET}/raw/*.jsonl") == ["r0"]


def test_an_empty_key_of_a_folders_name_is_a_mark_as_well(store: FaultyS3) -> None:
    upload(**{"raw": b"", "raw/a.jsonl": as_jsonl(RECORDS[:1])})
    assert ids(f"s3://{BUCKET}/raw") == ["r0"]


# --- chained stores ---------------------------------------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `a.zip`, `a.tar.gz` and `nested.zip`, and the process in it."""
    inner = {"in/a.jsonl": as_jsonl(RECORDS[:2]), "in/deep/b.jsonl": as_jsonl(RECORDS[2:4])}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in inner.items():
            archive.writestr(name, data)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, data in inner.items():
            put(str(tmp_path / "member"), data)
            tar.add(tmp_path / "member", name)
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.write(tmp_path / "a.tar.gz", "a.tar.gz")
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/chain/a.zip", (tmp_path / "a.zip").read_bytes())
    fs.pipe_file("/chain/a.jsonl", inner["in/a.jsonl"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


CHAINS = [
    ("zip://in/*.jsonl::a.zip", 2),
    ("zip://in::a.zip", 4),
    ("zip://**/*.jsonl::simplecache::memory://chain/a.zip", 4),
    ("zip://in/a.jsonl::file://{here}/a.zip", 2),
    ("tar://in/**/*.jsonl::a.tar.gz", 4),
    ("tar://in/a.jsonl::zip://a.tar.gz::nested.zip", 2),
    ("simplecache::memory://chain/*.jsonl", 2),
    ("filecache::memory://chain/a.jsonl", 2),
    ("simplecache::in.jsonl", 1),
]


@pytest.mark.parametrize(("chain", "count"), CHAINS)
def test_a_chain_of_stores_is_whole_where_a_worker_opens_it(
    archives: Path, monkeypatch: pytest.MonkeyPatch, chain: str, count: int
) -> None:
    file(archives / "in.jsonl", 0)
    source, files = resolved(SourceConfig(path=chain.format(here=archives)))
    monkeypatch.chdir("/")
    units = [unit for found in files for unit in sources.units_of(found, source.config)]
    read = [record for unit in units for record in sources.read_documents(unit, source)]
    assert texts(read) == [record["text"] for record in RECORDS[:count]]


def test_a_local_name_with_two_colons_is_no_chain(tmp_path: Path) -> None:
    assert ids(file(tmp_path / "a::b.jsonl", 0)) == ["r0"]
    fs, path = locate(str(tmp_path / "a::b.jsonl"))
    assert url_of(fs, path, str(tmp_path / "a::b.jsonl")) == f"file://{tmp_path}/a::b.jsonl"


@pytest.mark.parametrize("chain", ["zip://*.jsonl::gone.zip", "tar://x::gone.tar"])
def test_an_archive_that_is_not_there_is_named(archives: Path, chain: str) -> None:
    with pytest.raises(RequestError, match=r"source\.path: .*there is no .*gone"):
        ids(chain)


@pytest.mark.parametrize("chain", ["zip://in/*.jsonl::x.zip", "tar://*::x.tar"])
def test_a_damaged_archive_is_named(archives: Path, chain: str) -> None:
    for name in ("x.zip", "x.tar"):
        (archives / name).write_bytes(b"no archive at all")
    with pytest.raises(MillError, match=r"source\.path: .*::x\.\w+: its store can't be opened"):
        ids(chain)


# --- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on the loopback that answers as a function says; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def with_status(status: int) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def in_chunks(handler: http.server.BaseHTTPRequestHandler) -> None:
    """All of a file, and no length."""
    data = as_jsonl(RECORDS)
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))


def plainly(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A gzipped file and its length, in ranges where one is asked for."""
    import gzip

    data = gzip.compress(as_jsonl(RECORDS), mtime=0)
    start, end = 0, len(data)
    if wanted := handler.headers.get("Range"):
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(end, int(last) + 1 if last else end)
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
    handler.send_header("Accept-Ranges", "bytes")
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data[start:end])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that fail are asked again without a wait."""
    monkeypatch.setattr("sharding.storage.retries.FIRST_WAIT_S", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("query", ["", "?X-Sig=a.b/c&part=1"])
def test_a_signed_url_is_read_by_its_name_and_bytes(query: str) -> None:
    with serving(plainly) as address:
        assert ids(f"{address}/x/in.JSONL.gzip{query}") == [record["id"] for record in RECORDS]


@pytest.mark.usefixtures("at_once")
def test_a_server_that_says_no_length_is_named() -> None:
    with (
        serving(in_chunks) as address,
        pytest.raises(RequestError, match=r"doesn't say how long .*/a\.jsonl.*fetch it"),
    ):
        ids(f"{address}/a.jsonl")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, RequestError, r"nothing matches"),
        (403, MillError, r"source\.path: cannot list .*answers 403: it wants a login"),
        (401, MillError, r"source\.path: cannot list .*answers 401"),
        (500, MillError, r"source\.path: cannot list .*500"),
        (503, MillError, r"source\.path: cannot list .*503"),
    ],
)
def test_an_answer_of_a_server_is_told_as_what_it_is(status: int, kind: type[MillError], said: str) -> None:
    with serving(with_status(status)) as address, pytest.raises(MillError, match=said) as raised:
        ids(f"{address}/a.jsonl")
    assert type(raised.value) is kind


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("path", ["a.jsonl", "*.jsonl", "a/", "a.jsonl?sig=1"])
@pytest.mark.parametrize("before", ["", "simplecache::"])
def test_an_outage_is_not_blamed_on_the_config(path: str, before: str) -> None:
    with socket.socket() as taken:  # a port that nothing listens on
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MillError, match=r"source\.path: .*127\.0\.0\.1.*[Cc]onnect") as raised:
            ids(f"{before}{address}/{path}")
    assert not isinstance(raised.value, RequestError)


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_an_outage_of_an_object_store_is_one_too(store: FaultyS3) -> None:
    store.fail_fraction = 1.0
    with pytest.raises(MillError, match=r"source\.path: cannot list s3://") as raised:
        ids(f"s3://{BUCKET}/raw")
    assert not isinstance(raised.value, RequestError)


def test_a_store_that_lacks_a_library_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    monkeypatch.setenv("HADOOP_HOME", "/nowhere")
    with pytest.raises(MillError) as raised:
        ids("hdfs://name/raw/*.jsonl")
    said = str(raised.value)
    assert said.startswith("source.path: hdfs://name/raw/*.jsonl: its store can't be opened: ")
    assert "\n" not in said and len(said) < 200


# --- while it is read -------------------------------------------------------------------------------------------------

MANY = as_jsonl([{"id": str(i), "text": f"Text {i}. " * 500} for i in range(2_000)])


@pytest.mark.parametrize("change", ["shrinks", "grows", "is written anew", "goes"])
@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, change: str, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(MANY)
    os.utime(path, (1, 1))
    source, [listed] = resolved(SourceConfig(path=str(path), **({"document": "line"} if ending == "txt" else {})))
    [unit] = sources.units_of(listed, source.config)
    records = sources.read_documents(unit, source)
    next(records)
    if change == "shrinks":
        os.truncate(path, len(MANY) // 2)
    elif change == "grows":
        path.write_bytes(MANY + MANY)
    elif change == "is written anew":
        path.write_bytes(MANY)
    else:
        path.unlink()
    with pytest.raises(MillError, match=rf"a\.{ending}.*changed while it was read"):
        list(records)


def test_an_object_that_changes_while_it_is_read_is_noticed(store: FaultyS3) -> None:
    upload(**{"raw/a.jsonl": MANY})
    source, [listed] = resolved(SourceConfig(path=f"s3://{BUCKET}/raw"))
    [unit] = sources.units_of(listed, source.config)
    records = sources.read_documents(unit, source)
    next(records)
    upload(**{"raw/a.jsonl": MANY.replace(b"Text", b"text")})
    with pytest.raises(MillError, match=r"cannot read s3://.*a\.jsonl|a\.jsonl changed while it was read"):
        list(records)


def test_a_file_that_changed_between_the_listing_and_the_reading_is_noticed(tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", 0, 1, 2)
    source, [listed] = resolved(SourceConfig(path=str(path)))
    file(path, 0, 1)
    with pytest.raises(MillError, match=r"a\.jsonl changed while it was read"):
        list(sources.read_documents(next(sources.units_of(listed, source.config)), source))
