"""Benchmark files: JSON lines in any fsspec store, as the texts that decontamination looks for."""

from __future__ import annotations

import contextlib
import itertools
import posixpath
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.hashing import fingerprint
from sharding.sources.lines import lines, open_text
from sharding.sources.units import COMPRESSIONS

_PATHS_KEY = "select.decontaminate.paths"
_FIELDS_KEY = "select.decontaminate.fields"
_READ_BYTES = 1 << 20
_MAX_LINE_BYTES = 64 << 20


def read_benchmarks(paths: Sequence[str], fields: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """(benchmark, number of the record, text) of every text, file by file; a benchmark may have several files.

    Args:
        paths: files or globs.
        fields: the fields that hold texts, strings or lists of strings; none: every field that does.

    Raises:
        RequestError: nothing matches a path, a line is no JSON object, or no record of a file has a text.
        MillError: a file can't be read to its end.
    """
    record = 0
    for url in _files(paths):
        found = None
        for number, line in _lines(url):
            found = found or False
            for text in _texts(_object(line, f"{url}:{number}"), fields):
                found = True
                yield benchmark_name(url), record, text
            record += 1
        if found is None:
            raise RequestError(f"{_PATHS_KEY}: {url} has no records")
        if not found:
            wanted = " or ".join(map(repr, fields)) or "any field"
            raise RequestError(f"{_FIELDS_KEY}: no record of {url} has text in {wanted}")


def digest_of(paths: Sequence[str]) -> str:
    """32 hex digits of the benchmarks' names and contents, wherever the files are.

    A process reads a local file once, and again where it may have changed since; others are read each time.

    Raises:
        RequestError: nothing matches a path.
        MillError: a file can't be read.
    """
    return fingerprint(sorted(_digest_of_file(url) for url in _files(paths)))


def _digest_of_file(url: str) -> str:
    fs, path = storage.filesystem(url)
    with _naming(url):
        before = _state(fs, path)
        if before is not None and (known := _digests.get(before)) is not None:
            return known
        settled = before is not None and time.time() - before[-1] / 1e9 > _FRESH_S
        with fs.open(path, "rb") as raw:
            blocks = iter(partial(raw.read, _READ_BYTES), b"")
            digest = fingerprint(itertools.chain([benchmark_name(url), b"\0"], blocks))
        if before is not None and settled and _state(fs, path) == before:
            _digests[before] = digest
    return digest


_FRESH_S = 2.0
"""A file that changed less than this before it was read may change again and look as if it hadn't."""

_State = tuple[str, int, int, int]
_digests: dict[_State, str] = {}


def _state(fs: fsspec.AbstractFileSystem, path: str) -> _State | None:
    """What is another whenever a local file is: path, size, and times of change, the last of which nobody can set."""
    if not isinstance(fs, LocalFileSystem):
        return None
    found = Path(path).stat()
    return path, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_paths(paths: Sequence[str]) -> Iterator[MillError]:
    """Paths that match no file, without reading any."""
    for path in paths:
        try:
            _files([path])
        except MillError as error:
            yield error


def benchmark_name(url: str) -> str:
    """A file's name without its endings: "data/gsm8k.test.jsonl.gz" holds "gsm8k.test"."""
    stem, ending = posixpath.splitext(posixpath.basename(url))
    return posixpath.splitext(stem)[0] if ending in COMPRESSIONS else stem


def _files(paths: Sequence[str]) -> list[str]:
    """The URLs of the files that match, each once, sorted."""
    found: set[str] = set()
    for pattern in paths:
        fs, path = storage.filesystem(pattern)
        try:
            fs.invalidate_cache()
            names = [path] if fs.isfile(path) else fs.glob(path)
            urls = {fs.unstrip_protocol(name) for name in names if fs.isfile(name)}
        except OSError as error:
            raise MillError(f"{_PATHS_KEY}: cannot list {pattern}: {error}") from error
        if not urls:
            raise RequestError(f"{_PATHS_KEY}: no file matches {pattern!r}: name a JSON-lines file or a glob of them")
        found |= urls
    return sorted(found)


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise MillError(f"{_PATHS_KEY}: cannot read {url}: {error}") from error


def _lines(url: str) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank."""
    with _naming(url), open_text(url) as stream:
        for line in lines(stream, 0, None, _MAX_LINE_BYTES):
            if line.data is None:
                raise RequestError(f"{_PATHS_KEY}: {url}:{line.number} is longer than {_MAX_LINE_BYTES} bytes")
            if line.data.strip():
                yield line.number, line.data


def _object(line: bytes, origin: str) -> dict[str, Any]:
    try:
        line.decode()
        record = msgspec.json.decode(line)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{_PATHS_KEY}: {origin} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise RequestError(f"{_PATHS_KEY}: {origin} holds {type(record).__name__}, not an object")
    return record


def _texts(record: dict[str, Any], fields: Sequence[str]) -> Iterator[str]:
    for field in fields or record:
        value = record.get(field)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text
