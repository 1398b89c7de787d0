"""One way to write Arrow and one to read it: bytes that depend on the rows alone, and only the columns asked for."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sharding import storage
from sharding.errors import MillError
from sharding.records.families import QUARANTINE
from sharding.records.types import FileEntry, Quarantined
from sharding.storage.arrow_files import file_buffer, open_stream
from sharding.storage.hashed_file import publish_hashed

REFUSED = [
    Quarantined(stage="score", origin=f"o{i}", reason="empty", detail="d" * i, doc_id=None if i % 2 else f"doc-{i}")
    for i in range(50)
]


@pytest.fixture(params=["disk", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "part.arrow") if request.param == "disk" else "memory://arrow-files/part.arrow"


def test_a_part_has_the_bytes_it_always_had(url: str) -> None:
    entry = storage.write_part(url, REFUSED, QUARANTINE.schema())
    data = storage.read_bytes(url)
    assert entry == FileEntry(
        name="part.arrow", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=len(REFUSED)
    )
    # Arrow's and zstd's versions have a say in it, ours none.
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=3))
    columns = [[getattr(refused, name) for refused in REFUSED] for name in QUARANTINE.schema().names]
    with pa.ipc.new_stream(sink, QUARANTINE.schema(), options=options) as writer:
        writer.write_batch(pa.record_batch([pa.array(column, pa.string()) for column in columns], QUARANTINE.schema()))
    assert data == sink.getvalue().to_pybytes()


def test_columns_not_asked_for_are_not_returned(url: str) -> None:
    storage.write_part(url, REFUSED, QUARANTINE.schema())
    with open_stream(file_buffer(url), ("doc_id", "reason", "unknown")) as reader:
        table = reader.read_all()
    assert table.schema.names == ["reason", "doc_id"], "in the order of the file"
    assert table["doc_id"].to_pylist() == [refused.doc_id for refused in REFUSED]
    with open_stream(file_buffer(url)) as reader:
        assert reader.schema == QUARANTINE.schema()
    with pytest.raises(MillError, match=r"part\.arrow: it has none of the columns text"):
        list(storage.read_batches(url, ("text",)))


def test_a_file_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(MillError, match=r"cannot read .*gone\.arrow"):
        file_buffer(url.replace("part", "gone"))


def test_arrays_are_written_as_their_bytes(url: str) -> None:
    array = np.arange(300, dtype=np.uint16).reshape(100, 3)
    with publish_hashed(url, "data/x.bin") as out:
        assert out.write(array) == 600
        out.write(b"end")
        entry = out.entry(rows=100, tokens={"thought": 2, "source": 1})
    data = storage.read_bytes(url)
    assert data == array.tobytes() + b"end"
    assert (entry.name, entry.size_bytes, entry.sha256) == ("data/x.bin", 603, hashlib.sha256(data).hexdigest())
    assert list(entry.tokens) == ["source", "thought"]
