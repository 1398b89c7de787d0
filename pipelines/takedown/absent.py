"""Whether documents are gone: every file of an output and of its ledger, searched for their ids and for their text.

By what the files hold, not by what manifests say of them: a file that no manifest names is searched too.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipelines.takedown.ids import Wanted
from pipelines.takedown.parts import named_in
from pipelines.verify.report import Problem, Report, at, limited
from pipelines.watch.files import read_plan
from sharding import storage
from sharding.beam.part_join import scored_documents
from sharding.errors import MillError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing.recovery import items_of, source_of, thoughts_of
from sharding.records.rows import Row
from sharding.storage import manifest
from sharding.storage.arrow_files import file_buffer, read_schema
from sharding.storage.output import Output

WINDOW_CHARACTERS = 120
"""So many characters in a row are told from other texts; a text that is shorter is only found as a whole."""

_EVERY_WORDS = 20
"""Windows of a text that are looked for begin at every so many words: a quote longer than both is found."""

_IDS = frozenset({"doc_id", "doc_ids", "segment", "segment_id", "document", "id"})
"""Columns, and keys of JSON, that name documents or their segments."""

_SEGMENTS = frozenset({"segment", "segment_id"})
"""Those of them that name segments, as "document#index"."""

_LONG_ID = 8
"""In other files ids of at least so many characters are looked for: shorter ones are in any text."""

_STARTS = re.compile(r"(?<!\w)\w|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Where a word begins; in scripts without spaces, every character."""


class Needles:
    """Texts that are looked for.

    Args:
        texts: id → text.
    """

    def __init__(self, texts: dict[str, str]) -> None:
        self._windows: dict[str, str] = {}
        self._short: dict[str, str] = {}
        for doc_id, text in texts.items():
            plain = " ".join(text.split())
            starts = [found.start() for found in _STARTS.finditer(plain)]
            fitting = [start for start in starts if start + WINDOW_CHARACTERS <= len(plain)]
            for start in fitting[::_EVERY_WORDS]:
                self._windows[plain[start : start + WINDOW_CHARACTERS]] = doc_id
            if not fitting:
                self._short[plain] = doc_id

    def __bool__(self) -> bool:
        return bool(self._windows or self._short)

    def find(self, text: str) -> str | None:
        """The document of which a text holds a stretch; None where it holds none."""
        plain = " ".join(text.split())
        if plain in self._short:
            return self._short[plain]
        if self._windows and len(plain) >= WINDOW_CHARACTERS:
            for found in _STARTS.finditer(plain):
                if (window := plain[found.start() : found.start() + WINDOW_CHARACTERS]) in self._windows:
                    return self._windows[window]
        return None


def add_search(report: Report, wanted: Wanted, ledger_url: str | None = None) -> None:
    """Add to a report of verify where documents are that are to be absent.

    Args:
        report: of the output.
        wanted: the documents.
        ledger_url: where the generations are, if not where the run's plan says.

    Raises:
        MillError: the output can't be listed, or its tokenizer isn't to be had.
    """
    search = _Search(report.output, wanted)
    for url in files_of(report.output, ledger_url):
        report.checked.files_searched += 1
        report.problems += limited(search.file(url), url)
    report.problems.sort()
    report.ok = not report.problems


def files_of(output: str, ledger_url: str | None = None) -> list[str]:
    """Every file of an output and of its ledger, wherever that is."""
    folders = [output, ledger_url or (read_plan(output) or {}).get("ledger") or Output(output).ledger]
    found: dict[str, None] = {}
    for folder in folders:
        fs, path = storage.filesystem(folder)
        fs.invalidate_cache()
        for name in sorted(fs.find(path)):
            found[name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)] = None
    return list(found)


class _Search:
    def __init__(self, output: str, wanted: Wanted) -> None:
        self._ids, self._needles = wanted.ids, Needles(wanted.texts)
        self._tokenizer: TextTokenizer | None = None
        scored = manifest.read(output, "score")
        if self._needles and scored is not None:
            self._tokenizer = load_tokenizer(scored.config["tokenizer"])

    def file(self, url: str) -> Iterator[Problem]:
        """Where in a file one of the documents is."""
        try:
            if url.endswith(".arrow"):
                yield from self._arrow(url)
            elif url.endswith(".parquet"):  # provenance, which is compressed as well
                yield from self._columns(url, pq.ParquetFile(pa.BufferReader(file_buffer(url))).iter_batches())
            else:
                yield from self._other(url)
        except (MillError, pa.ArrowException, OSError, ValueError) as error:
            yield Problem(url, f"can't be read, so what is in it isn't known: {error}")

    def _columns(self, url: str, batches: Iterable[pa.RecordBatch]) -> Iterator[Problem]:
        """What the texts in the columns of a file say."""
        first_row = 0
        for batch in batches:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                for row, values in enumerate(_texts(column), first_row):
                    for value in values:
                        if name in _IDS:
                            yield from self._named(name, value, at(url, row))
                        else:
                            yield from self._quoted(value, at(url, row))
                        if name == "excerpt":
                            for string in sorted(named_in(value)):
                                yield from self._named("id", string, at(url, row))
            first_row += batch.num_rows

    def _arrow(self, url: str) -> Iterator[Problem]:
        yield from self._columns(url, storage.read_batches(url))
        names = read_schema(url).names if self._tokenizer is not None else []
        if self._tokenizer is None or "input_ids" not in names:
            return
        decode = self._tokenizer.decode
        if "seq_lengths" in names:
            for number, record in enumerate(storage.read_records(url, Row)):
                for item in items_of(record):
                    for ids in (source_of(item), *(thought.input_ids for thought in thoughts_of(item))):
                        yield from self._quoted(decode(ids), at(url, number, item.doc_id))
        elif "num_segments" in names:
            for document in scored_documents(url, ("input_ids",)):
                yield from self._quoted(decode(document.input_ids), at(url, None, document.doc_id))

    def _other(self, url: str) -> Iterator[Problem]:
        text = storage.read_bytes(url).decode("utf-8", "replace")
        if url.endswith(".json"):
            for key, value in _strings(json.loads(text)):
                yield from self._named(key, value, url) if key in _IDS else self._quoted(value, url)
            return
        text = html.unescape(re.sub(r"<[^>]*>", "", text))
        for doc_id in sorted(self._ids):
            if len(doc_id) >= _LONG_ID and doc_id in text:
                yield Problem(url, f"names the document {doc_id!r}")
        yield from self._quoted(text, url)

    def _named(self, column: str, value: str, where: str) -> Iterator[Problem]:
        name = value.rpartition("#")[0] if column in _SEGMENTS else value
        if name in self._ids:
            yield Problem(where, f"names the document {name!r}")

    def _quoted(self, text: str, where: str) -> Iterator[Problem]:
        if self._needles and (doc_id := self._needles.find(text)) is not None:
            yield Problem(where, f"holds text of the document {doc_id!r}")


def _texts(column: pa.Array) -> Iterator[list[str]]:
    """The texts in each row of a column; none in one of numbers."""
    if pa.types.is_string(column.type):
        yield from ([] if value is None else [value] for value in column.to_pylist())
    elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        yield from column.to_pylist()


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key that it stands under, text) of every text in a JSON value."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(each, name)
