"""The same records in every format, for the tests of the readers."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from sharding import sources, storage
from sharding.records.types import Document, Quarantined
from sharding.sources import Source, SourceConfig

Records = Sequence[dict[str, Any]]


def as_jsonl(records: Records) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def gzipped(data: bytes) -> bytes:
    """The same bytes every time: tests have their parameters in their names."""
    return gzip.compress(data, mtime=0)


def as_parquet(records: Records, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(records)), out, **{"row_group_size": 3, **options})
    return out.getvalue()


def as_arrow(records: Records, *, file: bool = False, batch_rows: int = 3) -> bytes:
    table = pa.Table.from_pylist(list(records))
    out = io.BytesIO()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return out.getvalue()


WRITERS: dict[str, Callable[[Records], bytes]] = {
    "a.jsonl": as_jsonl,
    "a.ndjson": as_jsonl,
    "a.jsonl.gz": lambda records: gzipped(as_jsonl(records)),
    "a.jsonl.zst": lambda records: zstandard.ZstdCompressor().compress(as_jsonl(records)),
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "a.feather": lambda records: as_arrow(records, file=True),
}
"""File name → what writes records into such a file."""


def resolved(config: SourceConfig, key: str = "source") -> tuple[Source, list[sources.SourceFile]]:
    return sources.resolve(Source(key, config))


def read_all(config: SourceConfig) -> list[Document | Quarantined]:
    """Everything a source holds, unit by unit."""
    source, files = resolved(config)
    units = [unit for file in files for unit in sources.units_of(file, source.config)]
    return [record for unit in units for record in sources.read_documents(unit, source)]


def texts(found: Sequence[Document | Quarantined]) -> list[str]:
    return [record.text for record in found if isinstance(record, Document)]


def put(url: str, data: bytes) -> str:
    if url.startswith("memory://"):
        fs, path = storage.filesystem(url)
        fs.pipe_file(path, data)
    else:
        Path(url).write_bytes(data)
    return url


_PEAK = """
import re, sys
from pathlib import Path
from sharding import sources
from sharding.sources import ReadUnit, Source, SourceConfig, readers
source = Source("source", SourceConfig(path=sys.argv[1], format=sys.argv[2], max_document_bytes=int(sys.argv[3])))
readers._reader(source)
# Of this process alone; what getrusage says includes the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
reasons = [getattr(record, "reason", "") for record in sources.read_documents(ReadUnit(url=sys.argv[1]), source)]
print(len(reasons), max(reasons) or "-", (peak() - before) // 1024)
"""


def read_alone(path: Path, format: str, max_document_bytes: int = 64 << 20) -> tuple[int, str, int]:
    """Read a file in a process of its own.

    Returns:
        How many records it has, a reason why one was refused or "-", and by how many MiB the peak of memory grew.
    """
    command = [sys.executable, "-c", _PEAK, str(path), format, str(max_document_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, reason, grown_mib = done.stdout.split()
    return int(count), reason, int(grown_mib)
